"""QSGD gradient compression with unbiased stochastic rounding, in a frame that is checked before it is used."""

from .codec import accumulate, accumulate_many, backend, decode, encode, inspect
from .errors import CorruptFrame, NonFiniteGradient, QsgdError, SizeMismatch
from .frame import FrameInfo

__all__ = [
    "CorruptFrame",
    "FrameInfo",
    "NonFiniteGradient",
    "QsgdError",
    "SizeMismatch",
    "accumulate",
    "accumulate_many",
    "backend",
    "decode",
    "encode",
    "inspect",
]
