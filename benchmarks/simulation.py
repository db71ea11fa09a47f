"""Many peers' state machines on one simulated clock: no process, no socket, no S3, no tensor; faults by seed.

A process is the real `RoundMachine` with the real `Watch` over heartbeats. Whatever a command asks for happens at a
later moment of the simulated time: requests to a store with conditional writes, computations, messages, of which some
are lost, doubled and overtaken. Processes die at any moment and come back as later incarnations of their ranks. The
same seed gives the same run.

Counted are messages as a peer publishes them (one for all receivers), the copies that reach peers, and requests to S3:
of records and vain looks, which are control, and of contributions and averages, which are data. Weights are not
simulated.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.simulated_peer import Process, Span, StuckError, claim
from contract.config import MembershipConfig
from contract.records import Commit, MemberRef, Result, Stop
from contract.wire import FrameHeader
from peer_agent.exchange.topology import topology
from peer_agent.liveness import watched
from peer_agent.ports import Beat

T = TypeVar("T")
#: Copies of one message arrive at so many moments at most: many in one go cost the simulation less.
_LANES = 8
#: The one kind of message that announces, or carries, a contribution; all others are control.
DATA = "frame"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, as probabilities."""

    lost: float = 0.01
    """Of a copy of a message, heartbeats included."""
    doubled: float = 0.01
    """Of a copy that arrives."""
    crashes: float = 0.002
    """Of a peer in a round: it dies at a random moment of it."""
    restart: Span = (3.0, 20.0)
    """Seconds after which another process takes the rank over."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long things take, in seconds: anything between the two values."""

    message: Span = (0.002, 0.08)
    request: Span = (0.005, 0.05)
    compute: Span = (4.0, 6.0)
    apply: Span = (0.1, 0.2)
    tick: float = 0.5
    """From one look at the clock to the next."""
    poll_seconds: float = 2.0
    start_timeout_seconds: float = 180.0
    round_timeout_seconds: float = 600.0
    limit: float = 3_600.0
    """A run that has not ended by then never does."""


class Store:
    """S3 as far as records go: each is created once."""

    def __init__(self, peers: int) -> None:
        self.members = {rank: claim(rank, 1) for rank in range(peers)}
        self.commits: dict[int, Commit] = {}
        self.results: dict[int, Result] = {}
        self.stops: dict[str, Stop] = {}
        self.contributions: dict[int, dict[MemberRef, FrameHeader]] = defaultdict(dict)
        self.averages: dict[int, set[int]] = defaultdict(set)
        """Shards of each round."""

    @staticmethod
    def create(records: dict[Any, T], key: Any, record: T) -> tuple[T, bool]:
        """What lies there now, and whether it is `record`."""
        won = key not in records
        return records.setdefault(key, record), won


@dataclass
class Tally:
    """What a run came to, from its first commit to the last one with contributions, so that it is of whole rounds:
    what joining takes, and closing, is no round's."""

    peers: int
    rounds: int = 0
    seconds: float = 0.0
    """Simulated."""
    crashes: int = 0
    published: Counter[str] = field(default_factory=Counter)
    """Messages by kind."""
    arrived: Counter[str] = field(default_factory=Counter)
    """Copies by kind."""
    requests: Counter[str] = field(default_factory=Counter)
    """`control`: of records, and vain looks; `data`: of contributions and averages."""
    busiest: int = 0
    """Copies of control messages that reached one peer between two commits, at most."""
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    """Members that a commit left out of the next round."""
    wronged: int = 0
    """Those of them that were alive."""

    def each(self, count: float) -> float:
        """Per peer and round."""
        return count / self.peers / self.rounds


