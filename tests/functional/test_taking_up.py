"""Runs that end in order or die, and runs that go on from them: the same weights as if nothing had ever happened.

Everything but the protocol is real: contributions, updates, convergence, error feedback, checkpoints, retention. The
peers take their rounds in step, and a test chooses where they stop, and how.
"""

from __future__ import annotations

import dataclasses
import functools
from enum import Enum

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.config import RunConfig
from contract.history import History, residual_survives
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.records import Commit, Contributor, MemberRef, Result
from contract.runspec import RunSpec, ValidationSet
from contract.tensors import Entry, Layout, weights_hash
from peer_agent.barrier import Retention, WeightsShelf
from peer_agent.checkpoint import Checkpoints, capture_common, capture_own, restore_common, restore_own
from peer_agent.contributions import Contributions
from peer_agent.convergence import Convergence
from peer_agent.ports import RoundGradient
from peer_agent.records import Records
from peer_agent.spool import Spool
from peer_agent.update import Update
from tests.fakes.store import MemoryStore

PEERS, ROUNDS = 3, 12
N = 6
LAYOUT = Layout((Entry("w", (N,)),))
MEMBERS = tuple(MemberRef(rank=rank, incarnation=1) for rank in range(PEERS))
FIRST = np.linspace(-1, 1, N, dtype=np.float32)


def specification(config: RunConfig) -> RunSpec:
    places = Places(run="run-0", run_bucket="bucket", peer_buckets=tuple("abc"), region="local")
    return RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=ModelSpec(name="cnn", classes=10, channels=1, image_size=28, options={}),
        samples=(3, 2, 1),
        batches=(1,) * PEERS,
        rounds_per_epoch=1,
        initial_weights=weights_hash(LAYOUT, FIRST, {}),
        validation=ValidationSet(sha256="0" * 64, samples=1),
        state_machines=("",) * PEERS,
    )


def gradient(rank: int, round: int, flat: np.ndarray) -> RoundGradient:
    noise = np.random.default_rng([rank, round]).standard_normal(N)
    found = (flat - rank + noise).astype(np.float32)
    return RoundGradient(
        gradient=found, buffers={}, samples=PEERS - rank, loss=1.0, invocations=0, executions=0, bytes_in=0, bytes_out=0
    )


def loss(flat: np.ndarray) -> float:
    return float(np.square(flat.astype(np.float64) - 1).sum())


class Peer:
    """One process, brought to where its run's round begins."""

    def __init__(self, spec: RunSpec, store: MemoryStore, me: MemberRef) -> None:
        self.spec, self.store, self.me = spec, store, me
        self.records = Records(store, spec.places, me)
        self.shelf = WeightsShelf(store, spec.places, LAYOUT, me)
        self.spool = Spool()
        self.contributions = Contributions(spec, LAYOUT, me, store, self.spool)
        self.checkpoints = Checkpoints(
            store, spec.places, me, elements=N, own_states=spec.config.exchange.error_feedback
        )
        self.retention = Retention(
            me, self.shelf, spec.initial_weights, every_rounds=spec.config.checkpoint.every_rounds
        )
        self.residual_lost = False
        self.rounds_applied = 0
        self._restore()

    def _restore(self) -> None:
        history = History(self.store, self.spec)
        start = history.start()
        self.update = Update(LAYOUT, *self.shelf.get(start.weights_sha256, start.places), self.spec.config.optimizer)
        self.convergence = Convergence(
            self.update.optimizer, self.spec.config.scheduler, self.spec.config.early_stopping
        )
        commits = []
        if start.checkpoint is not None:
            blob = self.checkpoints.read_common(start.checkpoint)
            self.rounds_applied = restore_common(blob, start.checkpoint, self.update, self.convergence)
        for step in start.inherited:
            spec = dataclasses.replace(self.spec, run=step.places.run, places=step.places, origin=None)
            commits.append(Commit.from_json(self.store.get(step.places.commit(step.round))))
            self.apply(commits[-1], Contributions(spec, LAYOUT, self.me, self.store, self.spool))
        assert self.update.weights_sha256 == self.spec.initial_weights
        if self.contributions.feedback is not None:
            self.residual_lost = not residual_survives(self.me.rank, commits)
            if start.checkpoint is not None and not self.residual_lost:
                own = self.checkpoints.read_own(start.checkpoint, self.me.rank)
                self.residual_lost = own is None
                if own is not None:
                    restore_own(own, start.checkpoint, self.me.rank, self.contributions.feedback)
        if self.convergence.best_weights:
            self.shelf.bring(self.convergence.best_weights, [leg.places for leg in history.legs])

    def checkpoint(self, round: int, leader: bool, contributed: bool = False) -> None:
        run, convergence = self.spec.run, self.convergence.state()
        if contributed and round % 2 == 0:  # the commit that closes the run tells the loss, and ends the run with it
            self.convergence.observe(self.update.weights_sha256, loss(self.update.flat))
        if (feedback := self.contributions.feedback) is not None:
            own = capture_own(feedback, self.me, run=run, round=round, includes_next=contributed)
            self.checkpoints.write_own(round, own)
        if leader:
            blob = capture_common(self.update, convergence, run=run, round=round, rounds_applied=self.rounds_applied)
            self.retention.checkpointed(self.checkpoints.write_common(round, self.update.weights_sha256, MEMBERS, blob))

    def contribute(self, round: int) -> Contributor:
        base = self.update.weights_sha256
        made = self.contributions.make(round, base, gradient(self.me.rank, round, self.update.flat), None)
        header, _ = self.contributions.store_own(made)
        key = self.contributions.place(round, self.me).key
        return Contributor(rank=self.me.rank, incarnation=1, key=key, digest=header.digest, samples=header.samples)

    def apply(self, commit: Commit, contributions: Contributions) -> None:
        if commit.validation_loss is not None:
            self.convergence.observe(self.update.weights_sha256, commit.validation_loss)
        headers = [contributions.fetch(contributor, commit.round) for contributor in commit.contributors]
        self.update.step(headers, contributions.frames(headers))
        contributions.settle(headers)
        self.spool.forget_through(commit.round)
        self.rounds_applied += 1

    def finish(self, commit: Commit, leader: bool) -> None:
        self.apply(commit, self.contributions)
        self.retention.applied(commit)
        if leader:
            self.shelf.put(commit.round + 1, self.update)
            self.records.create_result(commit.round, self.update.weights_sha256)

    def passed(self, round: int) -> None:
        result = self.records.result(round)
        assert isinstance(result, Result)
        self.retention.passed(result, self.convergence.best_weights)

    def close(self) -> None:
        self.spool.close()


