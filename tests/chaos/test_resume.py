"""Runs of which nobody is left, and runs that go on from them, as `peerless train --resume` makes them.

Killed or ended in order: the weights are those of a run that was never interrupted. What is lost, and said so, is what
error feedback held since the last checkpoint, where contributions of later rounds were applied.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.chaos.conftest import Prepare, Resume, Undisturbed
from tests.chaos.faults import Fault, plan
from tests.chaos.fleet import Fleet
from tests.chaos.test_kills import assert_together

FEEDBACK: dict[str, Any] = {"exchange": {"error_feedback": True}}
EVERY_TWO: dict[str, Any] = {"checkpoint": {"every_rounds": 2}}
#: Nobody is dropped while the others die.
PATIENT: dict[str, Any] = {"membership": {"heartbeat_timeout_seconds": 45.0}}

BARRIER = dict.fromkeys(range(4), "during_barrier")
#: Where each rank dies in round 5, which rank 2 leads, and with which round a new run goes on.
DEATHS = {
    "collecting": ({0: "during_map", 1: "after_upload", 2: "after_publish", 3: "before_compute"}, 5),
    "committed": (BARRIER, 5),
    "recorded": ({**BARRIER, 2: "after_result"}, 6),
}
IN_EVERY_RUN = "collecting"
CASES = [
    pytest.param(*case, id=name, marks=[] if name == IN_EVERY_RUN else [pytest.mark.slow])
    for name, case in DEATHS.items()
]


def kill_all(fleet: Fleet, round: int, places: dict[int, str]) -> None:
    """Every peer of a new run dies at its place."""
    faults = [Fault(rank=rank, round=round, at=at, do="kill") for rank, at in places.items()]
    fleet.start(plan(*faults))
    fleet.until_struck(*faults)
    assert [fleet.process(rank).status for rank in places] == [-signal.SIGKILL] * 4


@pytest.mark.parametrize(("places", "goes_on"), CASES)
def test_a_run_that_was_killed_with_everything_goes_on_as_if_nothing_had_been(
    prepare: Prepare, resume: Resume, undisturbed: str, places: dict[int, str], goes_on: int
) -> None:
    killed = prepare(**EVERY_TWO, **PATIENT)
    kill_all(killed, 5, places)
    fleet = resume(killed)
    assert fleet.spec.first_round == goes_on
    fleet.start()
    assert assert_together(fleet) == undisturbed
    assert {(fleet.report(rank).rounds, fleet.report(rank).reason) for rank in range(4)} == {(12, "epoch_limit")}
    # From the checkpoint before round 4, and what was recorded since.
    assert {(e["rank"], e["round"], e["replayed"]) for e in fleet.events("caught_up")} == {
        (rank, goes_on, goes_on - 4) for rank in range(4)
    }


@pytest.mark.slow
def test_what_error_feedback_held_is_lost_with_everything_and_that_is_said(prepare: Prepare, resume: Resume) -> None:
    """Round 4 was applied after the checkpoint that says what was owed before it."""
    killed = prepare(**EVERY_TWO, **PATIENT, **FEEDBACK)
    kill_all(killed, 5, dict.fromkeys(range(4), "before_upload"))
    fleet = resume(killed)
    fleet.start()
    assert_together(fleet)
    assert sorted((e["rank"], e["round"]) for e in fleet.events("residual_lost")) == [(rank, 4) for rank in range(4)]
    assert {fleet.report(rank).rounds for rank in range(4)} == {12}


@pytest.mark.slow
def test_what_error_feedback_held_at_a_checkpoint_survives_everything(
    prepare: Prepare, resume: Resume, undisturbed_run: Undisturbed
) -> None:
    """Killed after the checkpoint before round 4 and before anything of that round was applied."""
    killed = prepare(**EVERY_TWO, **PATIENT, **FEEDBACK)
    kill_all(killed, 4, dict.fromkeys(range(4), "before_upload"))
    fleet = resume(killed)
    fleet.start()
    assert assert_together(fleet) == undisturbed_run(**FEEDBACK).report(0).weights_sha256
    assert not fleet.events("residual_lost")


@pytest.mark.slow
def test_a_run_with_error_feedback_ended_in_order_goes_on_as_if_nothing_had_been(
    prepare: Prepare, resume: Resume, undisturbed_run: Undisturbed, undisturbed: str
) -> None:
    """In the middle of round 5: three have contributed, and their gradients are owed; the fourth still computes."""
    ended = prepare(**FEEDBACK)
    gate = Fault(rank=1, round=5, at="after_compute", do="wait")
    ended.start(plan(gate))
    ended.until_struck(gate)
    places = [ended.spec.places.contribution(5, rank, 1) for rank in (0, 2, 3)]
    ended.until(lambda: all(map(ended.exists, places)), "somebody contributes nothing")
    ended.interrupt()
    reports = ended.end()
    assert {(report.rounds, report.reason) for report in reports} == {(5, "interrupted")}
    fleet = resume(ended)
    assert fleet.spec.first_round == 5
    fleet.start()
    expected = undisturbed_run(**FEEDBACK).report(0).weights_sha256
    assert assert_together(fleet) == expected
    assert expected != undisturbed, "error feedback makes a difference"
    assert not fleet.events("residual_lost")