class World:
    """All processes of one run, and what lies between them."""

    def __init__(
        self,
        peers: int,
        rounds: int,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        timing: Timing | None = None,
        way: str = "all_gather",
    ) -> None:
        """`way` is the topology's name."""
        self.faults, self.timing = faults or Faults(), timing or Timing()
        self.membership, self.topology = MembershipConfig(), topology(way)
        self.random = random.Random(seed)  # noqa: S311 (a simulation's)
        self.store, self.tally = Store(peers), Tally(peers)
        self.peers, self.rounds = peers, rounds
        self.now = self._counted_since = 0.0
        self.processes: dict[int, Process] = {}
        """The living ones, by rank."""
        self.listeners: dict[int, list[int]] = defaultdict(list)
        """Whose heartbeats go to whom."""
        for rank in range(peers):
            for other in watched(rank, range(peers)):
                self.listeners[other].append(rank)
        self._counted: Tally | None = None
        self._received: Counter[int] = Counter()  # copies of control messages since the last commit, by rank
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._ended: set[int] = set()
        self._crashed_rounds: set[tuple[int, int]] = set()

    def run(self) -> Tally:
        """Play until every rank has ended in order. Raises StuckError."""
        for rank in range(self.peers):
            self.start(rank, 1, self.random.uniform(0.0, 1.0))
        while len(self._ended) < self.peers:
            if not self._heap or self.now > self.timing.limit:
                raise StuckError(f"no end after {self.now:.0f} s: {self._where()}")
            self.now, _, call = heapq.heappop(self._heap)
            call()
        assert self._counted is not None
        return self._counted

    def after(self, span: Span | float, call: Callable[[], None]) -> None:
        """Call this after so many seconds."""
        seconds = self.random.uniform(*span) if isinstance(span, tuple) else span
        heapq.heappush(self._heap, (self.now + seconds, next(self._number), call))

    def start(self, rank: int, incarnation: int, delay: float) -> None:
        """A process takes a rank after `delay` seconds; its claim lies in S3 by then."""

        def begin() -> None:
            self.store.members[rank] = claim(rank, incarnation)
            process = self.processes[rank] = Process(self, MemberRef(rank=rank, incarnation=incarnation))
            process.begin()

        self.after(delay, begin)

    def end(self, process: Process) -> None:
        """A process has ended in order."""
        self._ended.add(process.me.rank)
        self._gone(process)

    def crash(self, process: Process) -> None:
        """A process dies, whatever it is at; another one follows."""
        if process.alive:
            self.tally.crashes += 1
            self._gone(process)
            self.start(process.me.rank, process.me.incarnation + 1, self.random.uniform(*self.faults.restart))

    def committed(self, commit: Commit) -> None:
        """A commit record was created: begin to count, or count whom it leaves out, or have counted."""
        received, self._received = self._received, Counter()
        before = self.store.commits.get(commit.round - 1)
        if before is None:
            self.tally, self._counted_since = Tally(self.peers), self.now
            return
        self.tally.busiest = max(self.tally.busiest, *received.values(), 0)
        staying = {member.rank for member in commit.members}
        left_out = [member for member in before.members if member.rank not in staying]
        living = {process.me for process in self.processes.values()}
        self.tally.dropped += len(left_out)
        self.tally.wronged += sum(member in living for member in left_out)
        if commit.round == self.rounds - 1:
            self.tally.seconds, self.tally.rounds = self.now - self._counted_since, commit.round
            self._counted = deepcopy(self.tally)

    def round_began(self, process: Process) -> None:
        """Draw whether the process dies in this round, once per rank and round."""
        drawn = (process.me.rank, process.machine.round)
        if drawn not in self._crashed_rounds:
            self._crashed_rounds.add(drawn)
            if self.random.random() < self.faults.crashes:
                self.after((0.0, self.timing.compute[1] + 1.0), lambda: self.crash(process))

    def publish(self, sender: Process, kind: str, heard: Callable[[Process], None], to: int | None = None) -> None:
        """One message to all others that live, or to the one of rank `to`."""
        self.tally.published[kind] += 1
        draw, lanes = self.random.random, [list[Process]() for _ in range(_LANES)]
        for process in self.processes.values() if to is None else filter(None, [self.processes.get(to)]):
            if process is not sender and draw() >= self.faults.lost:
                lanes[int(draw() * _LANES)].append(process)
                if draw() < self.faults.doubled:
                    lanes[int(draw() * _LANES)].append(process)
        for receivers in lanes:
            if receivers:
                self.after(self.timing.message, lambda receivers=receivers: self._deliver(kind, receivers, heard))  # type: ignore[misc]

    def beat(self, sender: Process, body: bytes) -> None:
        """One heartbeat to those who listen."""
        self.tally.published["heartbeat"] += 1
        for rank in self.listeners[sender.me.rank]:
            process = self.processes.get(rank)
            if process is not None and self.random.random() >= self.faults.lost:
                self._count("heartbeat", process)
                process.air.heard.append(Beat(sender.me.rank, body, self.now))

    def _deliver(self, kind: str, receivers: list[Process], heard: Callable[[Process], None]) -> None:
        for process in receivers:
            if process.alive:
                self._count(kind, process)
                heard(process)

    def _count(self, kind: str, receiver: Process) -> None:
        self.tally.arrived[kind] += 1
        if kind != DATA:
            self._received[receiver.me.rank] += 1

    def _gone(self, process: Process) -> None:
        process.alive = False
        if self.processes.get(process.me.rank) is process:
            del self.processes[process.me.rank]

    def _where(self) -> str:
        where = Counter(f"{p.machine.phase.value} {p.machine.round}" for p in self.processes.values())
        return ", ".join(f"{count} at {place}" for place, count in where.most_common(6))