class How(Enum):
    """How a run comes to its end, in a round."""

    BETWEEN = "in order, as the round begins"
    MIDDLE = "in order, with all contributions to the round made in vain"
    KILLED = "killed, with all contributions to the round made"
    TORN = "killed between the commit and its result"


class Chain:
    """A run, and the runs that go on from it."""

    def __init__(self, config: RunConfig) -> None:
        self.store = MemoryStore()
        self.spec = specification(config)
        self.repeated = self.replayed = 0
        self.lost: list[bool] = []

    def play(self, stops: list[tuple[int, How]]) -> Peer:
        """Play all rounds with these interruptions; the first peer as it stands then."""
        first = Peer.__new__(Peer)
        first.update = Update(LAYOUT, FIRST, {}, self.spec.config.optimizer)
        shelf = WeightsShelf(self.store, self.spec.places, LAYOUT, MEMBERS[0])
        shelf.put(0, first.update)
        self.store.put(self.spec.places.spec(), self.spec.to_json())
        for round, how in stops:
            self._run(round, how)
            self._take_up()
        peers = self._run(ROUNDS, How.BETWEEN)
        return peers[0]

    def _run(self, end: int, how: How) -> list[Peer]:
        peers = [Peer(self.spec, self.store, me) for me in MEMBERS]
        self.lost.append(any(peer.residual_lost for peer in peers))
        every, first = self.spec.config.checkpoint.every_rounds, self.spec.first_round
        for round in range(first, max(end, first)):
            if every and round > first and round % every == 0:
                self._checkpoint(peers, round)
            commit = self._commit(peers, round)
            for peer in peers:
                peer.finish(commit, self._leads(peer, round))
            for peer in peers:
                peer.passed(round)
        end = max(end, first)
        if how is How.BETWEEN or (every and end > first and end % every == 0):
            self._checkpoint(peers, end)
        if how is not How.BETWEEN:
            if how is How.TORN:
                self._commit(peers, end)
            else:
                for peer in peers:
                    peer.contribute(end)
            if how is How.MIDDLE:
                self._checkpoint(peers, end, contributed=True)
        for peer in peers:
            peer.close()
        return peers

    def _leads(self, peer: Peer, round: int) -> bool:
        return peer.me.rank == (round + 1) % PEERS

    def _checkpoint(self, peers: list[Peer], round: int, contributed: bool = False) -> None:
        for peer in peers:
            peer.checkpoint(round, self._leads(peer, round - 1), contributed)

    def _commit(self, peers: list[Peer], round: int) -> Commit:
        flat = peers[0].update.flat
        draft = Commit(
            run=self.spec.run,
            round=round,
            base_weights={"0": peers[0].update.weights_sha256},
            contributors=tuple(peer.contribute(round) for peer in peers),
            members=MEMBERS,
            validation_loss=loss(flat) if round % 2 == 0 else None,
            writer=MEMBERS[0],
            nonce="",
        )
        return peers[round % PEERS].records.create_commit(draft)[0]

    def _take_up(self) -> None:
        """What the user's side does."""
        point = History(self.store, self.spec).resume_point()
        run = f"run-{int(self.spec.run.removeprefix('run-')) + 1}"
        self.spec = dataclasses.replace(
            self.spec,
            run=run,
            places=self.spec.places.of_run(run),
            origin=point.origin,
            initial_weights=point.weights_sha256,
        )
        weights = self.store.get(point.places.weights(point.weights_sha256))
        self.store.put(self.spec.places.weights(point.weights_sha256), weights)
        self.store.put(self.spec.places.spec(), self.spec.to_json())
        self.replayed += point.replayed_rounds
        self.repeated += point.repeated_rounds


