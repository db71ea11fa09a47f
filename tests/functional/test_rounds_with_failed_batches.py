"""Synchronous runs of which a peer's batches fail: what counts, who hears of it, and what a failed round changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import GradientFailed
from peer_agent.ports import GradientService, RoundGradient
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events

SAMPLES = (24, 24, 12)
SENTENCE = "no gradient for batch 1 of rank 1 in round 1: lost (ObjectMissing)"
#: Invocations and executions of a round that fails.
SPENT = (7, 2)


class Failing:
    """A peer's own service, which in one round leaves the last batch out, or fails."""

    def __init__(self, service: GradientService, round: int, *, tolerated: bool) -> None:
        self._service, self._round, self._tolerated = service, round, tolerated
        self.lost = 0

    def compute(self, **arguments: Any) -> RoundGradient:
        if arguments["round"] != self._round:
            return self._service.compute(**arguments)
        if not self._tolerated:
            error = GradientFailed(SENTENCE)
            error.invocations, error.executions = SPENT
            raise error
        self.lost = arguments["batches"][-1].samples
        whole = self._service.compute(**arguments)
        left = whole.samples - self.lost
        return dataclasses.replace(whole, samples=left, failures=(SENTENCE,), batches_failed=1)

    def close(self) -> None:
        self._service.close()


def cast_with_failure(tmp_path: Path, *, tolerated: bool) -> tuple[Cast, Failing]:
    cast = Cast(configuration(epochs=3, batches_per_round=2), SAMPLES, events=tmp_path / "events.jsonl")
    ports = cast.peers[1].actions.ports
    failing = Failing(ports.gradients, 1, tolerated=tolerated)
    object.__setattr__(ports, "gradients", failing)
    return cast, failing


def test_the_contribution_says_how_many_samples_it_stands_for(tmp_path: Path) -> None:
    cast, failing = cast_with_failure(tmp_path, tolerated=True)
    cast.play()
    assert failing.lost > 0
    assert len({report.weights_sha256 for report in cast.reports()}) == 1
    by_round = [{c.rank: c.samples for c in commit.contributors} for commit in commits(cast)[:-1]]
    assert by_round[1] == {**by_round[0], 1: by_round[0][1] - failing.lost}
    (told,) = [event for event in events(tmp_path) if event["event"] == "batches_failed"]
    assert (told["rank"], told["round"], told["failed"], told["causes"]) == (1, 1, 1, [SENTENCE])
    assert told["samples"] == by_round[1][1]
    cast.close()


def test_a_failed_round_changes_no_weights(tmp_path: Path) -> None:
    cast, _ = cast_with_failure(tmp_path, tolerated=False)
    cast.play()
    assert str(cast.peers[1].error) == SENTENCE
    assert isinstance(cast.peers[1].error, GradientFailed)
    bill = cast.peers[1].actions.bill
    before = (2, 1)  # in round 0
    told = tuple(np.add(before, SPENT))
    assert (bill.invocations, bill.executions) == told, "it cost what it cost"
    report = cast.reports()[1]
    assert (report.lambda_invocations, report.state_machine_executions) == told
    first, last = commits(cast)
    assert [contributor.rank for contributor in first.contributors] == [0, 1, 2]
    assert (last.contributors, last.final) == ((), True), "the run ends, and nothing of the failed round counts"
    held = {peer.actions.update.weights_sha256 for peer in cast.peers}
    assert held == set(last.base_weights.values()), "all hold what round 0 led to"
    assert not [event for event in events(tmp_path) if event["event"] == "batches_failed"]
    cast.close()


def test_a_peer_that_adds_its_gradients_up_itself_says_why(tmp_path: Path) -> None:
    cast = Cast(configuration(epochs=1, batches_per_round=2), SAMPLES, events=tmp_path / "events.jsonl")
    ports = cast.peers[1].actions.ports
    object.__setattr__(ports, "gradients", NotReduced(ports.gradients))
    cast.play()
    told = [event for event in events(tmp_path) if event["event"] == "not_reduced"]
    assert {(event["rank"], event["cause"]) for event in told} == {(1, "too small (Runtime.OutOfMemory)")}
    assert [event["round"] for event in told] == list(range(len(commits(cast)) - 1))
    cast.close()


class NotReduced:
    """A peer's own service, in whose rounds reducers failed."""

    def __init__(self, service: GradientService) -> None:
        self._service = service

    def compute(self, **arguments: Any) -> RoundGradient:
        made = self._service.compute(**arguments)
        return dataclasses.replace(made, not_reduced="too small (Runtime.OutOfMemory)")

    def close(self) -> None:
        self._service.close()
