"""Asynchronous mode: a process is stopped until another has taken its rank over, and then goes on as if nothing had
been. It stops itself, and nothing of it is averaged any more."""

from __future__ import annotations

import signal

import pytest

from contract.errors import EXIT_SUPERSEDED
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, plan
from tests.chaos.test_async_kills import ROUND, assert_one_end, until_all_use, until_left_out, used
from tests.chaos.test_kills import ENDLESS, PACE_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("at", ["before_compute", "after_compute", "before_upload", "after_upload"])
def test_a_twin_that_wakes_up_stops_itself(prepare: Prepare, at: str) -> None:
    fault = Fault(rank=1, round=ROUND, at=at, do="stop")
    fleet = prepare(mode="async", epochs=ENDLESS, exchange={"max_staleness": 20, "average_weights_every": 3})
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    first = fleet.process(1)
    until_left_out(fleet, 1)

    fleet.start(ranks=[1], plan=plan(pace_seconds=PACE_SECONDS))
    until_all_use(fleet, 1, 2)
    assert first.stopped
    before = {by: len(used(fleet, by, 1)) for by in (0, 2, 3)}
    first.send(signal.SIGCONT)
    fleet.until(lambda: first.status is not None or None, "the first process goes on")
    assert first.status == EXIT_SUPERSEDED
    assert "Superseded" in first.errors

    # The run goes on as if the other had never woken up.
    fleet.until(lambda: all(len(used(fleet, by, 1)) > before[by] + 3 for by in before), "the others do not go on")
    fleet.interrupt()
    reports = assert_one_end(fleet)
    assert [report.incarnation for report in reports] == [1, 2, 1, 1]
    for by in before:
        incarnations = [incarnation for _, incarnation in used(fleet, by, 1)]
        assert incarnations == sorted(incarnations)
    own = [round for round, incarnation in used(fleet, 1, 1) if incarnation == 1]
    assert own in ([*range(ROUND)], [*range(ROUND + 1)])


@pytest.mark.slow
def test_a_process_that_nobody_replaced_goes_on(prepare: Prepare) -> None:
    """Left out while it stands still, and taken in again when it is heard: it is itself."""
    fault = Fault(rank=1, round=ROUND, at="before_compute", do="stop")
    fleet = prepare(mode="async", epochs=ENDLESS, exchange={"max_staleness": 1_000})
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    until_left_out(fleet, 1)
    before = {by: len(used(fleet, by, 1)) for by in (0, 2, 3)}
    fleet.process(1).send(signal.SIGCONT)
    fleet.until(lambda: all(len(used(fleet, by, 1)) > before[by] + 3 for by in before), "it is not averaged again")
    fleet.interrupt()
    reports = assert_one_end(fleet)
    assert [report.incarnation for report in reports] == [1] * 4
    assert {event["member"] for event in fleet.events("member_joined")} >= {1}