def configuration(every: int, feedback: bool, optimizer: str = "nadam") -> RunConfig:
    return RunConfig.model_validate(
        {
            "peers": PEERS,
            "optimizer": {"name": optimizer, "lr": 0.05},
            "scheduler": {"patience": 0},
            "exchange": {"codec": "qsgd4", "error_feedback": feedback},
            "checkpoint": {"every_rounds": every},
        }
    )


def outcome(peer: Peer) -> tuple[object, ...]:
    """Everything that a run hands over, and everything that would show in later rounds."""
    feedback = peer.contributions.feedback
    return (
        peer.update.weights_sha256,
        peer.convergence.state(),
        peer.rounds_applied,
        None if feedback is None else feedback.state.tobytes(),
    )


@functools.cache
def undisturbed(every: int, feedback: bool, optimizer: str = "nadam") -> tuple[object, ...]:
    return outcome(Chain(configuration(every, feedback, optimizer)).play([]))


STOPS = st.lists(st.tuples(st.integers(0, ROUNDS), st.sampled_from(How)), max_size=4).map(
    lambda stops: sorted(stops, key=lambda stop: stop[0])
)


@pytest.mark.parametrize("every", [0, 1, 3, 5])
@given(stops=STOPS)
@example(stops=[(0, How.KILLED)])
@example(stops=[(7, How.KILLED), (7, How.TORN), (8, How.MIDDLE)])
@example(stops=[(4, How.BETWEEN), (9, How.KILLED), (11, How.TORN)])
@settings(max_examples=8, deadline=None)
def test_whatever_happens_on_the_way_the_end_is_the_same(every: int, stops: list[tuple[int, How]]) -> None:
    chain = Chain(configuration(every, feedback=False))
    found = chain.play(stops)
    assert outcome(found) == undisturbed(every, feedback=False)
    assert chain.store.head(found.spec.places.weights(found.convergence.best_weights)) is not None
    if every:
        assert chain.repeated == 0, "nothing is computed twice"


@pytest.mark.parametrize("every", [0, 3])
@given(stops=st.lists(st.tuples(st.integers(0, ROUNDS - 1), st.sampled_from([How.BETWEEN, How.MIDDLE])), max_size=4))
@example(stops=[(5, How.MIDDLE), (5, How.BETWEEN), (5, How.MIDDLE)])
@settings(max_examples=8, deadline=None)
def test_orderly_ends_keep_error_feedback_whole(every: int, stops: list[tuple[int, How]]) -> None:
    chain = Chain(configuration(every, feedback=True, optimizer="sgd"))
    found = chain.play(sorted(stops, key=lambda stop: stop[0]))
    assert outcome(found) == undisturbed(every, feedback=True, optimizer="sgd")
    assert not any(chain.lost)
    assert (chain.replayed, chain.repeated) == (0, 0)


def test_killed_runs_lose_error_feedback_since_the_last_checkpoint_and_say_so() -> None:
    config = configuration(5, feedback=True)
    chain = Chain(config)
    found = chain.play([(7, How.KILLED)])
    assert chain.lost == [False, True]
    assert (chain.replayed, chain.repeated) == (2, 0)
    whole = Chain(config).play([])
    assert found.update.weights_sha256 != whole.update.weights_sha256
    np.testing.assert_allclose(found.update.flat, whole.update.flat, rtol=0, atol=0.5)

    chain = Chain(config)
    chain.play([(3, How.TORN)])
    assert chain.lost == [False, True], "before the first checkpoint there is one to lose, too"


def test_one_killed_in_the_very_round_of_a_checkpoint_loses_nothing() -> None:
    chain = Chain(configuration(5, feedback=True))
    found = chain.play([(5, How.KILLED), (10, How.TORN)])
    assert not any(chain.lost)
    assert outcome(found) == undisturbed(5, feedback=True)


def test_without_checkpoints_a_killed_run_is_computed_again_from_its_beginning_or_its_last_orderly_end() -> None:
    chain = Chain(configuration(0, feedback=True))
    found = chain.play([(5, How.BETWEEN), (11, How.KILLED)])
    assert (chain.replayed, chain.repeated) == (0, 6)
    assert outcome(found) == undisturbed(0, feedback=True), "and nothing is lost by that, but time"
