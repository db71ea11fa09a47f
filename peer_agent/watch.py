"""From heartbeats and the clock to the state machine's events: who lives, who fell silent, which round lasts too long.

A peer's own clock stands still while it cannot reach the broker: others may well be there (invariant 7).

Beyond 16 peers nobody hears everyone, so words about whom one hears nothing of go around (`silent`). They go to the one
who acts on them, the round's leader: told to everyone, each death would cost every peer as many messages as the dead
one has watchers, and the more peers, the more deaths. Everyone is told where whoever should lead is silent itself, and
where a round lasts longer than recent ones: the word may have been lost, or the leader does nothing with it. A word
holds for the round in which it was said, and is said again in the next one while it is true. In asynchronous mode,
where everyone acts on it, everyone is told once, and it holds until it is taken back.
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
    def succession(self) -> tuple[int, ...] | None:
        """Ranks whose turn it is to lead the round, up to the first that is there; empty while none of them is known.
        None where nobody leads, and each peer counts rounds of its own."""

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
        self._bodies: dict[int, bytes] = {}  # the same, as they came
        self._members: tuple[MemberRef, ...] | None = None  # of whom the next five were made
        self._seated: frozenset[int] = frozenset()
        self._known = 0
        self._further: frozenset[int] = frozenset()  # ranks beyond those that the run began with
        self._mine: frozenset[int] = frozenset()  # whom this peer listens to
        self._watched: frozenset[int] = frozenset()  # those of them who have been there
        self._own: frozenset[int] = frozenset()  # whom this peer should hear and does not
        self._told: tuple[int | None, tuple[int, ...], bool] | None = None  # to whom (None: everyone), and what
        self._to_everyone = False  # in this round
        self._words: dict[int, Heartbeat] = {}  # what others say likewise, by rank
        self._met: list[s.Heard] = []  # who has said something since the last look
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
        self._follow_members()
        self._liveness.watch(self._watched, now)
        yield from self._met
        self._met.clear()
        self._own = frozenset(self._liveness.silent(now))
        self._tell()
        silent = self._own | self._hearsay()
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
        """Somebody says where it stands, and of whom it hears nothing."""
        self._words[word.rank] = word
        self._met.append(s.Heard(word.rank, word.incarnation, word.round, word.leaving))

    def _follow_members(self) -> None:
        """Whom to listen to: of the whole run's ranks, as the subscription has it. A ring of the members alone would
        turn with every drop, and name some whom this peer does not hear."""
        members = self._machine.members
        known = len(self._heard) + len(self._later)
        if known == self._known and (members is self._members or members == self._members):
            return
        self._members, self._known = members, known
        self._seated = frozenset(member.rank for member in members)
        further = frozenset({*self._later, *self._seated, *self._heard}.difference(range(self._peers)))
        if further != self._further or not self._mine:
            self._further = further
            self._mine = frozenset(watched(self._me.rank, {*range(self._peers), *further}))
        self._watched = self._mine & (self._seated | self._heard.keys())

    def _tell(self) -> None:
        """Say whom this peer does not hear; that it is there, where it is no member; that it wants to go.

        The leader cannot know where not everyone hears everyone.
        """
        silent, leaving = tuple(sorted(self._own & self._seated)), self._machine.leaving
        before = () if self._told is None else self._told[1]
        worth = silent or before or leaving or self._me.rank not in self._seated
        leaders = self._machine.succession if worth else ()
        if self._peers + len(self._later) <= ALL_TO_ALL or leaders == ():
            return
        if silent and (self._told_late or not self._own.isdisjoint(leaders or ())):
            self._to_everyone = True
        to = None if leaders is None or self._to_everyone else leaders[-1]
        if (to, silent, leaving) != self._told:
            self._told = to, silent, leaving
            if to != self._me.rank:
                self._exchange.publish("silent", self._trust.key.sign(self._word(silent)).to_json(), to)

    def _hearsay(self) -> frozenset[int]:
        """Ranks that this peer does not listen to, and of which two who do hear nothing: one of them might be wrong."""
        said = Counter(rank for who, word in self._words.items() if who not in self._own for rank in word.silent)
        return frozenset(rank for rank, times in said.items() if times >= _WITNESSES and rank not in self._mine)

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
        if self._machine.succession is not None:
            self._told, self._to_everyone = None, False
            self._words = {rank: word for rank, word in self._words.items() if word.round >= round}
        self._beat()

    def _beat(self) -> None:
        self._exchange.beat(self._trust.key.sign(self._word()).to_json())

    def _heartbeats(self) -> Iterator[tuple[Heartbeat, float]]:
        for beat in self._exchange.beats():
            if beat.sender is not None and beat.body == self._bodies.get(beat.sender):
                yield self._heard[beat.sender], beat.at  # the same bytes come every second, and were believed before
                continue
            try:
                heartbeat = Heartbeat.from_json(beat.body)
            except CorruptObject:
                continue  # says nothing, least of all that its sender lives
            if heartbeat.run != self._run or heartbeat.rank != beat.sender or beat.sender == self._me.rank:
                continue
            if self._trust.doubt(heartbeat) is None:
                self._bodies[heartbeat.rank] = beat.body
                yield heartbeat, beat.at
