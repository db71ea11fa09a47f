"""Many asynchronous state machines against one another in bad weather, without I/O: a long run of faults from a seed.

    python -m tests.fakes.async_storm --steps 1000000 --seed 1

plays storms of different peers, bounds and loss until so many events have been handled, and prints how many. What must
hold at every step is asserted where the commands are carried out (`Process.carry_out`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from contract.errors import Superseded
from contract.records import Member, MemberRef, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.asynchronous import AsyncMachine, AsyncRules
from tests.fakes.weather import Weather, played

INITIAL = "0" * 64


@dataclass
class World:
    """What S3 holds, and everybody."""

    peers: int
    rounds: int
    max_staleness: int
    average_every: int
    keep_every: int
    deliver: Callable[[], int]
    members: dict[int, Member] = field(default_factory=dict)
    frames: dict[tuple[Kind, int, int, int], FrameHeader] = field(
        default_factory=dict
    )  # kind, round, rank, incarnation
    stop: Stop | None = None
    processes: dict[int, Process] = field(default_factory=dict)
    ghosts: list[Process] = field(default_factory=list)
    steps: int = 0
    averages: int = 0
    weights_averaged: int = 0
    caught_up: Counter[bool] = field(default_factory=Counter)  # whether it was from weights of others
    rejections: Counter[str] = field(default_factory=Counter)

    @property
    def live(self) -> list[Process]:
        return [p for p in self.processes.values() if not (p.over or p.paused)]

    def start(self, rank: int) -> None:
        """A new process takes the rank over; what it replaces does not know of it."""
        before = self.processes.get(rank)
        if before is not None and before.paused:
            self.ghosts.append(before)
        incarnation = self.members[rank].incarnation + 1 if rank in self.members else 1
        claim = Member(run="run", rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce="n")
        self.members[rank] = claim
        process = self.processes[rank] = Process(self, MemberRef(rank=rank, incarnation=incarnation))
        self.publish(rank, s.MemberSeen(claim))
        process.handle(s.Started())

    def publish(self, sender: int, event: s.Event, to: Iterable[int] | None = None) -> None:
        for rank, process in self.processes.items():
            if rank != sender and (to is None or rank in to):
                process.inbox.extend([event] * self.deliver())


class Process:
    """One process: its machine, its inbox, and what its commands do to the world."""

    def __init__(self, world: World, ref: MemberRef) -> None:
        self.world, self.ref = world, ref
        self.machine = AsyncMachine(
            AsyncRules(
                me=ref,
                peers=world.peers,
                rounds=world.rounds,
                max_staleness=world.max_staleness,
                initial_weights=INITIAL,
                validates=lambda round: round % 5 == 0,
                frames=FrameRules(run="run", codec="none", elements=5, buffers_bytes=0),
                average_every=world.average_every,
                keep_every=world.keep_every,
            )
        )
        self.inbox: deque[s.Event] = deque()
        self.jobs: deque[s.Event] = deque()
        self.known: dict[int, int] = {}  # incarnation by rank, of which the machine was told
        self.silent: frozenset[int] = frozenset()
        self.paused = False
        self.finished = ""
        self.failed: Exception | None = None

    @property
    def over(self) -> bool:
        return bool(self.finished) or self.failed is not None

    def handle(self, event: s.Event) -> None:
        """As the runner does it: answers are handled after what is due already."""
        due = deque([event])
        while due and not self.over:
            event = due.popleft()
            self.world.steps += 1
            if isinstance(event, s.MemberSeen):
                rank, incarnation = event.member.rank, event.member.incarnation
                self.known[rank] = max(incarnation, self.known.get(rank, 0))
            if isinstance(event, s.Silent):
                self.silent = event.ranks
            for command in self.machine.handle(event):
                due.extend(self.carry_out(command))

    def carry_out(self, command: s.Command) -> list[s.Event]:
        world, me = self.world, self.ref
        assert not self.finished, f"{command} after the end"
        match command:
            case s.FindMembers(ranks):
                return [s.MemberSeen(world.members[rank]) for rank in ranks if rank in world.members]
            case s.Compute(round, base, _):
                assert round == self.machine.round < world.rounds
                self.jobs.append(s.ContributionHeld(self._make(Kind.UPDATE, round, base)))
            case s.Validate(round):
                self.jobs.append(s.Validated(round, 0.5, 0.5))
            case s.Hold(header, _, _):
                there = world.frames.get((header.kind, header.round, header.rank, header.incarnation))
                return [s.ContributionHeld(header) if there == header else s.HoldFailed(header)]
            case s.Reject(reason):
                world.rejections[reason] += 1
            case s.Average(round, headers, weights):
                self._check(round, headers, own=True)
                self._check(round, weights, own=False)
                assert not weights or (world.average_every and round % world.average_every == 0)
                world.averages += 1
                world.weights_averaged += bool(weights)
                return [s.Applied(round, f"{round + 1:032x}{me.rank:016x}{me.incarnation:016x}")]
            case s.PutWeights(round, to):
                assert round == self.machine.round > 0
                world.publish(me.rank, s.FrameArrived(self._make(Kind.WEIGHTS, round), b"", me.rank), to)
            case s.FindLatest(known):
                return self._later(Kind.UPDATE, known)
            case s.FindWeights(None):
                newest = [(MemberRef(rank=k[2], incarnation=k[3]), -1) for k in world.frames if k[0] is Kind.WEIGHTS]
                return [*self._later(Kind.WEIGHTS, newest), s.WeightsSought()]
            case s.FindWeights(known) if known is not None:
                return [*self._later(Kind.WEIGHTS, known), s.WeightsSought()]
            case s.TakeUp(header):
                if (header.kind, header.round, header.rank, header.incarnation) not in world.frames:
                    return [s.HoldFailed(header)]
                world.caught_up[header.rank != me.rank] += 1
                return [s.CaughtUp(header.round, header.base_weights, None)]
            case s.CreateStop(reason, round):
                if world.stop is None:
                    world.stop = Stop(
                        run="run", reason=reason, round=round, weights_sha256=self.machine.base, writer=me, nonce="n"
                    )
                    world.publish(me.rank, s.StopFound(world.stop))
                return [s.StopFound(world.stop)]
            case s.FindStop():
                return [] if world.stop is None else [s.StopFound(world.stop)]
            case s.Adopt(round, weights):
                return [s.Adopted(round, weights)]
            case s.Finish(reason):
                self.finished = reason
            case s.Fail(error):
                assert isinstance(error, Superseded), error
                assert world.members[me.rank].incarnation > me.incarnation
                self.failed = error
            case s.TellPresence():
                pass
            case _:
                raise AssertionError(f"{command} is no command of asynchronous mode")
        return []

    def _check(self, round: int, headers: tuple[FrameHeader, ...], own: bool) -> None:
        """What is averaged is fresh, of the latest process known of its rank, of nobody silent, and exists."""
        assert (self.ref.rank in [header.rank for header in headers]) == own
        assert [header.rank for header in headers] == sorted({header.rank for header in headers})
        for header in headers:
            assert round - header.base_round <= self.world.max_staleness
            assert header.rank not in self.silent
            if header.rank != self.ref.rank:
                assert header.incarnation == self.known[header.rank], "of a superseded process"
            there = self.world.frames.get((header.kind, header.round, header.rank, header.incarnation))
            assert there == header or (there is None and header.kind is Kind.WEIGHTS)  # the latter were cleared away

    def _make(self, kind: Kind, round: int, base: str = "") -> FrameHeader:
        """The own frame, which is in S3 now."""
        me, world = self.ref, self.world
        header = FrameHeader(
            kind=kind,
            run="run",
            round=round,
            base_round=round,
            base_weights=base or self.machine.base,
            rank=me.rank,
            incarnation=me.incarnation,
            samples=0 if kind is Kind.WEIGHTS else 1,
            codec="none",
            seed=0,
            elements=5,
            payload_bytes=20,
            digest=f"{kind:016x}{round:016x}{me.rank:016x}{me.incarnation:016x}",
        )
        if kind is Kind.WEIGHTS:  # the last two stay
            mine = sorted(k for k in world.frames if (k[0], *k[2:]) == (kind, me.rank, me.incarnation))
            for key in mine[:-1]:
                del world.frames[key]
        return world.frames.setdefault((kind, round, me.rank, me.incarnation), header)

    def _later(self, kind: Kind, known: Iterable[tuple[MemberRef, int]]) -> list[s.Event]:
        found: list[s.Event] = []
        for member, after in dict(known).items():
            keys = [k for k in self.world.frames if (k[0], *k[2:]) == (kind, member.rank, member.incarnation)]
            latest = max(keys, default=None)
            if latest is not None and latest[1] > after:
                found.append(s.FrameArrived(self.world.frames[latest], b"", member.rank))
        return found

    def job(self) -> None:
        """A computation comes to its end; one that the machine no longer waits for as well."""
        event = self.jobs.popleft()
        if isinstance(event, s.ContributionHeld):
            if self.world.members[self.ref.rank].incarnation > self.ref.incarnation and self.paused:
                return
            self.world.publish(self.ref.rank, s.FrameArrived(event.header, b"", self.ref.rank))
        self.handle(event)


class Storm:
    """One run in bad weather, and then in good."""

    def __init__(self, seed: int, *, rounds: int = 40, turns: int = 1_500) -> None:
        self.weather = Weather(seed)
        draw, peers = self.weather.random, self.weather.peers
        bounds = draw.choice([0, 1, 4]), draw.choice([0, 1, 3]), draw.choice([0, 5])
        self.world = World(peers, rounds, *bounds, self.weather.deliver)
        self.turns = turns
        self.weather.may_interrupt()
        for rank in range(peers):
            self.world.start(rank)

    def play(self) -> World:
        """Bad weather for some turns, then good weather until all have ended, with one set of weights."""
        world = self.world
        for _ in range(self.turns):
            if fault := self.weather.fault():
                self._strike(fault)
            elif world.live:
                self._work(self.weather.random.choice(world.live))
        self._heal()
        assert world.stop is not None
        for process in world.processes.values():
            assert process.finished in ("epoch_limit", "interrupted"), (process.ref, process.failed)
            assert process.machine.base == world.stop.weights_sha256
        return world

    def _heal(self) -> None:
        world = self.world
        for rank, process in list(world.processes.items()):
            process.paused = False
            if process.failed:
                world.start(rank)
        for turn in range(100_000):
            live = world.live
            if not live:
                return
            process = live[turn % len(live)]
            if turn % (7 * len(live)) < len(live):
                self._beat(process)
                process.handle(s.PollDue())
            self._work(process)
        raise AssertionError([(p.ref, p.machine.phase, p.machine.round) for p in world.live])

    def _beat(self, process: Process) -> None:
        """Heartbeats of everybody who lives; a suspicion ends with them."""
        for other in self.world.live:
            if other is not process:
                process.handle(s.Heard(other.ref.rank, other.ref.incarnation, other.machine.round))
        dead = {rank for rank, other in self.world.processes.items() if other.failed or other.paused}
        if process.silent != dead:
            process.handle(s.Silent(frozenset(dead - {process.ref.rank})))

    def _work(self, process: Process) -> None:
        draw = self.weather.random.random()
        if process.inbox and draw < 0.6:
            at = self.weather.random.randrange(min(len(process.inbox), 8))
            event = process.inbox[at]
            del process.inbox[at]
            process.handle(event)
        elif process.jobs and draw < 0.9:
            process.job()
        elif draw < 0.95:
            self._beat(process)
        else:
            process.handle(s.PollDue())

    def _strike(self, fault: str) -> None:
        world, draw = self.world, self.weather.random
        match fault:
            case "crash" if world.live:
                process = draw.choice(world.live)
                process.failed = RuntimeError("killed")
            case "restart":
                for rank, process in list(world.processes.items()):
                    if process.failed:
                        world.start(rank)
            case "pause" if world.live:
                draw.choice(world.live).paused = True
            case "wake":
                paused = [process for process in world.processes.values() if process.paused]
                self.weather.wake(paused, lambda process: world.start(process.ref.rank))
            case "ghost" if world.ghosts:
                # It reads its inbox before the fence stops it, and nothing that it writes goes out any more.
                ghost = draw.choice(world.ghosts)
                while ghost.inbox and not ghost.over:
                    ghost.handle(ghost.inbox.popleft())
            case "suspect" if world.live:
                process = draw.choice(world.live)
                process.handle(s.Silent(frozenset(self.weather.suspects(process.ref.rank))))
            case "interrupt" if world.live and world.averages > 20:
                draw.choice(world.live).handle(s.EndRequested("interrupted"))


def main() -> None:
    """Play storms until enough events were handled, and say what happened in them."""
    averages = of_weights = 0
    caught_up = Counter[bool]()
    for storm in played(Storm, "Faults at random against the asynchronous state machine."):
        averages += storm.world.averages
        of_weights += storm.world.weights_averaged
        caught_up += storm.world.caught_up
    print(f"{averages} averages, {of_weights} of weights too;")
    print(f"caught up from others' weights {caught_up[True]} times, from a predecessor's {caught_up[False]} times")


if __name__ == "__main__":
    main()
