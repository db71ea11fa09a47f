"""What the planner's benchmark makes of predictions and measurements."""

from __future__ import annotations

import pytest

from benchmarks.comparison import Peers
from benchmarks.plan import Compared, compared, figures
from peerless.planner import local
from peerless.planner.assumptions import assumptions
from peerless.planner.planning import configured_plan
from peerless.planner.terms import total
from tests.fakes.planning import calibration, job


def test_errors_are_relative_to_what_was_measured() -> None:
    made = [
        Compared(name=name, predicted=predicted, spread=0.1, measured=2.0, slowed=1.0, step_error=0.1)
        for name, predicted in (("a", 1.0), ("b", 2.2), ("c", 2.6))
    ]
    found = {figure.name: figure.value for figure in figures(made)}
    assert found["median_error"] == pytest.approx(0.3)
    assert found["largest_error"] == pytest.approx(0.5)
    assert found["error_b"] == pytest.approx(0.1)
    assert found["within_two_bands"] == pytest.approx(1 / 3)  # 0.2 of 0.44; 0.6 of 0.52; 1.0 of 0.2


def test_warm_up_does_not_count_and_both_calibrations_do() -> None:
    moments = [0.0, 50.0, 90.0, 100.0, 103.0, 106.0, 109.0]
    peers = Peers(
        commits=[{"t": moment} for moment in moments],
        stages=[],
        worked=[{"round": number, "step_seconds": 9.0 if number < 3 else 0.8} for number in range(7)],
        summary={},
        weights={},
    )
    work, before, after = job(batches_per_round=2), calibration(seconds=0.5), calibration(seconds=0.7)
    found = compared("one", work, (before, after), peers)
    assert found.measured == pytest.approx(3.0)
    assert found.slowed == 1.0
    assert found.step_error == pytest.approx(0.2 / 0.8)
    each = [total(local.predicted(work, configured_plan(work, one), one, assumptions())) for one in (before, after)]
    assert found.predicted == pytest.approx(sum(each) / 2)
    assert each[0] < found.predicted < each[1]
