"""The public form of a frame's header."""

from __future__ import annotations

from dataclasses import dataclass

from .frame import Entropy, Norm


@dataclass(frozen=True, kw_only=True)
class FrameInfo:
    """A frame's header. `size` counts values; `payload_bytes` the codes as stored, after entropy coding."""

    version: int
    norm: Norm
    bits: int
    bucket_size: int
    entropy: Entropy
    size: int
    seed: int
    payload_bytes: int
    body_crc32c: int
    frame_bytes: int
    """Length of the whole frame."""
