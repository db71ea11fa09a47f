"""The shards of a round in S3: ranges of contributions in, averages out (topologies with shards).

    contribution    its leading part, and pieces of which every shard can be fetched and checked on its own
    average         one object per shard, created once; whoever makes it makes the same bytes but for the signature

Averages are a cache of what anybody can compute from the commit: one that is missing, damaged or not by a member is
computed again by whoever needs it. docs/decisions/0024 tells what that guarantees, and what not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract import wire
from contract.codec import F32, Blob, codec
from contract.config import AggregationConfig
from contract.errors import CorruptObject, ObjectMissing
from contract.extensions import SHARD_TABLE, Extension
from contract.header import MAX_HEADER_BYTES, declared_length, header_length
from contract.keys import Place
from contract.packing import packing
from contract.records import Commit, Contributor, MemberRef
from contract.runspec import RunSpec
from contract.sharding import Sharding
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout
from contract.wire import Frame, FrameHeader
from peer_agent.early import FEW
from peer_agent.pieces import Pieces
from peer_agent.shards import Averaged, Reduction, ahead, average_shard, fill, open_average, read_average

_ROW_BYTES = 48


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of an average that this peer made."""

    frame: bytes
    """The one that counts: this peer's, or the one that was there first."""
    first: bool
    """Whether it was this peer's that was created."""
    conflict: FrameHeader | None = None
    """The header of a member's average that was there first and differs: signed by its maker, and wrong. It counts all
    the same, unless it is no payload at all."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The averages of a whole round."""

    gradient: F32
    """Shape (n,)."""
    buffers: Buffers
    bytes_in: int
    remade: tuple[int, ...]
    """Shards whose stored average was of no use, so that this peer computed them."""


