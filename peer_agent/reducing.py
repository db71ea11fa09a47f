"""What a peer does in rounds whose contributions are cut into shards (exchange.topology = "reduce_scatter")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from contract import wire
from contract.errors import CorruptObject
from contract.events import EventLog
from contract.keys import Places
from contract.records import Commit, MemberRef, Reduced
from contract.runspec import RunSpec
from contract.sharding import Sharding
from contract.store import ObjectStore
from contract.tensors import Layout
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.pieces import Pieces
from peer_agent.ports import Exchange
from peer_agent.reduction import Shards
from peer_agent.rules import shards_of
from peer_agent.spool import Spool
from peer_agent.trust import Trust
from peer_agent.update import Update


class Reducing:
    """One peer's shards of the round at hand."""

    def __init__(
        self, spec: RunSpec, layout: Layout, me: MemberRef, *, store: ObjectStore, spool: Spool, trust: Trust,
        exchange: Exchange, events: EventLog, fence: Callable[[], None], pieces: Pieces,
    ) -> None:  # fmt: skip
        """`fence` raises Superseded where this process must write nothing any more; through `pieces` this peer's own
        contributions are put."""
        self._spec, self._layout, self._me, self._store, self._spool = spec, layout, me, store, spool
        self._trust, self._exchange, self._events, self._fence = trust, exchange, events, fence
        self._shards = self._of(spec, pieces)
        self._made: dict[int, bytes] = {}  # this peer's averages of the round at hand, by shard

    def sharding(self, shards: int) -> Sharding:
        """How contributions are cut into so many shards."""
        return self._shards.sharding(shards)

    def confirm(self, header: FrameHeader, shards: int) -> int:
        """See in S3 that an announced contribution is there, cut as it must be; returns the bytes fetched.

        Raises ObjectMissing and CorruptObject.
        """
        if not self.sharding(shards).fits(header):
            raise CorruptObject(f"a contribution of rank {header.rank} is not cut into {shards} shards")
        return self._shards.confirm(header)

    def find(self, round: int, member: MemberRef, shards: int) -> FrameHeader | None:
        """The header of a member's contribution as S3 holds it, or None. Raises CorruptObject."""
        header = self._shards.find(round, member, shards)
        if header is not None and (reason := self._trust.doubt(header)):
            raise CorruptObject(f"a contribution of rank {member.rank} was not made by it: {reason}")
        return header

    def make(self, commit: Commit, shard: int, update: Update) -> Iterable[s.Event]:
        """Average a shard for everyone, and tell whoever wrote the commit."""
        reduction = self._shards.reduction(commit, shards_of(commit))
        averaged = self._shards.average(reduction, shard, update.buffers)
        self._fence()
        made = self._shards.publish(reduction, shard, averaged)
        self._made[shard] = made.frame
        fields = {"shard": shard, "relative_error": averaged.relative_error, "left_out": list(averaged.left_out)}
        self._events.emit("shard_averaged", round=commit.round, fields={**fields, "note": averaged.note})
        if made.conflict is not None:
            self._events.emit("shard_conflict", round=commit.round, fields={"shard": shard})
        if commit.writer.rank != self._me.rank:
            self._exchange.publish("shard", wire.header_part(made.frame), commit.writer.rank)
        return [s.ShardsSeen(commit.round, frozenset({shard}))]

    def listed(self, round: int, shards: int) -> Iterable[s.Event]:
        """The averages that S3 holds."""
        return [s.ShardsSeen(round, self._shards.listed(round, shards))]

    def announce(self, round: int) -> None:
        """Tell everyone that all averages are there."""
        word = Reduced(run=self._spec.run, round=round, writer=self._me)
        self._exchange.publish("reduced", self._trust.key.sign(word).to_json())

    def apply(self, commit: Commit, update: Update, places: Places | None = None) -> int:
        """Take the step that a commit's averages lead to; returns the bytes fetched. `places`: of an earlier run."""
        shards = self._shards
        if places is not None:
            shards = self._of(replace(self._spec, run=places.run, places=places, origin=None))
        reduction = shards.reduction(commit, shards_of(commit))
        gathered = shards.gather(reduction, update.buffers, self._made)
        update.take(gathered.gradient, gathered.buffers)
        self._made.clear()
        shards.forget_through(commit.round)
        return gathered.bytes_in

    def _of(self, spec: RunSpec, pieces: Pieces | None = None) -> Shards:
        return Shards(
            spec,
            self._layout,
            self._store,
            kept=self._kept,
            sign=self._trust.key.sign_frame,
            genuine=self._trust.is_of_anyone,
            scratch=self._spool.folder,
            pieces=pieces,
        )

    def _kept(self, digest: str) -> bytes | None:
        return self._spool.find(digest)
