"""One process of a simulated run: the real state machine and the real `Watch`, with nothing real around them.

What a command asks for happens at a later moment of the world's time (benchmarks/simulation.py).
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from contract.records import Commit, Heartbeat, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.contributions import LOOKS
from peer_agent.ports import Beat
from peer_agent.round import RoundMachine
from peer_agent.rules import RoundRules, shards_of
from peer_agent.watch import Watch

if TYPE_CHECKING:
    from benchmarks.simulation import World

T = TypeVar("T")
#: Seconds: anything between the two.
Span = tuple[float, float]

RUN = "simulated"
_PROGRESS = (s.ContributionHeld, s.Validated, s.CommitFound, s.Applied, s.ResultFound)


class StuckError(AssertionError):
    """A run came to no end, or to more than one."""


class Air:
    """The part of an Exchange that `Watch` asks for."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.up_since: float | None = process.world.now
        self.away_seconds = 0.0
        self.body = b""
        self.heard: list[Beat] = []

    def beat(self, body: bytes) -> None:
        self.body = body
        self._process.world.beat(self._process, body)

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        word = Heartbeat.from_json(body)
        self._process.world.publish(self._process, kind, lambda process: process.told(word), to)

    def beats(self) -> list[Beat]:
        heard, self.heard = self.heard, []
        return heard


class Faith:
    """A Trust that believes everybody, and its own key: signatures would take most of a simulation's time."""

    @property
    def key(self) -> Faith:
        return self

    def sign(self, record: T) -> T:
        return record

    def doubt(self, what: object) -> str | None:
        return None


