"""From heartbeats and the clock to the state machine's events: who lives, who fell silent, which round lasts too long.

A peer's own clock stands still while it cannot reach the broker: others may well be there (invariant 7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Protocol

from contract.config import MembershipConfig
from contract.errors import CorruptObject
from contract.records import Heartbeat, MemberRef
from peer_agent import signals as s
from peer_agent.deadline import Deadline
from peer_agent.liveness import ALL_TO_ALL, Liveness, watched
from peer_agent.ports import Exchange
from peer_agent.trust import Trust

#: So many must say that they do not hear somebody before it is believed by those who do not listen to it.
_WITNESSES = 2


class Watched(Protocol):
    """What is watched over: one of the protocol's state machines."""

    round: int

    @property
    def members(self) -> tuple[MemberRef, ...]: ...

    @property
    def leaving(self) -> bool: ...


class Watch:
    """One peer's eye on the others, and on its own clock. Times are monotonic seconds."""

    def __init__(
        self,
        run: str,
        me: MemberRef,
        machine: Watched,
        exchange: Exchange,
        trust: Trust,
        config: MembershipConfig,
        peers: int,
        later: Collection[int] = (),
    ) -> None:
        """`peers` is the number that the run began with; `later` are the ranks that joined since, as they come."""
        self._peers, self._later = peers, later
        self._run, self._me, self._machine, self._exchange, self._trust = run, me, machine, exchange, trust
        self._timeout = config.heartbeat_timeout_seconds
        self._liveness = Liveness(config.heartbeat_timeout_seconds, config.heartbeat_seconds)
        self._deadline = Deadline(config)
        self._heard: dict[int, Heartbeat] = {}
        self._own: frozenset[int] = frozenset()  # whom this peer should hear and does not
        self._reports: dict[int, frozenset[int]] = {}  # what others say likewise
        self._silent: frozenset[int] = frozenset()
        self._round: int | None = None  # that is told to the others and whose deadline runs
        self._told_late = self._told_leaving = False
        self._looked_at: float | None = None

    def paused(self, now: float) -> bool:
        """Asked once a loop: whether this process has stood still for so long that others may take it for dead."""
        before, self._looked_at = self._looked_at, now
        if before is None:
            return False
        self._liveness.woke(now - before, now)
        return now - before > self._timeout

    def events(self, now: float) -> Iterator[s.Event]:
        """What has happened since the last call."""
        self._follow_round(now)
        for heartbeat, at in self._heartbeats():
            self._liveness.heard(heartbeat.rank, heartbeat.incarnation, heartbeat.round, at)
            if self._heard.get(heartbeat.rank) != heartbeat:
                self._heard[heartbeat.rank] = heartbeat
                yield s.Heard(heartbeat.rank, heartbeat.incarnation, heartbeat.round, heartbeat.leaving)
        up_since = self._exchange.up_since
        self._liveness.link(up_since is not None, now if up_since is None else up_since)
        # Of the whole run's ranks, as the subscription has it: a ring of the members alone would turn with every drop,
        # and name some whom this peer does not hear.
        members = {member.rank for member in self._machine.members}
        mine = set(watched(self._me.rank, {*range(self._peers), *self._later, *members, *self._heard}))
        self._liveness.watch(mine & (members | self._heard.keys()), now)
        own = frozenset(self._liveness.silent(now))
        if own != self._own:
            self._own = own
            self._report(own)
        silent = own | self._hearsay(mine)
        if silent != self._silent:
            self._silent = silent
            yield s.Silent(silent)
        if up_since is None:
            self._deadline.pause(now)
        else:
            self._deadline.resume(now)
            if self._deadline.due(now) and not self._told_late:
                self._told_late = True
                yield s.RoundDeadline(self._machine.round)

    def reported(self, word: Heartbeat) -> None:
        """Somebody says of whom it hears nothing."""
        self._reports[word.rank] = frozenset(word.silent)

    def _report(self, silent: frozenset[int]) -> None:
        """Where not everyone hears everyone, the others cannot know."""
        if self._peers + len(self._later) > ALL_TO_ALL:
            word = self._word(tuple(sorted(silent)))
            self._exchange.publish("silent", self._trust.key.sign(word).to_json())

    def _hearsay(self, mine: set[int]) -> frozenset[int]:
        """Ranks that this peer does not listen to, and of which two who do hear nothing: one of them might be wrong."""
        said = Counter(rank for who, ranks in self._reports.items() if who not in self._own for rank in ranks)
        return frozenset(rank for rank, times in said.items() if times >= _WITNESSES and rank not in mine)

    def _word(self, silent: tuple[int, ...] = ()) -> Heartbeat:
        round = max(self._machine.round, 0)
        me = self._me
        return Heartbeat(
            run=self._run,
            rank=me.rank,
            incarnation=me.incarnation,
            round=round,
            silent=silent,
            leaving=self._machine.leaving,
        )

    def _follow_round(self, now: float) -> None:
        """Tell the others where this peer stands, and begin the clock of a new round."""
        round = self._machine.round
        if self._machine.leaving and not self._told_leaving:
            self._told_leaving = True
            self._beat()
        if round == self._round:
            return
        if self._round is not None and self._round >= 0:
            self._deadline.add(self._deadline.elapsed(now))
        self._deadline.start(now)
        self._round, self._told_late = round, False
        self._beat()

    def _beat(self) -> None:
        self._exchange.beat(self._trust.key.sign(self._word()).to_json())

    def _heartbeats(self) -> Iterator[tuple[Heartbeat, float]]:
        for beat in self._exchange.beats():
            try:
                heartbeat = Heartbeat.from_json(beat.body)
            except CorruptObject:
                continue  # says nothing, least of all that its sender lives
            if heartbeat.run != self._run or heartbeat.rank != beat.sender or beat.sender == self._me.rank:
                continue
            # The same bytes come every second; what was believed once need not be checked again.
            if heartbeat == self._heard.get(heartbeat.rank) or self._trust.doubt(heartbeat) is None:
                yield heartbeat, beat.at
