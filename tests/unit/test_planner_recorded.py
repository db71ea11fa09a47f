"""The model of the local stack against rounds of docs/benchmarks.md, measured on two cores without other work.

Figures of local.toml come from the first two; the third one they have not seen. What two workers with a thread each
take for their batches is in that document for VGG-11 (9.4 s, where bare torch with two threads takes 8.6); the other
models' is bare torch's time, longer by the same share.
"""

from __future__ import annotations

from typing import Any

import pytest

from peerless.planner import local
from peerless.planner.assumptions import assumptions
from peerless.planner.calibration import Point
from peerless.planner.planning import configured_plan
from peerless.planner.terms import total
from tests.fakes.planning import calibration, job

SLOWER = 9.4 / 8.6


def predicted(elements: int, bare_seconds: float, batches: int, **config: Any) -> float:
    """Seconds of a round of so many batches in all, for which bare torch takes `bare_seconds` with two threads."""
    step = bare_seconds * SLOWER * 2 / batches  # two at once
    size = config["batch_size"]
    point = Point(batch_size=size, threads=1, crowd=1, seconds=step, spread=0.0, cpu_seconds=step, cpu_spread=0.0)
    known = assumptions()
    measured = calibration(points=(point,), probe_seconds=known.value("local.probe_seconds"))
    work = job(elements=elements, samples=batches * size, **config)
    return total(local.predicted(work, configured_plan(work, measured), measured, known))


ONE: dict[str, Any] = {"peers": 1, "batches_per_round": 32, "exchange": {"codec": "none"}}


@pytest.mark.parametrize(
    ("seconds", "elements", "bare", "batches", "config"),
    [
        (0.54, 117_066, 0.123, 8, {"peers": 4, "batches_per_round": 2, "batch_size": 128}),
        # `auto` divides 32 batches of VGG-11 into four invocations, as its results are large; SqueezeNet's into two.
        (12.1, 9_225_610, 8.6, 32, {**ONE, "batch_size": 128, "compute": {"batches_per_worker": 8}}),
        (1.27, 726_474, 0.83, 32, {**ONE, "batch_size": 64, "compute": {"batches_per_worker": 16}}),
    ],
)
def test_a_recorded_round(seconds: float, elements: int, bare: float, batches: int, config: dict[str, Any]) -> None:
    assert predicted(elements, bare, batches, **config) == pytest.approx(seconds, rel=0.1)
