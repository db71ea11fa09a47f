"""A model in shards: which values and buffers each holds, and contributions whose shards stand alone.

Shapes: n values (`Layout.elements`) in N shards. Shard i holds the values [start_i, stop_i) of the flat vector and
some buffers, all of them whole. Bounds are multiples of the codec's bucket (n aside), and two shards differ by one
bucket at most. Where there are more shards than buckets, some are empty, which every codec can encode.

Buffers are spread over the shards too, in the layout's order and as even in bytes as whole ones allow: with all of
them in one shard, its owner would read those of all peers (docs/decisions/0024).

In S3 a contribution that is cut is several objects (docs/decisions/0034): what comes before its payload, which names
and proves all the rest, and *pieces* of neighbouring shards. A piece holds of each of its shards payload and buffers
side by side, so that whoever averages a shard fetches it with one request.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from contract import wire
from contract.codec import BUCKET, F32, Blob, GradientCodec
from contract.errors import CorruptObject, NonFiniteGradient
from contract.extensions import MAX_SHARDS
from contract.seeds import public_seed
from contract.tensors import Entry, Layout
from contract.wire import FrameHeader

#: Smaller pieces would cost more requests than they save time; more of them than that as well.
PIECE_BYTES, MAX_PIECES = 1 << 19, 8


def bounds(elements: int, shards: int) -> tuple[slice, ...]:
    """Which of `elements` values each of `shards` shards holds. Raises ValueError for fewer than one shard."""
    if shards < 1 or elements < 0:
        raise ValueError(f"{elements} values cannot be cut into {shards} shards")
    buckets = -(-elements // BUCKET)
    cuts = [min(buckets * shard // shards * BUCKET, elements) for shard in range(shards + 1)]
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(cuts))


class ShardedCodec:
    """A codec whose payload is the concatenation of shards, each encoded on its own with a seed of its own."""

    def __init__(self, codec: GradientCodec, elements: int, shards: int) -> None:
        self._codec, self._elements = codec, elements
        self.slices = bounds(elements, shards)

    @property
    def name(self) -> str:
        """The codec of the shards."""
        return self._codec.name

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Bytes of each shard in a payload."""
        return tuple(self._codec.encoded_bytes(part.stop - part.start) for part in self.slices)

    def encoded_bytes(self, size: int) -> int:
        """Bytes of a payload; `size` is n."""
        self._check_size(size)
        return sum(self.lengths)

    def encode(self, x: F32, seed: int) -> bytes:
        """All shards of `x` (n,). Raises NonFiniteGradient, naming the first NaN or infinity."""
        if x.size != self._elements:
            raise ValueError(f"{x.size} values came, but {self._elements} are in these shards")
        try:
            return b"".join(
                self._codec.encode(x[part], public_seed(seed, "shard", shard)) for shard, part in enumerate(self.slices)
            )
        except NonFiniteGradient as error:
            at = int(np.argmin(np.isfinite(x)))
            raise NonFiniteGradient(f"the gradient is not finite: value {at} is {x[at]}") from error

    def decode(self, blob: Blob, expected_size: int, out: F32 | None = None) -> F32:
        """The (n,) values, in `out` where it is given. Raises CorruptObject; `out` is then as it was."""
        self._check_size(expected_size)
        values = np.empty(self._elements, np.float32)
        for part, payload in self.split(blob):
            self._codec.decode(payload, part.stop - part.start, values[part])
        if out is None:
            return values
        out[:] = values
        return out

    def check(self, blob: Blob, expected_size: int) -> None:
        """Return where `decode` would give values. Raises CorruptObject."""
        self._check_size(expected_size)
        for part, payload in self.split(blob):
            self._codec.check(payload, part.stop - part.start)

    def accumulate(self, blob: Blob, acc: F32, weight: float) -> None:
        """acc (n,) += weight * decode(blob, n). Raises CorruptObject; `acc` is then as it was."""
        self.accumulate_many([blob], acc, [weight])

    def accumulate_many(self, blobs: Sequence[Blob], acc: F32, weights: Sequence[float]) -> None:
        """What `accumulate` of each in turn gives, bit for bit. Raises CorruptObject; `acc` is then as it was."""
        for blob in blobs:  # all of it, before anything is added
            self.check(blob, acc.size)
        for shards in zip(*(self.split(blob) for blob in blobs), strict=True):
            part = shards[0][0]
            self._codec.accumulate_many([payload for _, payload in shards], acc[part], weights)

    def split(self, blob: Blob) -> Iterator[tuple[slice, memoryview]]:
        """Each shard's values and its part of a payload. Raises CorruptObject for a payload of another length."""
        view = memoryview(blob).cast("B")
        if view.nbytes != sum(self.lengths):
            raise CorruptObject(
                f"a {self.name} payload in {len(self.slices)} shards has {view.nbytes} bytes; "
                f"{self._elements} values take {sum(self.lengths)}"
            )
        return zip(self.slices, cut(view, self.lengths), strict=True)

    def _check_size(self, size: int) -> None:
        if size != self._elements:
            raise CorruptObject(f"{self._elements} values are in these shards, not {size}")


