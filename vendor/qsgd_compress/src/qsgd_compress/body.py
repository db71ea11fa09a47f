"""What stands behind a frame's header."""

from __future__ import annotations

import numpy as np

from .frame import Geometry


class Body:
    """A frame's scales and codes, as bytes, and the weight with which they are added."""

    __slots__ = ("codes", "geometry", "scales", "weight")

    def __init__(self, geometry: Geometry, scales: memoryview, codes: memoryview, weight: float) -> None:
        self.geometry = geometry
        self.scales = scales
        self.codes = codes
        self.weight = weight

    def fault_of_scale(self, bucket: int) -> str:
        return f"the scale of bucket {bucket} is {np.frombuffer(self.scales, np.float32, 1, 4 * bucket)[0]}"

    def fault_of_group(self, group: int) -> str:
        """The group's own values begin with number `group * group_size`."""
        return f"a code of group {group} or soon after it is reserved, or pads the frame with another value than zero"
