"""What one peer does with the outcome of a round, from the commit's arrival to the barrier.

A part of the round's machine (peer_agent/round.py), and like it without I/O:

    COLLECTING --commit--> APPLYING --applied--> BARRIER
    COLLECTING --commit, contributions in shards--> REDUCING --every shard averaged--> APPLYING

What is heard early of a round (its result, averages of its shards) is kept here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import islice

from contract.records import Commit, Result
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.attendance import Attendance
from peer_agent.gathering import Gathering
from peer_agent.rules import TAKEOVER_LOOKS, RoundRules, shards_of


class Phase(Enum):
    """Where a peer stands."""

    JOINING = "joining"
    COLLECTING = "collecting"
    REDUCING = "reducing"
    APPLYING = "applying"
    BARRIER = "barrier"
    ENDED = "ended"


class Outcome:
    """Of one round, at one peer."""

    def __init__(self, rules: RoundRules, attendance: Attendance, gathering: Gathering) -> None:
        self._rules, self._attendance, self._gathering = rules, attendance, gathering
        self.phase = Phase.COLLECTING
        self.looks = 0
        """Into S3, since this phase began."""
        self.commit: Commit | None = None
        self.own: s.Applied | None = None
        """The weights to which this peer's arithmetic has led."""
        self.result: Result | None = None
        """The recorded ones."""
        self._applying = False
        self._void: set[int] = set()  # ranks whose contributions the commit lists and nobody can apply
        self._shards: frozenset[int] = frozenset()  # whose averages lie in S3
        self._making: frozenset[int] = frozenset()  # that this peer has set out to average
        self._reduced = False  # somebody says that they all do

    def begin(self, commit: Commit) -> Iterator[s.Command]:
        """The commit is known: fetch what it lists and this peer lacks, or average what it is to average."""
        self.commit = commit
        if shards_of(commit):
            self.phase, self.looks = Phase.REDUCING, 0
            yield from self.reduce()
            return
        self.phase = Phase.APPLYING
        for contributor in commit.contributors:
            held = self._gathering.held.get(contributor.rank)
            if held is None or held.digest != contributor.digest:
                self._gathering.held.pop(contributor.rank, None)
                yield s.Fetch(commit.round, contributor)
        yield from self._apply_when_all_held()

    def held(self, header: FrameHeader) -> Iterator[s.Command]:
        """A contribution has come; one that the commit does not list was on its way before."""
        if self.commit is None or header.digest not in {listed.digest for listed in self.commit.contributors}:
            return
        if reason := self._gathering.unfit(header):
            self._void.add(header.rank)
            yield s.Reject(reason, None, header.round, header)
        self._gathering.held[header.rank] = header
        yield from self._apply_when_all_held()

    def _apply_when_all_held(self) -> Iterator[s.Command]:
        assert self.commit is not None
        listed = sorted(self.commit.contributors, key=lambda contributor: contributor.rank)
        held = self._gathering.held
        if all(c.rank in held for c in listed) and not self._applying:
            self._applying = True
            yield s.Apply(self.commit, tuple(held[c.rank] for c in listed if c.rank not in self._void))

    # -------------------------------------------------------------------------------------------------- reducing

    def reduce(self) -> Iterator[s.Command]:
        """Apply once all averages are there; until then make those whose turn is this peer's."""
        assert self.commit is not None
        missing = [shard for shard in range(shards_of(self.commit)) if shard not in self._shards]
        if not missing and self.commit.writer == self._rules.me and not self._reduced:
            yield s.AnnounceReduced(self.commit.round)
        if not missing or self._reduced or self.result is not None:
            self.phase, self._applying = Phase.APPLYING, True
            yield s.Apply(self.commit, ())
            return
        live = {member.rank for member in self.commit.members} - self._attendance.silent
        ranks, turns = [member.rank for member in self._attendance.members], 1 + self.looks // TAKEOVER_LOOKS
        for shard in (shard for shard in missing if shard not in self._making):
            makers = list(islice(self._rules.topology.makers(shard, ranks, live), turns))
            # Whoever is no maker, for the commit drops it, comes after all those who are.
            if self._rules.me.rank in makers or len(makers) < turns:
                self._making |= {shard}
                yield s.MakeShard(self.commit, shard)

    def averages_seen(self, shards: frozenset[int]) -> Iterator[s.Command]:
        """Averages of these shards lie in S3."""
        self._shards |= shards
        if self.phase is Phase.REDUCING:
            yield from self.reduce()

    def all_reduced(self) -> Iterator[s.Command]:
        """Somebody says that all averages lie there."""
        self._reduced = True
        if self.phase is Phase.REDUCING:
            yield from self.reduce()

    # --------------------------------------------------------------------------------------------------- barrier

    def applied(self, event: s.Applied) -> None:
        """The commit is applied: what remains is to agree on the weights."""
        self.phase, self.own, self.looks = Phase.BARRIER, event, 0

    @property
    def ends(self) -> bool:
        """Whether the run ends with this round."""
        return (self.commit is not None and self.commit.final) or (self.own is not None and bool(self.own.stop))

    @property
    def agrees(self) -> bool:
        """Whether this peer's weights are the recorded ones."""
        if self.result is None or self.own is None:
            return False
        return self.result.weights_sha256 == self.own.weights_sha256
