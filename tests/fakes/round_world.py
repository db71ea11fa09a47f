"""Many peers' state machines against one another, with any order, loss, crash and false suspicion, and no I/O.

The world keeps records as S3 does (created once) and computes weights as a hash of what was applied. Whoever drives it
chooses what happens next: which waiting event a process handles, who crashes or is taken over, who seems silent. What
must hold whatever happens is asserted in here: one outcome per round, everybody applies exactly that, nothing that was
computed from other weights is applied, and nothing of a process that was replaced is written. Some ranks may round
otherwise than the rest (`odd`): what they apply leads them to other weights, and only S3 can give them the recorded
ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from contract.records import Commit, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.attendance import Quorum
from peer_agent.exchange.topology import TOPOLOGIES
from peer_agent.outcome import Phase
from peer_agent.round import RoundMachine
from peer_agent.rules import RoundRules, excluded_ranks, reason_to_end, shards_of

W0 = "0" * 64
RUN = "run"


def digest(*parts: object) -> str:
    """A hash of anything."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class Process:
    """One incarnation of a peer."""

    ref: MemberRef
    machine: RoundMachine
    inbox: list[s.Event] = field(default_factory=lambda: [s.Started()])
    finished: str = ""
    """Why it ended in order."""
    failed: str = ""
    """Why it ended otherwise."""
    paused: bool = False
    """It stands still and notices nothing."""

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return bool(self.finished or self.failed)