@dataclass(frozen=True)
class Sharding:
    """How contributions to one round are cut. Raises ValueError for more shards than a frame's table has room for."""

    layout: Layout
    inner: GradientCodec
    """What encodes each shard, of contributions and of averages alike."""
    shards: int
    alone: bool = False
    """Whether each shard is a piece of its own: pieces that are packed cannot be read in ranges."""

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAX_SHARDS:
            raise ValueError(f"contributions can be cut into 1 to {MAX_SHARDS} shards, not {self.shards}")

    @cached_property
    def codec(self) -> ShardedCodec:
        """What a whole contribution is encoded with, and what error feedback decodes it with."""
        return ShardedCodec(self.inner, self.layout.elements, self.shards)

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Each shard as a layout of its own: one parameter, and its buffers under their names."""
        held: list[list[Entry]] = [[] for _ in range(self.shards)]
        total, at = self.layout.buffers_bytes, 0
        for entry in self.layout.buffers:
            middle = 2 * at + entry.bytes  # twice, to stay with integers
            held[min(middle * self.shards // (2 * total), self.shards - 1) if total else 0].append(entry)
            at += entry.bytes
        return tuple(
            Layout((Entry("shard", (part.stop - part.start,)),), tuple(buffers))
            for part, buffers in zip(self.codec.slices, held, strict=True)
        )

    def frame(self, header: FrameHeader, payload: Blob, buffers: Blob) -> bytes:
        """A contribution's frame: `payload` is by `codec`, `buffers` are all of the layout's, packed.

        Raises as `wire.encode` does, and CorruptObject for lengths that are not the shards'.
        """
        packed = memoryview(buffers).cast("B")
        if packed.nbytes != self.layout.buffers_bytes:
            raise CorruptObject(f"the buffers take {packed.nbytes} bytes, the model's {self.layout.buffers_bytes}")
        return wire.encode_shards(
            header, list(zip(self._payloads(memoryview(payload).cast("B")), self._buffers(packed), strict=True))
        )

    @cached_property
    def pieces(self) -> tuple[range, ...]:
        """Which shards each piece holds."""
        total = sum(self.codec.lengths) + self.layout.buffers_bytes
        count = self.shards if self.alone else max(1, min(self.shards, MAX_PIECES, total // PIECE_BYTES))
        cuts = [self.shards * piece // count for piece in range(count + 1)]
        return tuple(range(start, stop) for start, stop in itertools.pairwise(cuts))

    @cached_property
    def extents(self) -> tuple[tuple[int, int, int], ...]:
        """Where each shard lies: its piece, and offset and length in bytes in there."""
        found = []
        for piece, shards in enumerate(self.pieces):
            at = 0
            for shard in shards:
                length = self.codec.lengths[shard] + self.layouts[shard].buffers_bytes
                found.append((piece, at, length))
                at += length
        return tuple(found)

    def in_pieces(self, frame: wire.Frame) -> list[bytes]:
        """The pieces of a contribution that `fits`."""
        parts = list(zip(self._payloads(frame.payload), self._buffers(frame.buffers), strict=True))
        return [b"".join(itertools.chain(*(parts[shard] for shard in shards))) for shards in self.pieces]

    def whole(self, leading: bytes, pieces: Sequence[bytes]) -> bytes:
        """The frame of what comes before its payload, and all pieces; unchecked."""
        view = [memoryview(piece) for piece in pieces]
        shards = [view[piece][at : at + length] for piece, at, length in self.extents]
        payloads = [part[:length] for part, length in zip(shards, self.codec.lengths, strict=True)]
        buffers = [part[length:] for part, length in zip(shards, self.codec.lengths, strict=True)]
        return b"".join((leading, *payloads, *buffers))

    def fits(self, header: FrameHeader) -> bool:
        """Whether a contribution is cut in just this way; its table says so before any of it is fetched."""
        if header.table is None or header.elements != self.layout.elements or header.codec != self.inner.name:
            return False
        found = [(entry.payload_bytes, entry.buffers_bytes) for entry in header.table]
        buffers = (layout.buffers_bytes for layout in self.layouts)
        return len(found) == self.shards and found == list(zip(self.codec.lengths, buffers, strict=True))

    def _payloads(self, payload: memoryview) -> list[memoryview]:
        return [part for _, part in self.codec.split(payload)]

    def _buffers(self, packed: memoryview) -> list[memoryview]:
        return cut(packed, [layout.buffers_bytes for layout in self.layouts])


def cut(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Consecutive parts of these lengths."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return [view[start:stop] for start, stop in itertools.pairwise(ends)]
