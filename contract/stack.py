"""Contributions of one round on disk, decoded once and read back in blocks of coordinates.

Shapes: P contributions of n values each, b coordinates at a time. A robust rule compares what all contributions say of
one coordinate, so it needs all of them at once; in memory that would be P models (invariant 12). Here they lie one
after another in a file without a name, which goes away with its process however that ends:

    [ n values float32 | buffers, packed ]  P times

The file is read, never mapped: pages of a mapped file count as the process's memory. The system keeps in its cache
what it has room for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from contract.codec import F32
from contract.errors import CorruptObject
from contract.tensors import Buffers, Entry, Layout, pack_buffers

#: Bytes of a block of all contributions: small enough for a core's second-level cache.
BLOCK_BYTES = 1 << 20
#: A block has so many coordinates at least, or reading would be all that happens.
FEWEST_COORDINATES = 1 << 10
#: Values scaled and written at a time: 32 KiB. Larger writes took several times as long when the file was new, because
#: Linux then looks for larger pieces of memory to keep them in.
_CHUNK = 1 << 13


class Stack:
    """P contributions in a file; `len` tells P. Holds one block in memory, and no contribution.

    Use it as a context manager: the file is gone afterwards.
    """

    def __init__(self, layout: Layout, folder: Path | None) -> None:
        """`folder` should be on a disk; where it lies in memory (tmpfs), all contributions do. None is the system's
        folder for temporary files. Raises OSError where no file can be made in it."""
        self.layout = layout
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._gradient_bytes = 4 * layout.elements
        self._record_bytes = self._gradient_bytes + layout.buffers_bytes
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, gradient: F32, buffers: Buffers, scale: float = 1.0) -> None:
        """Write `scale` times `gradient` (n,), and the buffers as they are.

        Raises CorruptObject for a gradient of another size, WeightsMismatch for buffers of another layout, OSError
        where the disk is full.
        """
        if gradient.dtype != np.float32 or gradient.shape != (self.layout.elements,):
            raise CorruptObject(
                f"a gradient of {gradient.dtype} {gradient.shape} came for {self.layout.elements} values"
            )
        packed, factor = pack_buffers(self.layout, buffers), np.float32(scale)
        self._file.seek(self._count * self._record_bytes)
        for start in range(0, gradient.size, _CHUNK):
            part = gradient[start : start + _CHUNK]
            self._write((part if scale == 1.0 else part * factor).data.cast("B"))
        self._write(memoryview(packed))
        self._count += 1

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """All coordinates of the gradients, block by block: where they belong in (n,), and x (P, b) float32.

        x is memory of the caller's until the next block is asked for, and may be overwritten.
        """
        yield from self._blocks(0, self.layout.elements, np.dtype(np.float32))

    def buffer_blocks(self, entry: Entry) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The same for a buffer, flat: where the values belong, and x (P, b) in the buffer's dtype."""
        at = self._gradient_bytes
        for other in self.layout.buffers:
            if other.name == entry.name:
                yield from self._blocks(at, entry.elements, entry.stored_dtype)
                return
            at += other.bytes
        raise KeyError(f"the model has no buffer {entry.name}")

    def read(self, index: int, out: F32) -> None:
        """Put gradient `index`, counted from 0, into `out` (n,)."""
        for start in range(0, out.size, _CHUNK):
            self._read(index * self._record_bytes + 4 * start, out[start : start + _CHUNK])

    def _blocks(self, at: int, size: int, dtype: np.dtype[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """`size` values of each record, `at` bytes behind its beginning."""
        width = max(BLOCK_BYTES // (max(self._count, 1) * dtype.itemsize), FEWEST_COORDINATES)
        memory = np.empty(self._count * min(width, size), dtype)
        for start in range(0, size, width):
            stop = min(start + width, size)
            x = memory[: self._count * (stop - start)].reshape(self._count, stop - start)
            for index, row in enumerate(x):
                self._read(index * self._record_bytes + at + start * dtype.itemsize, row)
            yield slice(start, stop), x

    def _read(self, at: int, out: NDArray[Any]) -> None:
        self._file.seek(at)
        if self._file.readinto(out.data.cast("B")) != out.nbytes:
            raise CorruptObject(f"{out.nbytes} bytes of the contributions on disk cannot be read back")

    def _write(self, rest: memoryview) -> None:
        while rest.nbytes:  # a write may take less than it is given
            rest = rest[self._file.write(rest) :]


def sorted_rows(x: F32) -> list[F32]:
    """The rows of x (P, b), without NaN, such that each column ascends: P arrays (b,); x is overwritten.

    A network of minima and maxima of whole rows: five times as fast as sorting column by column.
    """
    rows, spare = list(x), np.empty_like(x[0])
    for i, j in _network(len(rows)):
        lower, upper = rows[i], rows[j]
        np.minimum(lower, upper, out=spare)
        np.maximum(lower, upper, out=upper)
        rows[i], spare = spare, lower
    return rows


@lru_cache(maxsize=8)
def _network(count: int) -> tuple[tuple[int, int], ...]:
    """Which pairs to compare and exchange, in order, to sort `count` values: Batcher's merge exchange (Knuth, The Art
    of Computer Programming, 5.2.2, algorithm M)."""
    p = top = 1 << (count - 1).bit_length() >> 1
    pairs: list[tuple[int, int]] = []
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)
