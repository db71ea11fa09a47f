"""QSGD gradient compression with unbiased stochastic rounding, in a frame that is checked before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .codec import accumulate, accumulate_many, backend, check, decode, encode, inspect
from .errors import CorruptFrame, NonFiniteGradient, QsgdError, SizeMismatch

if TYPE_CHECKING:
    from .info import FrameInfo

__all__ = [
    "CorruptFrame",
    "FrameInfo",
    "NonFiniteGradient",
    "QsgdError",
    "SizeMismatch",
    "accumulate",
    "accumulate_many",
    "backend",
    "check",
    "decode",
    "encode",
    "inspect",
]


def __getattr__(name: str) -> Any:
    # A dataclass takes a millisecond or two to make, and most programs never look at one of these.
    if name == "FrameInfo":
        from .info import FrameInfo

        return FrameInfo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