class Shards:
    """One peer's dealings with shards. Thread-safe, as far as the store is."""

    def __init__(
        self,
        spec: RunSpec,
        layout: Layout,
        store: ObjectStore,
        *,
        kept: Callable[[str], Blob | None] = lambda digest: None,
        sign: Callable[[bytes], bytes] = lambda frame: frame,
        genuine: Callable[[FrameHeader], bool] = lambda header: True,
        scratch: Path | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        """`kept` gives the whole frame of a digest where this peer has it at hand (its own), so that it is not fetched.
        `sign` puts this process's signature into a frame; `genuine` tells whether an average bears a member's.
        `pieces` are those through which the own contribution is put, so that what they fetched early is used."""
        self._spec, self._layout, self._store = spec, layout, store
        self._kept, self._sign, self._genuine, self._scratch = kept, sign, genuine, scratch
        self._packing = packing(spec.config.exchange.packing)
        self._pieces = pieces or Pieces(store, spec.places, self._packing)
        self._codec = codec(spec.config.exchange.codec)
        self._headers: dict[str, FrameHeader] = {}  # by digest
        self._shardings: dict[int, Sharding] = {}

    def sharding(self, shards: int) -> Sharding:
        """How contributions to a round of so many shards are cut."""
        if shards not in self._shardings:
            self._shardings = {shards: Sharding(self._layout, self._codec, shards, not self._packing.in_ranges)}
        return self._shardings[shards]

    def forget_through(self, round: int) -> None:
        """Drop the headers of `round` and before, and what was fetched early of it."""
        self._pieces.early.forget_through(round)
        self._headers = {digest: header for digest, header in self._headers.items() if header.round > round}

    # ---------------------------------------------------------------------------------------------- contributions

    def confirm(self, header: FrameHeader) -> int:
        """See in S3 that an announced contribution is there as announced; returns the bytes fetched.

        Raises ObjectMissing, and CorruptObject when S3 holds another one or none that can be cut.
        """
        place = self._place(header.round, header.rank, header.incarnation)
        if header.table is None or self._leading(place, len(header.table)) != header:
            raise CorruptObject(f"{place} is not the frame that was announced")
        self._headers[header.digest] = header
        return header.header_bytes

    def find(self, round: int, member: MemberRef, shards: int) -> FrameHeader | None:
        """The header of a member's contribution to `round` as S3 holds it, or None. Raises CorruptObject."""
        try:
            header = self._leading(self._place(round, member.rank, member.incarnation), shards)
        except ObjectMissing:
            return None
        self._headers[header.digest] = header
        return header

    def fetch(self, round: int, contributor: Contributor, shards: int) -> FrameHeader:
        """The header of a contribution that a commit lists. Raises ObjectMissing, and CorruptObject when S3 holds
        something else than the commit says."""
        place = self._place(round, contributor.rank, contributor.incarnation)
        header = self._headers.get(contributor.digest)
        if header is None:
            header = self._leading(place, shards)
        found = header.round, header.rank, header.incarnation, header.samples, header.digest, place.key
        listed = contributor.rank, contributor.incarnation, contributor.samples, contributor.digest, contributor.key
        if found != (round, *listed) or not self.sharding(shards).fits(header):
            raise CorruptObject(f"{place} is not the contribution that commit {round} describes")
        self._headers[header.digest] = header
        return header

    # --------------------------------------------------------------------------------------------------- averages

    def reduction(self, commit: Commit, shards: int) -> Reduction:
        """What the averages of a commit's contributions are made from."""
        return Reduction(
            run=commit.run,
            round=commit.round,
            base_weights=commit.base_weights["0"],
            seed=self._spec.config.seed,
            sharding=self.sharding(shards),
            contributors=commit.contributors,
        )

    def average(self, reduction: Reduction, shard: int, base_buffers: Buffers) -> Averaged:
        """Average one shard from ranges of all contributions. Raises NonFiniteGradient, OSError."""
        return average_shard(
            reduction,
            shard,
            lambda contributor: self._part(reduction, contributor, shard),
            config=self._aggregation,
            base_buffers=base_buffers,
            scratch=self._scratch,
        )

    def publish(self, reduction: Reduction, shard: int, averaged: Averaged) -> Made:
        """Create a shard's average in S3, or find the one that was there first; then look for the others, if few."""
        frame, place = self._sign(averaged.frame), self.place(reduction.round, shard)
        if self._store.create(place, self._packing.pack(frame)) is not None:
            self._look_for_others(reduction, shard)
            return Made(frame=frame, first=True)
        own, conflict = wire.decode_header(frame), None
        try:
            earlier = self._read(reduction, shard)
            found = self._open(reduction, shard, earlier)
            conflict = found.header if found.header.digest != own.digest else None
            read_average(reduction.sharding, shard, found, np.empty(own.elements, np.float32))
        except (CorruptObject, ObjectMissing):
            earlier = frame  # what is there is of no use to anyone, so everyone computes what we have
        return Made(frame=earlier, first=False, conflict=conflict)

    def _look_for_others(self, reduction: Reduction, shard: int) -> None:
        count = reduction.sharding.shards
        for step in range(1, count if count <= FEW else 0):
            other = (shard - step) % count
            read = functools.partial(self._read, reduction, other)
            self._pieces.early.look(reduction.round, self.place(reduction.round, other), read)

    def _read(self, reduction: Reduction, shard: int) -> bytes:
        """The frame of a shard's average, unchecked. Raises ObjectMissing, CorruptObject."""
        layout = reduction.sharding.layouts[shard]
        most = MAX_HEADER_BYTES + self._codec.encoded_bytes(layout.elements) + layout.buffers_bytes
        stored = self._store.get(self.place(reduction.round, shard), self._packing.room(most))
        return self._packing.unpack(stored, most)

    def listed(self, round: int, shards: int) -> frozenset[int]:
        """The shards whose averages are in S3, with one request."""
        keys = {self.place(round, shard).key: shard for shard in range(shards)}
        first = self.place(round, 0)
        prefix = first.key.rpartition("/")[0] + "/"
        return frozenset(keys[key] for key in self._store.list(first.bucket, prefix, first.owner) if key in keys)

    def gather(self, reduction: Reduction, base_buffers: Buffers, made: dict[int, bytes]) -> Gathered:
        """Gradient and buffers from all averages; `made` are frames of this round that this peer has at hand.

        An average that is not there, or of no use, is computed here. Memory: the gradient, and what one average takes.
        """
        sharding, fetched = reduction.sharding, 0
        gradient, buffers, remade = np.empty(self._layout.elements, np.float32), Buffers(), []

        def read(shard: int) -> bytes:
            if shard in made:
                return made[shard]
            return self._pieces.early.take(self.place(reduction.round, shard)) or self._read(reduction, shard)

        for shard, average in enumerate(ahead(read, range(sharding.shards))):
            try:
                blob = average()
                fetched += 0 if shard in made else len(blob)
                buffers |= fill(sharding, shard, self._open(reduction, shard, blob), gradient)
            except (CorruptObject, ObjectMissing):
                again = self.average(reduction, shard, base_buffers)
                buffers |= fill(sharding, shard, open_average(reduction, shard, again.frame), gradient)
                remade.append(shard)
        return Gathered(gradient=gradient, buffers=buffers, bytes_in=fetched, remade=tuple(remade))

    def place(self, round: int, shard: int) -> Place:
        """Where the average of a shard lies."""
        return self._spec.places.shard(round, shard)

    # --------------------------------------------------------------------------------------------------- in parts

    @property
    def _aggregation(self) -> AggregationConfig:
        return self._spec.config.aggregation

    def _open(self, reduction: Reduction, shard: int, blob: Blob) -> Frame:
        frame = open_average(reduction, shard, blob)
        if not self._genuine(frame.header):
            raise CorruptObject(f"{self.place(reduction.round, shard)} is by no member")
        return frame

    def _place(self, round: int, rank: int, incarnation: int) -> Place:
        return self._spec.places.contribution(round, rank, incarnation)

    def _leading(self, place: Place, shards: int) -> FrameHeader:
        """The checked header of a contribution: one request, and a second one where it has extensions beside its table.

        Raises ObjectMissing, and CorruptObject for a frame that does not begin with a sound header.
        """
        table = Extension(SHARD_TABLE, True, bytes(_ROW_BYTES * shards))
        least = header_length(self._spec.run, self._codec.name, [table])
        early = self._pieces.early.take(place)
        if early is not None:
            with contextlib.suppress(CorruptObject):
                return wire.verify_header(early)
        leading = self._store.get_range(place, 0, least)
        more = declared_length(leading) - least
        if more < 0:
            raise CorruptObject(f"{place} holds a frame with fewer shards than {shards}")
        return wire.verify_header(leading + self._store.get_range(place, least, more))

    def _part(self, reduction: Reduction, contributor: Contributor, shard: int) -> tuple[Blob, Blob]:
        """One shard of a contribution, checked. Raises ObjectMissing, CorruptObject."""
        header = self.fetch(reduction.round, contributor, reduction.sharding.shards)
        if (header.run, header.base_weights) != (reduction.run, reduction.base_weights) or header.table is None:
            raise CorruptObject(f"{contributor.key} was computed from other weights than commit {reduction.round} says")
        whole = self._kept(contributor.digest)
        if whole is None:
            return self._pieces.shard(header, reduction.sharding, shard)
        entry, view = header.table[shard], memoryview(whole)
        payload_at = header.header_bytes + entry.payload_offset
        buffers_at = header.header_bytes + header.payload_bytes + entry.buffers_offset
        payload = view[payload_at : payload_at + entry.payload_bytes]
        buffers = view[buffers_at : buffers_at + entry.buffers_bytes]
        entry.check(payload, buffers)
        return payload, buffers
