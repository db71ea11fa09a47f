"""The objects in S3 of contributions that are cut into shards: putting the own one's, fetching shards of others'.

A contribution's pieces (contract/sharding.py) are created before the object that names and proves them, so whoever
finds that one finds all (invariant 3). Whoever averages a shard need not wait for that: between peers that are equally
fast, the k-th member before this one has put the piece with this one's shard by the time that this one has put its own
k-th. So each piece that is up is the moment to fetch one, and bytes go both ways at once. What is fetched so early is
proved by the commit and by the table, like all else, or not used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from contract import wire
from contract.errors import CorruptObject
from contract.extensions import ShardEntry
from contract.header import MAX_HEADER_BYTES
from contract.keys import Place, Places
from contract.packing import Packing
from contract.records import MemberRef
from contract.sharding import Sharding
from contract.store import ObjectStore
from contract.wire import FrameHeader
from peer_agent.early import AT_ONCE, FEW, EarlyReads


class Pieces:
    """One peer's dealings with pieces. Thread-safe, as far as the store is."""

    def __init__(self, store: ObjectStore, places: Places, packed: Packing) -> None:
        """`packed` is how pieces lie in S3; where that is not in ranges, each shard is a piece."""
        self._store, self._places, self._packing = store, places, packed
        self.early = EarlyReads()
        """Of this round's objects."""

    def put(self, frame: bytes, sharding: Sharding, me: MemberRef, members: Sequence[MemberRef] = ()) -> None:
        """Create all pieces of the own contribution, and fetch this peer's shard of others' as soon as it may be there.

        `members` are those of the round in rank order: shard i is the i-th one's. The own shard's piece comes last,
        because nobody waits for it.
        """
        decoded = wire.decode(frame, expected_elements=None, expected_buffers_bytes=None, checked=True)
        round, pieces = decoded.header.round, sharding.in_pieces(decoded)
        own = list(members).index(me) if me in members[: sharding.shards] else None
        last = 0 if own is None else sharding.extents[own][0]
        order = [(last + step) % len(pieces) for step in range(1, len(pieces) + 1)]
        places = [self._places.piece(round, *_claim(me), piece) for piece in order]
        with ThreadPoolExecutor(AT_ONCE, "pieces") as pool:
            puts = [pool.submit(self._create, place, pieces[at]) for place, at in zip(places, order, strict=True)]
            for step, put in enumerate(puts, 1):
                put.result()
                if own is None:
                    continue
                turn = (last - step) % len(pieces)  # of those who have just come to this peer's shard
                for member, extent in zip(members, sharding.extents, strict=False):
                    if extent[0] == turn and member != me:
                        self._look(round, member, own, sharding)
        self.early.look_again()

    def look_for_others(self, round: int, me: MemberRef, members: Sequence[MemberRef]) -> None:
        """The own contribution is there: look for the leading parts of the others', if these are few."""
        for member in members if len(members) <= FEW else ():
            if member != me:
                place = self._places.contribution(round, *_claim(member))
                self.early.look(round, place, functools.partial(self._store.get, place, MAX_HEADER_BYTES))

    def shard(self, header: FrameHeader, sharding: Sharding, shard: int) -> tuple[memoryview, memoryview]:
        """Payload and buffers of one shard of a contribution, checked. Raises ObjectMissing, CorruptObject."""
        if header.table is None:
            raise CorruptObject(f"the contribution of rank {header.rank} to round {header.round} is not cut")
        member, entry = MemberRef(rank=header.rank, incarnation=header.incarnation), header.table[shard]
        found = self.early.take(self._places.piece(header.round, *_claim(member), sharding.extents[shard][0]))
        if found is not None:
            with contextlib.suppress(CorruptObject):
                return _open(found, entry)
        return _open(self._read(header.round, member, shard, sharding), entry)

    def whole(self, leading: bytes, sharding: Sharding) -> bytes:
        """The whole frame of a contribution of which S3 holds `leading` under its name; the pieces are unchecked.

        Raises ObjectMissing; CorruptObject where `leading` is no leading part of a contribution cut like this.
        """
        header = wire.verify_header(leading)
        if not sharding.fits(header):
            raise CorruptObject(f"the contribution of rank {header.rank} to round {header.round} is cut otherwise")
        places = (
            self._places.piece(header.round, header.rank, header.incarnation, piece)
            for piece in range(len(sharding.pieces))
        )
        lengths = [sum(sharding.extents[shard][2] for shard in shards) for shards in sharding.pieces]
        pieces = [self._get(p, most) for p, most in zip(places, lengths, strict=True)]
        return sharding.whole(leading, pieces)

    def _look(self, round: int, member: MemberRef, shard: int, sharding: Sharding) -> None:
        place = self._places.piece(round, *_claim(member), sharding.extents[shard][0])
        self.early.look(round, place, lambda: self._read(round, member, shard, sharding))

    def _read(self, round: int, member: MemberRef, shard: int, sharding: Sharding) -> bytes:
        piece, at, length = sharding.extents[shard]
        place = self._places.piece(round, *_claim(member), piece)
        if self._packing.in_ranges:
            return self._store.get_range(place, at, length)
        return self._get(place, length)

    def _get(self, place: Place, most: int) -> bytes:
        return self._packing.unpack(self._store.get(place, self._packing.room(most)), most)

    def _create(self, place: Place, piece: bytes) -> None:
        self._store.create(place, self._packing.pack(piece))


def _claim(member: MemberRef) -> tuple[int, int]:
    return member.rank, member.incarnation


def _open(found: bytes, entry: ShardEntry) -> tuple[memoryview, memoryview]:
    view = memoryview(found)
    payload, buffers = view[: entry.payload_bytes], view[entry.payload_bytes :]
    entry.check(payload, buffers)
    return payload, buffers
