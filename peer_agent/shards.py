"""Averages of shards: from the same shard of all contributions to one frame, and from all averages to one gradient.

n values are in N shards (contract/sharding.py); shard i has n_i of them. The average of shard i is a function of the
commit and of the contributions that it lists, and of nothing else: whoever makes it makes the same bytes. So its frame
names nobody (rank and incarnation are 0), its rounding is seeded by (run's seed, round, shard), and only its signature,
which the digest does not cover, tells who made it.

A commit is made from headers. A contribution whose shard turns out to be missing, damaged or no payload of the codec
is left out of that shard: all makers see the same bytes, hence agree on that too. `samples` of the average's frame are
those that are in it. Where nothing is left, the average is zero, and the shard's buffers stay as they were.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from contract import wire
from contract.codec import F32, Blob
from contract.config import AggregationConfig
from contract.errors import CorruptObject, ObjectMissing, WeightsMismatch
from contract.records import Contributor
from contract.robust import aggregation
from contract.seeds import public_seed
from contract.sharding import Sharding
from contract.tensors import Buffers, pack_buffers, unpack_buffers
from contract.wire import Frame, FrameHeader, Kind

#: Reads under way at a time: enough to hide what a request to S3 takes, and few enough to hold in memory.
READS_AHEAD = 4
#: Values whose squares are summed at a time.
_CHUNK = 1 << 18

#: Reads one shard of a contribution that the commit lists: its payload and its buffers, checked against the table.
#: Raises CorruptObject and ObjectMissing.
Read = Callable[[Contributor], tuple[Blob, Blob]]
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What all averages of one round have in common."""

    run: str
    round: int
    base_weights: str
    seed: int
    """The run's seed."""
    sharding: Sharding
    contributors: tuple[Contributor, ...]
    """In rank order, as the commit lists them."""

    def header(self, shard: int, samples: int) -> FrameHeader:
        """The header of a shard's average; lengths and digest are for `wire.encode` to fill in."""
        part = self.sharding.codec.slices[shard]
        return FrameHeader(
            kind=Kind.SHARD,
            run=self.run,
            round=self.round,
            base_round=self.round,
            base_weights=self.base_weights,
            rank=0,
            incarnation=0,
            shard=shard,
            shards=self.sharding.shards,
            samples=samples,
            codec=self.sharding.inner.name,
            seed=public_seed(self.seed, "average", self.round, shard),
            elements=part.stop - part.start,
        )


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The average of one shard."""

    frame: bytes
    """Of kind SHARD, not signed."""
    relative_error: float
    """What the second quantisation lost: |decoded - average| / |average| (L2); 0 where the average is zero."""
    left_out: tuple[int, ...] = ()
    """Ranks whose contribution could not be read."""
    note: str = ""
    """Why the aggregator is weaker here than the configuration asks for."""


class _Unusable(Exception):
    """One contribution cannot be part of this average."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank


def average_shard(
    reduction: Reduction,
    shard: int,
    read: Read,
    *,
    config: AggregationConfig,
    base_buffers: Buffers,
    scratch: Path | None = None,
) -> Averaged:
    """Average one shard of all contributions in rank order, and encode it again.

    `base_buffers` are all buffers that the round started from; `scratch` is as for `contract.robust.aggregation`.
    Memory: two vectors (n_i,), and `READS_AHEAD` encoded shards, whatever the number of contributions.

    Raises NonFiniteGradient where finite contributions have an infinite average; every maker then does.
    """
    layout, codec = reduction.sharding.layouts[shard], reduction.sharding.inner
    base = {entry.name: base_buffers[entry.name] for entry in layout.buffers}
    counted, left_out = list(reduction.contributors), []
    gradient, buffers, note = np.zeros(layout.elements, np.float32), base, ""
    while counted:
        try:
            with aggregation(config, layout, sum(c.samples for c in counted), scratch) as aggregator:
                for contributor, part in zip(counted, ahead(read, counted), strict=True):
                    try:
                        payload, packed = part()
                        values = unpack_buffers(layout, memoryview(packed))
                        aggregator.add(memoryview(payload), codec, values, contributor.samples)
                    except (CorruptObject, ObjectMissing, WeightsMismatch) as error:
                        raise _Unusable(contributor.rank) from error
                    del part, payload, packed, values  # before the next one is waited for
                gradient, buffers = aggregator.result(base)
                note = aggregator.remarks.note
            break
        except _Unusable as error:
            left_out.append(error.rank)
            counted = [contributor for contributor in counted if contributor.rank != error.rank]
    header = reduction.header(shard, sum(c.samples for c in counted))
    payload = codec.encode(gradient, header.seed)
    decoded = codec.decode(payload, gradient.size)
    decoded -= gradient
    lost, norm = _norm(decoded), _norm(gradient)
    frame = wire.encode(header, payload, pack_buffers(layout, buffers))
    return Averaged(
        frame=frame, relative_error=lost / norm if norm else 0.0, left_out=tuple(sorted(left_out)), note=note
    )


def open_average(reduction: Reduction, shard: int, blob: Blob) -> Frame:
    """The checked frame of a shard's average. Raises CorruptObject for anything that is not the one asked for.

    That the average is right only its maker, and whoever makes it again, can know.
    """
    layout = reduction.sharding.layouts[shard]
    frame = wire.decode(blob, expected_elements=layout.elements, expected_buffers_bytes=layout.buffers_bytes)
    found, most = frame.header, sum(contributor.samples for contributor in reduction.contributors)
    expected = replace(
        reduction.header(shard, found.samples),
        payload_bytes=reduction.sharding.inner.encoded_bytes(layout.elements),
        buffers_bytes=layout.buffers_bytes,
        digest=found.digest,
        signature=found.signature,
    )
    if found != expected or found.samples > most:
        raise CorruptObject(f"a frame is not the average of shard {shard} of round {reduction.round}")
    return frame


def assemble(sharding: Sharding, frames: Iterable[Frame]) -> tuple[F32, Buffers]:
    """Gradient (n,) and buffers from the averages of all shards, which come one by one in order.

    Raises CorruptObject for an average that doesn't decode, ValueError for too few or too many.
    """
    gradient, buffers = np.empty(sharding.layout.elements, np.float32), Buffers()
    for shard, frame in zip(range(sharding.shards), frames, strict=True):
        buffers |= fill(sharding, shard, frame, gradient)
        del frame  # before the next one is read
    return gradient, buffers


def fill(sharding: Sharding, shard: int, frame: Frame, gradient: F32) -> Buffers:
    """Put a shard's average into its place in `gradient` (n,), and return its buffers. Raises CorruptObject."""
    return read_average(sharding, shard, frame, gradient[sharding.codec.slices[shard]])


def read_average(sharding: Sharding, shard: int, frame: Frame, out: F32) -> Buffers:
    """Put a shard's average into `out` (n_i,), and return its buffers. Raises CorruptObject."""
    layout = sharding.layouts[shard]
    buffers = unpack_buffers(layout, frame.buffers)
    sharding.inner.decode(frame.payload, layout.elements, out)
    return buffers


def ahead(call: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Callable[[], Found]]:
    """For each item, in order, what gives or raises what `call` did with it; `READS_AHEAD` calls run beside."""
    pending: deque[Future[Found]] = deque()
    pool = ThreadPoolExecutor(READS_AHEAD, "read-ahead")
    try:
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) == READS_AHEAD:
                yield pending.popleft().result
        while pending:
            yield pending.popleft().result
    finally:
        pool.shutdown(cancel_futures=True)


def _norm(x: F32) -> float:
    parts = (x[start : start + _CHUNK] for start in range(0, x.size, _CHUNK))
    return math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts))
