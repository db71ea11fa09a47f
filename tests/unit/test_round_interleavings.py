"""Many peers' state machines against one another: random order, lost, doubled and delayed messages, no I/O.

The world below keeps records as S3 does (created once), computes weights as a hash of what was applied, and hands
events out in an order that a seeded generator draws. What must hold: one outcome per round, every peer applies exactly
that, nothing computed from other weights is applied, and the run ends.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest

from contract.records import Commit, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.round import Phase, RoundMachine
from peer_agent.rules import RoundRules

W0 = "0" * 64


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class World:
    """Peers, the records they share, and the messages between them."""

    def __init__(self, seed: int, peers: int, rounds: int, *, loss: float, interrupt_at: int | None = None) -> None:
        self.random = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self.peers, self.loss, self.interrupt_at = peers, loss, interrupt_at
        self.commits: dict[int, Commit] = {}
        self.results: dict[int, Result] = {}
        self.contributions: dict[tuple[int, int], FrameHeader] = {}
        self.stop: Stop | None = None
        self.applied: list[list[tuple[int, str]]] = [[] for _ in range(peers)]
        self.finished: dict[int, tuple[str, str]] = {}
        self.steps = 0
        self.inboxes: list[list[s.Event]] = [[s.Started()] for _ in range(peers)]
        self.machines = [
            RoundMachine(
                RoundRules(
                    me=MemberRef(rank=rank, incarnation=1),
                    peers=peers,
                    rounds=rounds,
                    initial_weights=W0,
                    validation=lambda t: t // 2 if t % 2 == 1 or t == rounds else None,
                    key=lambda t, r, i: f"{t}/{r}-{i}",
                    frames=FrameRules(run="run", codec="none", elements=1, buffers_bytes=0),
                )
            )
            for rank in range(peers)
        ]

    def play(self) -> None:
        while len(self.finished) < self.peers:
            self.steps += 1
            assert self.steps < 60_000, [(m.phase, m.round, m.absent) for m in self.machines]
            if self.steps == self.interrupt_at:
                self.inboxes[self.random.randrange(self.peers)].append(s.EndRequested("interrupted"))
            rank = self.random.randrange(self.peers)
            inbox = self.inboxes[rank]
            if inbox and self.random.random() < 0.9:
                self.handle(rank, inbox.pop(self.random.randrange(len(inbox))))
            elif self.random.random() < 0.2:
                self.handle(rank, s.PollDue())

    def handle(self, rank: int, event: s.Event) -> None:
        for command in self.machines[rank].handle(event):
            self.execute(rank, command)

    def execute(self, rank: int, command: s.Command) -> None:
        machine, inbox = self.machines[rank], self.inboxes[rank]
        match command:
            case s.FindMembers(ranks):
                inbox.extend(s.MemberSeen(claim(r)) for r in ranks)
            case s.Compute(t, base, validate):
                assert base == machine.base
                header = FrameHeader(
                    kind=Kind.UPDATE, run="run", round=t, base_round=t, base_weights=base, rank=rank, incarnation=1,
                    samples=1, codec="none", seed=0, elements=1, digest=digest(t, rank, base),
                    validation_loss=0.5 if validate else None,
                )  # fmt: skip
                self.contributions[t, rank] = header
                inbox.append(s.ContributionHeld(header))
                self.tell(rank, s.FrameArrived(header, b"x", rank))
            case s.Validate(t):
                inbox.append(s.Validated(t, 0.5, 0.5))
            case s.Hold(header, _, _):
                inbox.append(s.ContributionHeld(header))
            case s.Reject(reason, _, _):
                assert reason in ("stale", "late", "ahead"), reason
            case s.FindContributions(t, members):
                found = [self.contributions.get((t, m.rank)) for m in members]
                inbox.extend(s.FrameArrived(h, b"x", h.rank) for h in found if h is not None)
            case s.Fetch(t, contributor):
                inbox.append(s.ContributionHeld(self.contributions[t, contributor.rank]))
            case s.CreateCommit(draft):
                if draft.round not in self.commits:
                    self.commits[draft.round] = replace(draft, nonce=f"{rank}")
                    self.tell(rank, s.CommitFound(self.commits[draft.round]))
                inbox.append(s.CommitFound(self.commits[draft.round]))
            case s.FindCommit(t):
                inbox.append(s.CommitFound(self.commits[t]) if t in self.commits else s.CommitMissing(t))
            case s.Apply(commit, headers):
                inbox.append(self.apply(rank, commit, headers))
            case s.WriteResult(t, weights):
                if t not in self.results:
                    self.results[t] = result(t, weights, rank)
                    self.tell(rank, s.ResultFound(self.results[t]))
                inbox.append(s.ResultFound(self.results[t]))
            case s.FindResult(t):
                inbox.append(s.ResultFound(self.results[t]) if t in self.results else s.ResultMissing(t))
            case s.Passed(t, record):
                assert record == self.results[t]
                assert machine.base == record.weights_sha256
            case s.CreateStop(reason, t):
                if self.stop is None:
                    writer = MemberRef(rank=rank, incarnation=1)
                    self.stop = Stop(run="run", reason=reason, round=t, weights_sha256="", writer=writer, nonce="n")
                    self.tell(rank, s.StopFound(self.stop))
                inbox.append(s.StopFound(self.stop))
            case s.FindStop():
                if self.stop is not None:
                    inbox.append(s.StopFound(self.stop))
            case s.Finish(reason):
                self.finished[rank] = (reason, machine.base)
            case _:
                raise AssertionError(f"unexpected: {command}")

    def apply(self, rank: int, commit: Commit, headers: tuple[FrameHeader, ...]) -> s.Applied:
        machine = self.machines[rank]
        assert commit == self.commits[commit.round]
        assert [(h.rank, h.digest) for h in headers] == [(c.rank, c.digest) for c in commit.contributors]
        assert all(h.base_weights == machine.base == commit.base_weights["0"] for h in headers)
        assert [t for t, _ in self.applied[rank]] == list(range(commit.round))
        weights = digest(machine.base, [h.digest for h in headers]) if headers else machine.base
        self.applied[rank].append((commit.round, weights))
        return s.Applied(commit.round, weights)

    def tell(self, sender: int, event: s.Event) -> None:
        for rank, inbox in enumerate(self.inboxes):
            if rank != sender and self.random.random() >= self.loss:
                inbox.extend([event] * self.random.choice((1, 1, 2)))


def claim(rank: int) -> Member:
    return Member(run="run", rank=rank, peer_id=f"peer-{rank}", incarnation=1, nonce="n")


def result(round: int, weights: str, rank: int) -> Result:
    writer = MemberRef(rank=rank, incarnation=1)
    return Result(run="run", round=round, weights_sha256=weights, bucket="b", key="k", writer=writer, nonce=f"{rank}")


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("peers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_every_interleaving_ends_at_the_epoch_limit_with_the_same_weights(seed: int, peers: int, loss: float) -> None:
    world = World(seed, peers, rounds=6, loss=loss)
    world.play()
    assert {reason for reason, _ in world.finished.values()} == {"epoch_limit"}
    assert len({weights for _, weights in world.finished.values()}) == 1
    assert all(history == world.applied[0] for history in world.applied)
    assert sorted(world.commits) == list(range(7))
    assert [bool(world.commits[t].contributors) for t in range(7)] == [True] * 6 + [False]
    assert [world.commits[t].validation_loss for t in range(7)] == [None, 0.5, None, 0.5, None, 0.5, 0.5]


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_an_interrupt_at_any_moment_ends_all_after_the_same_round(seed: int, loss: float) -> None:
    world = World(seed, 4, rounds=1_000, loss=loss, interrupt_at=1 + seed * 40)
    world.play()
    assert {reason for reason, _ in world.finished.values()} == {"interrupted"}
    assert len({weights for _, weights in world.finished.values()}) == 1
    started = [machine for machine in world.machines if machine.round >= 0]
    assert len({machine.round for machine in started}) <= 1 or world.machines[0].phase is Phase.ENDED
    assert len({tuple(history) for history in world.applied if history}) <= 1
