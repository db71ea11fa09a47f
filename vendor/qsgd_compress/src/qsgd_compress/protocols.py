"""What a backend does. Only type checkers read this module: making these classes would take a tenth of the import."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .body import Body
from .frame import Geometry, Norm
from .threads import Threads

F32: TypeAlias = NDArray[np.float32]


class Unsealed(Protocol):
    """A frame whose header is not written yet."""

    @property
    def body(self) -> memoryview:
        """Scales and codes."""
        ...

    @property
    def body_crc32c(self) -> int:
        """The checksum of `body`."""
        ...

    def seal(self, header: bytes) -> bytes:
        """The whole frame."""
        ...


class Backend(Protocol):
    """The arithmetic. Every backend gives the same bytes and values."""

    @property
    def name(self) -> str: ...

    def quantise(self, x: F32, geometry: Geometry, norm: Norm, seed: int, threads: Threads) -> Unsealed:
        """Scales and codes of x (size,). Raises NonFiniteGradient."""
        ...

    def check(self, body: Body, threads: Threads) -> tuple[str | None, int]:
        """What no encoder writes in a body, as a clause, or None; and the CRC-32C of scales and codes."""
        ...

    def decode(self, body: Body, out: F32, threads: Threads) -> None:
        """The values of a checked body, into out (size,)."""
        ...

    def add(self, bodies: list[Body], acc: F32, threads: Threads) -> None:
        """acc (size,) += the weighted values of checked bodies, one after the other."""
        ...
