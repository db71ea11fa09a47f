"""Case 1: `kill -9` of one of four peers in every phase of a round.

The other three go on as soon as it is dropped; started again, it takes part again, and all four end with the same
weights, each by its own arithmetic.
"""

from __future__ import annotations

import pytest

from contract.records import Commit
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, plan
from tests.chaos.fleet import Fleet

ROUND = 3
#: So long runs a round at least: starting a process again takes some of them, as it would in a run that matters.
PACE_SECONDS = 0.2
#: Epochs without end; the test ends the run.
ENDLESS = 2_000
#: Round t is rank (t + 1)'s to commit: in round 3 that is rank 0.
LEADER = 0

PHASES = [
    (1, "before_compute"),
    (1, "during_map"),
    (1, "after_upload"),
    (1, "after_publish"),
    (1, "during_barrier"),
    (LEADER, "before_commit"),
    (LEADER, "after_commit"),
    (LEADER, "before_result"),
    (LEADER, "after_result"),
]
#: There is no contribution of the round yet.
BEFORE_S3 = ("before_compute", "during_map")
IN_EVERY_RUN = (1, "after_upload")
CASES = [pytest.param(*case, marks=[] if case == IN_EVERY_RUN else [pytest.mark.slow]) for case in PHASES]


def dropped(fleet: Fleet, rank: int) -> Commit:
    """The first commit that goes on without a rank."""

    def found() -> Commit | None:
        return next((c for c in fleet.commits() if rank not in {m.rank for m in c.members}), None)

    fleet.until(found, f"rank {rank} is not dropped")
    commit = found()
    assert commit is not None
    return commit


def assert_together(fleet: Fleet, expected: dict[int, int] | None = None) -> str:
    """All ended after the same round with the same weights, which nobody had to adopt; their hash."""
    reports = fleet.end(expected)
    assert len({(report.rounds, report.weights_sha256, report.model_sha256) for report in reports}) == 1
    assert not fleet.events("weights_adopted")
    last = fleet.commits()[-1]
    round = last.round if last.contributors else last.round - 1
    assert fleet.result(round).weights_sha256 == reports[0].weights_sha256
    return reports[0].weights_sha256


@pytest.mark.parametrize(("rank", "at"), CASES)
def test_the_others_go_on_and_it_comes_back(prepare: Prepare, rank: int, at: str) -> None:
    others = [other for other in range(4) if other != rank]
    fault = Fault(rank=rank, round=ROUND, at=at, do="kill")
    fleet = prepare(epochs=ENDLESS)
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)

    commit = dropped(fleet, rank)
    assert commit.round >= ROUND
    after = fleet.until_committed(commit.round + 2)
    assert [c.rank for c in after.contributors] == others
    assert [m.rank for m in after.members] == others
    # Its contribution to round 3 counts exactly where it had come as far as S3.
    assert (rank in {c.rank for c in fleet.commits()[ROUND].contributors}) == (at not in BEFORE_S3)

    fleet.start(ranks=[rank], plan=plan(pace_seconds=PACE_SECONDS))
    fleet.until_member(rank, 2)
    assert fleet.process(rank).status is None
    fleet.interrupt()
    assert_together(fleet)
    assert fleet.report(rank).incarnation == 2
    contributed = {(c.rank, c.incarnation) for commit in fleet.commits() for c in commit.contributors}
    assert contributed == {(other, 1) for other in range(4)} | {(rank, 2)}
    assert not any(
        (c.rank, c.incarnation) == (rank, 1) for commit in fleet.commits()[ROUND + 1 :] for c in commit.contributors
    )


@pytest.mark.parametrize("at", ["during_map", pytest.param("after_upload", marks=pytest.mark.slow)])
def test_who_comes_back_before_it_is_dropped_changes_nothing(prepare: Prepare, undisturbed: str, at: str) -> None:
    """The same identity stands in for itself: with the quorum at all members, the weights are the undisturbed run's."""
    fault = Fault(rank=1, round=ROUND, at=at, do="kill")
    fleet = prepare(membership={"heartbeat_timeout_seconds": 45.0})
    fleet.start(plan(fault))
    fleet.until_struck(fault)
    fleet.start(ranks=[1])
    assert assert_together(fleet) == undisturbed
    assert [[c.rank for c in commit.contributors] for commit in fleet.commits()[:-1]] == (
        [[0, 1, 2, 3]] * fleet.spec.rounds_limit
    )
    assert fleet.report(1).incarnation == 2


@pytest.mark.slow
def test_all_are_killed_and_started_again(prepare: Prepare, undisturbed: str) -> None:
    faults = [Fault(rank=rank, round=ROUND, at="before_compute", do="kill") for rank in range(4)]
    fleet = prepare(membership={"heartbeat_timeout_seconds": 45.0})
    fleet.start(plan(*faults))
    fleet.until_struck(*faults)
    fleet.start()
    assert assert_together(fleet) == undisturbed


@pytest.mark.slow
def test_two_of_four_are_killed_at_once(prepare: Prepare) -> None:
    faults = [Fault(rank=rank, round=ROUND, at="after_publish", do="kill") for rank in (1, 3)]
    fleet = prepare(epochs=ENDLESS)
    fleet.start(plan(*faults, pace_seconds=PACE_SECONDS))
    fleet.until_struck(*faults)
    fleet.until(lambda: [c.rank for c in fleet.commits()[-1].contributors] == [0, 2], "the other two do not go on")
    fleet.start(ranks=[1, 3], plan=plan(pace_seconds=PACE_SECONDS))
    fleet.until_member(1, 2)
    fleet.until_member(3, 2)
    fleet.interrupt()
    assert_together(fleet)