class Process:
    """One process: a machine, its clock, and what it does when told to."""

    def __init__(self, world: World, me: MemberRef) -> None:
        self.world, self.me, self.alive = world, me, True
        self.machine = RoundMachine(
            RoundRules(
                me=me,
                peers=world.peers,
                rounds=world.rounds,
                validation=lambda round: 0 if round == world.rounds else None,
                key=lambda round, rank, incarnation: f"{round}/{rank}-{incarnation}",
                frames=FrameRules(run=RUN, codec="none", elements=1, buffers_bytes=0),
                topology=world.topology,
            )
        )
        self.air = Air(self)
        air: Any = self.air
        trust: Any = Faith()
        self._watch = Watch(RUN, me, self.machine, air, trust, world.membership, world.peers)
        self._waiting: object = None
        self._looked_at = self._heard_at = world.now
        self._beaten_at = world.now

    def begin(self) -> None:
        """Greet, start, and look at the clock from now on."""
        self._tell("hello", s.MemberSeen(self.world.store.members[self.me.rank]))
        self.feed(s.Started())
        self._later((0.0, self.world.timing.tick), self._tick)

    def feed(self, *events: s.Event) -> None:
        """Handle events, and those that come at once from what the machine says to them."""
        due, before = deque(events), self.machine.round
        while due and self.alive:
            event = due.popleft()
            if isinstance(event, _PROGRESS):
                self._heard_at = self.world.now
            for command in self.machine.handle(event):
                due.extend(self._execute(command))
        if self.alive and self.machine.round != before:
            self.world.round_began(self)

    def told(self, word: Heartbeat) -> None:
        """Another process says of whom it hears nothing."""
        self._watch.reported(word)

    def _tell(self, kind: str, event: s.Event, to: int | None = None) -> None:
        def heard(process: Process) -> None:
            if isinstance(event, s.MemberSeen):  # a greeting is a reason to look: what counts is the claim in S3
                process._count(control=1)
            process.feed(event)

        self.world.publish(self, kind, heard, to)

    def _tick(self) -> None:
        world, timing, machine = self.world, self.world.timing, self.machine
        if world.now - self._beaten_at >= world.membership.heartbeat_seconds and self.air.body:
            self._beaten_at = world.now
            world.beat(self, self.air.body)
        self.feed(*self._watch.events(world.now))
        if machine.waiting != self._waiting:
            self._waiting, self._looked_at = machine.waiting, world.now
        elif world.now - self._looked_at >= timing.poll_seconds:
            self._looked_at = world.now
            self.feed(s.PollDue())
        limit = timing.start_timeout_seconds if machine.round < 0 else timing.round_timeout_seconds
        if not machine.contributed:
            self._heard_at = world.now
        if world.now - self._heard_at >= limit:
            self._heard_at = world.now
            self.feed(s.DeadlineReached(limit))
        self._later(timing.tick, self._tick)

    def _later(self, span: Span | float, call: Callable[[], None]) -> None:
        """Call this after so many seconds if the process lives by then."""
        self.world.after(span, lambda: call() if self.alive else None)

    def _request(
        self, ask: Callable[[], T], answer: Callable[[T], Iterable[s.Event]], *, control: int = 0, data: int = 0
    ) -> None:
        """Requests to S3: carried out at one moment, even for a process that has died meanwhile, answered later."""
        self._count(control=control, data=data)

        def arrive() -> None:
            found = ask()
            self._later(self.world.timing.request, lambda: self.feed(*answer(found)))

        self.world.after(self.world.timing.request, arrive)

    def _count(self, *, control: int = 0, data: int = 0) -> None:
        requests = self.world.tally.requests
        requests["control"] += control
        requests["data"] += data

    def _execute(self, command: s.Command) -> Sequence[s.Event]:
        """Start what a command asks for; the events that answer it at once."""
        world, store, timing = self.world, self.world.store, self.world.timing
        match command:
            case s.CatchUp():
                self._request(self._where_the_run_stands, lambda event: [event], control=3)
            case s.FindMembers(ranks):
                wanted = [rank for rank in ranks if rank in store.members]
                self._request(lambda: [s.MemberSeen(store.members[rank]) for rank in wanted], list, control=len(ranks))
            case s.Compute(round, base, _):
                self._later(timing.compute, lambda: self._contribute(self._header(round, base)))
            case s.Validate(round):
                self._later(timing.compute, lambda: self.feed(s.Validated(round, 1.0, 0.5)))
            case s.Hold(header, _, _):
                self._count(data=1)
                return [s.ContributionHeld(header)]
            case s.Reject(reason):
                world.tally.rejected[reason] += 1
            case s.FindContributions(round, members):
                self._find_contributions(round, members)
            case s.Fetch(round, contributor):
                member = MemberRef(rank=contributor.rank, incarnation=contributor.incarnation)
                header = store.contributions[round][member]
                self._request(lambda: header, lambda header: [s.ContributionHeld(header)], data=1)
            case s.CreateCommit(draft):
                self._create("commit", store.commits, draft.round, draft, s.CommitFound)
            case s.FindCommit(round):
                missing: s.Event = s.CommitMissing(round)
                self._request(
                    lambda: store.commits.get(round),
                    lambda found: [s.CommitFound(found) if found else missing],
                    control=1,
                )
            case s.MakeShard(commit, shard):
                self._make_shard(commit, shard)
            case s.FindShards(round, _):
                self._request(
                    lambda: frozenset(store.averages[round]),
                    lambda found: [s.ShardsSeen(round, found)],
                    control=pages(len(store.averages[round])),
                )
            case s.AnnounceReduced(round):
                self._tell("reduced", s.AllReduced(round))
            case s.Apply(commit, _):
                self._count(data=shards_of(commit))
                self._later(timing.apply, lambda: self.feed(s.Applied(commit.round, weights_after(commit))))
            case s.WriteResult(round, weights, _):
                result = Result(
                    run=RUN, round=round, weights_sha256=weights, bucket="b", key="k", writer=self.me, nonce="n"
                )
                self._create("result", store.results, round, result, s.ResultFound)
            case s.FindResult(round):
                none: s.Event = s.ResultMissing(round)
                self._request(
                    lambda: store.results.get(round),
                    lambda found: [s.ResultFound(found) if found else none],
                    control=1,
                )
            case s.CreateStop(reason, round):
                stop = Stop(run=RUN, reason=reason, round=round, weights_sha256="", writer=self.me, nonce="n")
                self._create("stop", store.stops, "stop", stop, s.StopFound)
            case s.FindStop():
                self._request(
                    lambda: store.stops.get("stop"), lambda found: [s.StopFound(found)] if found else [], control=1
                )
            case s.FindWanted():
                self._count(control=1)  # all round alike here, so nobody wants any
            case s.Finish():
                world.end(self)
            case s.Fail(error):
                raise StuckError(f"rank {self.me.rank} failed after {world.now:.1f} s: {error}")
            case s.Adopt():
                raise StuckError(f"rank {self.me.rank} has other weights than those recorded")
            case s.Passed() | s.TellWaiting() | s.WriteCheckpoint():
                pass
            case _:
                raise TypeError(f"{type(command).__name__} is no command of this mode")
        return ()

    def _find_contributions(self, round: int, members: Sequence[MemberRef]) -> None:
        """One look each, or a listing first. What brings a contribution is no control; `Hold` counts it."""
        there = self.world.store.contributions[round]
        vain = sum(member not in there for member in members)
        looks = vain if len(members) <= LOOKS else pages(len(there))
        self._request(
            lambda: [there[member] for member in members if member in there],
            lambda found: [
                *(s.FrameArrived(header, b"", header.rank) for header in found),
                s.ContributionsSought(round, tuple(member.rank for member in members)),
            ],
            control=looks,
        )

    def _make_shard(self, commit: Commit, shard: int) -> None:
        """Read it of every contribution, and create the average."""
        made = s.ShardsSeen(commit.round, frozenset({shard}))

        def create() -> None:
            self.world.store.averages[commit.round].add(shard)

        def told(_: None) -> Iterable[s.Event]:
            if commit.writer.rank != self.me.rank:
                self._tell("shard", made, to=commit.writer.rank)
            return [made]

        self._request(create, told, data=len(commit.contributors) + 1)

    def _create(
        self, kind: str, records: dict[Any, Any], key: Any, record: Any, event: Callable[[Any], s.Event]
    ) -> None:
        """Create a record once, and announce it where it won."""
        world = self.world

        def done(found: tuple[Any, bool]) -> Iterable[s.Event]:
            winner, won = found
            if won:
                self._tell(kind, event(winner))
            return [event(winner)]

        def ask() -> tuple[Any, bool]:
            winner, won = world.store.create(records, key, record)
            if won and isinstance(record, Commit):
                world.committed(record)
            return winner, won

        self._request(ask, done, control=1)

    def _contribute(self, header: FrameHeader) -> None:
        """Into S3 first, announced afterwards."""

        def ask() -> FrameHeader:
            place = self.world.store.contributions[header.round]
            return self.world.store.create(place, self.me, header)[0]

        def announce(stored: FrameHeader) -> Iterable[s.Event]:
            leader = self.machine.leader.rank
            to = self.world.topology.recipient("frame", leader=leader, writer=leader)
            if to != self.me.rank:
                self._tell("frame", s.FrameArrived(stored, b"", self.me.rank), to)
            return [s.ContributionHeld(stored)]

        self._request(ask, announce, data=1)

    def _header(self, round: int, base: str) -> FrameHeader:
        return FrameHeader(
            kind=Kind.UPDATE,
            run=RUN,
            round=round,
            base_round=round,
            base_weights=base,
            rank=self.me.rank,
            incarnation=self.me.incarnation,
            samples=1,
            loss=1.0,
            codec="none",
            seed=0,
            elements=1,
            digest=_digest(f"{round} {self.me} {base}"),
        )

    def _where_the_run_stands(self) -> s.CaughtUp:
        """As if everything up to the latest result had been replayed."""
        results, commits = self.world.store.results, self.world.store.commits
        if not results:
            return s.CaughtUp(0, _digest("first"), None)
        latest = max(results)
        commit = commits[latest]
        past = frozenset(contributor.digest for contributor in commit.contributors)
        ended = s.EPOCH_LIMIT if any(found.final for found in commits.values()) else ""
        return s.CaughtUp(latest + 1, results[latest].weights_sha256, commit.members, past, ended=ended)


def weights_after(commit: Commit) -> str:
    """The hash of the weights that a commit leads to."""
    return _digest(f"{commit.base_weights['0']} {[contributor.digest for contributor in commit.contributors]}")


def pages(keys: int) -> int:
    """Requests that it takes to list so many objects."""
    return max(1, math.ceil(keys / 1_000))


def claim(rank: int, incarnation: int) -> Member:
    return Member(run=RUN, rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce="n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
