"""The part of a weights object that training changes: what a process that holds earlier weights of the run reads.

Of a model whose first layers are frozen, a round changes the last ones and the buffers. Where a weights object holds
what is easy to say: its header has the same length in a whole run, and nothing lies between it, the vector and the
buffers. Whether the parts are those of the weights asked for is proved by the hash over everything, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract import wire
from contract.errors import CorruptObject, WeightsMismatch
from contract.tensors import Buffers, Layout, unpack_buffers, weights_hash

#: Parts are read together where less than this lies between them: a request takes as long as that many bytes.
GAP_BYTES = 256 * 1024
#: More of the object than this is not worth several requests.
MOST = 0.5

Fetch = Callable[[int, int], bytes]
"""Bytes of the object by offset and length."""


@dataclass(frozen=True)
class TrainedPart:
    """Byte ranges of a weights object, behind its header, that hold all that may differ between two rounds."""

    layout: Layout
    header_bytes: int
    ranges: tuple[slice, ...]

    @classmethod
    def of(cls, layout: Layout, run: str) -> TrainedPart | None:
        """For the weights objects of `run`; None where it is no smaller than MOST of the whole, or has no vector."""
        whole = 4 * layout.elements + layout.buffers_bytes
        edges = [0, *(4 * edge for part in layout.frozen for edge in (part.start, part.stop)), whole]
        ranges: list[slice] = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            if start == stop:
                continue
            if ranges and start - ranges[-1].stop < GAP_BYTES:
                ranges[-1] = slice(ranges[-1].start, stop)
            else:
                ranges.append(slice(start, stop))
        part = cls(layout, wire.header_bytes(run, "none"), tuple(ranges))
        return part if part.nbytes <= MOST * whole else None

    @property
    def nbytes(self) -> int:
        """Bytes of all ranges."""
        return sum(span.stop - span.start for span in self.ranges)

    def read(self, fetch: Fetch) -> bytes:
        """The ranges one after the other. Raises what `fetch` raises."""
        return b"".join(fetch(self.header_bytes + span.start, span.stop - span.start) for span in self.ranges)

    def applied(
        self, flat: NDArray[np.float32], part: bytes, expected_hash: str
    ) -> tuple[NDArray[np.float32], Buffers]:
        """The weights named `expected_hash`, from earlier ones, flat (n,), and what `read` gave.

        Changes `flat` and gives it back, with all buffers. Raises WeightsMismatch where the outcome is something else,
        CorruptObject where `part` has another size or holds booleans that are none.
        """
        if len(part) != self.nbytes:
            raise CorruptObject(f"the trained part of the weights has {len(part)} bytes, expected {self.nbytes}")
        source, vector, at = np.frombuffer(part, np.uint8), flat.view(np.uint8), 0
        for span in self.ranges:
            target = vector[span.start : span.stop]  # ends with the vector; what is beyond are buffers
            target[:] = source[at : at + target.size]
            at += span.stop - span.start
        buffers = unpack_buffers(self.layout, part[len(part) - self.layout.buffers_bytes :])
        if (found := weights_hash(self.layout, flat, buffers)) != expected_hash:
            raise WeightsMismatch(f"the weights are {found[:12]}…, but {expected_hash[:12]}… were asked for")
        return flat, buffers