class World:
    """Processes by rank, the records they share, and the messages between them. `deliver` decides how often a message
    to a process arrives: 0, 1 or 2 times."""

    def __init__(
        self,
        peers: int,
        rounds: int,
        *,
        quorum: Quorum = 1.0,
        deliver: Callable[[], int] = lambda: 1,
        validation: Callable[[int], int | None] = lambda t: t // 2 if t % 2 == 1 else None,
        topology: str = "all_gather",
        odd: Collection[int] = (),
    ) -> None:
        self.peers, self.rounds, self.quorum, self.deliver, self._validation = (
            peers,
            rounds,
            quorum,
            deliver,
            validation,
        )
        self.members: dict[int, Member] = {}
        self.commits: dict[int, Commit] = {}
        self.results: dict[int, Result] = {}
        self.contributions: dict[tuple[int, int, int], FrameHeader] = {}
        self.averages: set[tuple[int, int]] = set()
        """(round, shard) of the averages that lie in S3."""
        self.topology = TOPOLOGIES[topology]
        self.stop: Stop | None = None
        self.odd = frozenset(odd)
        self.computed: dict[tuple[int, bool], str] = {}
        """By round, and whether by an odd rank: weights as whoever applied it first computed them."""
        self.stored = {W0}
        """Weights that lie in S3."""
        self.wanted: set[str] = set()
        self.adopted = 0
        self.lost: list[Process] = []
        """Processes that found recorded weights in nobody's hands."""
        self.processes: dict[int, Process] = {}
        self.ghosts: list[Process] = []
        """Paused processes whose rank another one has taken over."""
        self.rejections: list[str] = []
        self.waiting: list[s.TellWaiting] = []
        self.steps = 0
        for rank in range(peers):
            self.start(rank)

    # ------------------------------------------------------------------------------------------- what may happen

    def start(self, rank: int) -> Process:
        """A process claims the rank, over whatever held it."""
        known = self.members.get(rank)
        incarnation = 1 if known is None else known.incarnation + 1
        self.members[rank] = claim(rank, incarnation)
        ref = MemberRef(rank=rank, incarnation=incarnation)
        rules = RoundRules(
            me=ref,
            peers=self.peers,
            rounds=self.rounds,
            validation=lambda t: t // 2 if t == self.rounds else self._validation(t),
            key=lambda t, r, i: f"{t}/{r}-{i}",
            frames=FrameRules(run=RUN, codec="none", elements=1, buffers_bytes=0),
            quorum=self.quorum,
            topology=self.topology,
        )
        before = self.processes.get(rank)
        if before is not None and before.paused:
            self.ghosts.append(before)
        process = self.processes[rank] = Process(ref, RoundMachine(rules))
        self.tell(process, s.MemberSeen(self.members[rank]))
        return process

    def crash(self, rank: int) -> None:
        """The process is gone, with all that it had not written."""
        del self.processes[rank]

    def step(self, process: Process, index: int) -> None:
        """It handles one of its waiting events."""
        self.handle(process, process.inbox.pop(index))

    def handle(self, process: Process, event: s.Event) -> None:
        """It handles this event, and everything is done that it calls for."""
        self.steps += 1
        for command in process.machine.handle(event):
            if process.over:
                return
            self.execute(process, command)

    def suspect(self, process: Process, ranks: Iterable[int]) -> None:
        """To this process these ranks, and no others, seem silent."""
        self.handle(process, s.Silent(frozenset(ranks)))

    def beat(self, process: Process) -> None:
        """Its heartbeat reaches the others."""
        at = max(process.machine.round, 0)
        self.tell(process, s.Heard(process.ref.rank, process.ref.incarnation, at))

    # ------------------------------------------------------------------------------------------ what is answered

    def execute(self, process: Process, command: s.Command) -> None:
        """Do what a machine asks for, as the runner does."""
        machine, inbox, ref = process.machine, process.inbox, process.ref
        if isinstance(command, s.Compute | s.CreateCommit | s.WriteResult | s.CreateStop) and self._replaced(process):
            process.failed = "superseded"  # the fence
            return
        match command:
            case s.CatchUp():
                self.handle(process, self._caught_up(process))
            case s.FindMembers(ranks):
                inbox.extend(s.MemberSeen(self.members[r]) for r in ranks if r in self.members)
            case s.Compute(t, base, validate):
                assert base == machine.base
                assert machine.seated
                header = self._header(ref, t, base, validate)
                header = self.contributions.setdefault((t, ref.rank, ref.incarnation), header)
                inbox.append(s.ContributionHeld(header))
                self.tell(process, s.FrameArrived(header, b"x", ref.rank))
            case s.Validate(t):
                inbox.append(s.Validated(t, 0.5, 0.5))
            case s.Hold(header, _, _):
                inbox.append(s.ContributionHeld(header))
            case s.Reject(reason, _, _):
                self.rejections.append(reason)
            case s.FindContributions(t, members):
                found = [self.contributions.get((t, m.rank, m.incarnation)) for m in members]
                inbox.extend(s.FrameArrived(h, b"x", h.rank) for h in found if h is not None)
                inbox.append(s.ContributionsSought(t, tuple(m.rank for m in members)))
            case s.Fetch(t, contributor):
                key = t, contributor.rank, contributor.incarnation
                inbox.append(s.ContributionHeld(self.contributions[key]))
            case s.CreateCommit(draft):
                if draft.round not in self.commits:
                    self._check_commit(process, draft)
                    self.commits[draft.round] = replace(draft, nonce=f"{ref}")
                    self.tell(process, s.CommitFound(self.commits[draft.round]))
                inbox.append(s.CommitFound(self.commits[draft.round]))
            case s.FindCommit(t):
                inbox.append(s.CommitFound(self.commits[t]) if t in self.commits else s.CommitMissing(t))
            case s.MakeShard(commit, shard):
                assert commit == self.commits[commit.round]
                self.averages.add((commit.round, shard))
                inbox.append(s.ShardsSeen(commit.round, frozenset({shard})))
                self.tell(process, s.ShardsSeen(commit.round, frozenset({shard})), to=commit.writer.rank)
            case s.FindShards(t, _):
                inbox.append(s.ShardsSeen(t, frozenset(shard for at, shard in self.averages if at == t)))
            case s.AnnounceReduced(t):
                self.tell(process, s.AllReduced(t))
            case s.Apply(commit, headers):
                inbox.append(self._apply(process, commit, headers))
            case s.WriteResult(t, weights, store):
                if store:
                    self.stored.add(weights)
                if t not in self.results:
                    self.results[t] = result(t, weights, ref)
                    self.tell(process, s.ResultFound(self.results[t]))
                inbox.append(s.ResultFound(self.results[t]))
            case s.FindResult(t):
                inbox.append(s.ResultFound(self.results[t]) if t in self.results else s.ResultMissing(t))
            case s.Adopt(t, weights) if weights in self.stored:
                self.adopted += 1
                inbox.append(s.Adopted(t, weights))
            case s.Adopt(t, weights):
                self.wanted.add(weights)
                self.tell(process, s.Wanted(weights))
            case s.FindWanted(weights):
                if weights in self.wanted:
                    inbox.append(s.Wanted(weights))
            case s.Share(t):
                assert (t, machine.phase) == (machine.round, Phase.COLLECTING)
                self.stored.add(machine.base)
            case s.Passed(t, record):
                assert record == self.results[t]
            case s.CreateStop(reason, t):
                if self.stop is None:
                    self.stop = Stop(run=RUN, reason=reason, round=t, weights_sha256="", writer=ref, nonce="n")
                    self.tell(process, s.StopFound(self.stop))
                inbox.append(s.StopFound(self.stop))
            case s.FindStop():
                if self.stop is not None:
                    inbox.append(s.StopFound(self.stop))
            case s.TellWaiting():
                self.waiting.append(command)
            case s.Finish(reason):
                process.finished = reason
                last = self.commits.get(len(self.commits) - 1)
                if last is not None and last.writer.rank == ref.rank:
                    self.stored.add(machine.base)  # with the state that another run could go on from
            case s.Fail(error):
                process.failed = f"{type(error).__name__}: {error}"
            case _:
                raise AssertionError(f"unexpected: {command}")

    def tell(self, sender: Process, event: s.Event, to: int | None = None) -> None:
        """A message to everybody else, or to one, as far as it arrives."""
        for process in self.processes.values():
            if process is not sender and process.ref.rank != sender.ref.rank and to in (None, process.ref.rank):
                process.inbox.extend([event] * self.deliver())

    def _replaced(self, process: Process) -> bool:
        return self.members[process.ref.rank].incarnation != process.ref.incarnation

    def _header(self, ref: MemberRef, round: int, base: str, validate: bool) -> FrameHeader:
        return FrameHeader(
            kind=Kind.UPDATE,
            run=RUN,
            round=round,
            base_round=round,
            base_weights=base,
            rank=ref.rank,
            incarnation=ref.incarnation,
            samples=1,
            codec="none",
            seed=0,
            elements=1,
            digest=digest(round, ref.rank, ref.incarnation, base),
            validation_loss=0.5 if validate else None,
        )

    def _caught_up(self, process: Process) -> s.CaughtUp:
        round, base, recorded = 0, W0, W0
        while round in self.commits and round in self.results:
            base = self._computed(process, base, [listed.digest for listed in self.commits[round].contributors])
            recorded = self.results[round].weights_sha256
            if recorded in self.stored:
                base = recorded
            round += 1
        if round == 0:
            return s.CaughtUp(0, base, None)
        last = self.commits[round - 1]
        past = frozenset(contributor.digest for contributor in last.contributors)
        ended = reason_to_end(last, "") if last.final else ""
        astray = "" if recorded == base else recorded
        return s.CaughtUp(round, base, last.members, past, excluded_ranks(last), ended, astray)

    def _computed(self, process: Process, base: str, digests: list[str]) -> str:
        """The weights to which this process's own arithmetic leads."""
        if not digests:
            return base
        plain = digest(base, digests)
        return digest("odd", plain) if process.ref.rank in self.odd else plain

    def _check_commit(self, process: Process, draft: Commit) -> None:
        """What any commit must be, whoever wrote it: on from the last one, and of contributions that lie in S3."""
        assert draft.round == len(self.commits), "commits come in order"
        before = self.results.get(draft.round - 1)
        assert draft.base_weights["0"] == (before.weights_sha256 if before else W0)
        assert process.machine.seated
        assert draft.members, "somebody must go on"
        for listed in draft.contributors:
            header = self.contributions[draft.round, listed.rank, listed.incarnation]
            assert (header.digest, header.base_weights) == (listed.digest, draft.base_weights["0"])
        if draft.contributors and isinstance(self.quorum, int):
            assert len(draft.contributors) >= self.quorum

    def _apply(self, process: Process, commit: Commit, headers: tuple[FrameHeader, ...]) -> s.Applied:
        machine = process.machine
        assert commit == self.commits[commit.round]
        if shards := shards_of(commit):
            assert {(commit.round, shard) for shard in range(shards)} <= self.averages, "all of them, by then"
            headers = tuple(self.contributions[commit.round, c.rank, c.incarnation] for c in commit.contributors)
        assert [(h.rank, h.digest) for h in headers] == [(c.rank, c.digest) for c in commit.contributors]
        assert all(h.base_weights == machine.base == commit.base_weights["0"] for h in headers)
        weights = self._computed(process, machine.base, [h.digest for h in headers])
        by = commit.round, process.ref.rank in self.odd
        assert self.computed.setdefault(by, weights) == weights, "one outcome per round"
        return s.Applied(commit.round, weights)

    # --------------------------------------------------------------------------------------------------- the end

    @property
    def live(self) -> list[Process]:
        """Processes that hold their rank and go on."""
        return [process for process in self.processes.values() if not (process.over or process.paused)]

    def heal(self, patience: int = 400) -> None:
        """No more faults: everybody hears everybody, and time passes until all have ended. Fails when they do not."""
        self.deliver = lambda: 1
        for rank in range(self.peers):
            if rank not in self.processes or self.processes[rank].paused:
                self.start(rank)
        for _ in range(patience):
            for process in self.live:
                self.suspect(process, ())
            for process in self.live:
                self.beat(process)
            for process in self.live:
                while process.inbox and not process.over:
                    self.step(process, 0)
            for process in self.live:
                if process.machine.phase is not Phase.ENDED:
                    self.handle(process, s.PollDue())
            if not self.live:
                return
        self._give_up_what_nobody_holds()
        if not self.live:
            return
        raise AssertionError([(p.ref, p.machine.phase, p.machine.round, p.machine.waiting) for p in self.live])

    def _give_up_what_nobody_holds(self) -> None:
        """Recorded weights are lost where all who rounded so ended or died before anybody asked for them."""
        for process in self.live:
            if (sought := process.machine.sought) and all(other.machine.base != sought for other in self.live):
                assert self.odd
                assert sought not in self.stored
                self.handle(process, s.DeadlineReached(600.0))
                self.lost.append(process)


def claim(rank: int, incarnation: int = 1) -> Member:
    """A member record."""
    return Member(run=RUN, rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce=f"{rank}-{incarnation}")


def result(round: int, weights: str, writer: MemberRef) -> Result:
    """A result record."""
    return Result(run=RUN, round=round, weights_sha256=weights, bucket="b", key="k", writer=writer, nonce=f"{writer}")
