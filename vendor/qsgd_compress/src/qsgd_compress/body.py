"""What stands behind a frame's header, and the checks that both backends share."""

from __future__ import annotations

import numpy as np

from .errors import CorruptFrame
from .frame import LANES, Geometry

_LARGEST_FLOAT = float(np.finfo(np.float32).max)


def largest_scale(levels: int) -> np.float32:
    """The largest float32 whose product with `levels` is finite; no frame holds a larger scale."""
    scale = np.float32(_LARGEST_FLOAT / levels)
    return np.nextafter(scale, np.float32(0)) if float(scale) * levels > _LARGEST_FLOAT else scale


class Body:
    """A frame's scales and codes, as bytes, and the weight with which they are added."""

    __slots__ = ("codes", "geometry", "scales", "weight")

    def __init__(self, geometry: Geometry, scales: memoryview, codes: memoryview, weight: float) -> None:
        self.geometry = geometry
        self.scales = scales
        self.codes = codes
        self.weight = weight

    def check_scales(self) -> None:
        """Raise CorruptFrame for a scale that no encoder writes: negative (also -0.0), NaN, or too large."""
        largest = largest_scale(self.geometry.levels)
        scale = np.frombuffer(self.scales, np.float32)
        # Of non-negative floats the order of the bits is that of the values; whatever has a sign is above them all.
        wrong = scale.view(np.uint32) > largest.view(np.uint32)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise CorruptFrame(f"the scale of bucket {at} is {scale[at]}")

    def check_padding(self) -> None:
        """Raise CorruptFrame where the values after the last one are not zero."""
        geometry = self.geometry
        used = geometry.size % geometry.group_size
        if not used:
            return
        words = np.frombuffer(self.codes[-4 * LANES :], np.uint32)
        shift_k = np.arange(0, 32, geometry.bits, dtype=np.uint32)
        code_v = (words >> shift_k[:, None] & np.uint32((1 << geometry.bits) - 1)).reshape(-1)
        if (code_v[used:] != geometry.levels).any():
            raise CorruptFrame("the padding after the last value is not zero")
