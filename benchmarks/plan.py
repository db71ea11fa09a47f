"""The planner's seconds of a round against rounds that were run, on the local stack: three models, two and four peers.

Each model is timed as `peerless plan --calibrate` does it, before and after its runs, and the mean of both predictions
counts, so that a machine whose pace changes meanwhile is told from a wrong model. Rounds are timed from one commit to
the next; the first ones are left out, because workers and caches warm up. An error is the difference of prediction and
measurement, relative to the latter. `median_step_error` says how much of it is the batches' own time: the calibration's
against what the workers measured.

Predictions are of a machine without other work. `slowed` tells how much there was while models were timed: the time of
a batch over its processor time. Where it is well above 1, errors are the other work's and say nothing of the planner.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.comparison import Peers, configuration, train_peers
from benchmarks.reporting import Figure
from contract.clock import SystemClock
from contract.config import RunConfig
from peerless.launch.workload import Workload
from peerless.planner import local
from peerless.planner.assumptions import assumptions
from peerless.planner.calibration import Calibration
from peerless.planner.job import Job
from peerless.planner.measure import calibrate
from peerless.planner.planning import configured_plan
from peerless.planner.terms import spread, total

#: Rounds that warm up, and rounds that count.
WARM, ROUNDS = 3, 8
PEERS = (2, 4)
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "cnn", "batch_size": 128},
    # Without dropout and at 32 pixels, as `round` has them.
    "squeezenet": {
        "model": "squeezenet1_1", "model_options": {"dropout": 0.0}, "batch_size": 64,
        "data": {"image_size": 32, "validation_samples": 64},
    },
    "vgg11": {
        "model": "vgg11", "model_options": {"head": "cifar"}, "batch_size": 32,
        "data": {"image_size": 32, "validation_samples": 64},
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run."""

    name: str
    predicted: float
    """Seconds of a round."""
    spread: float
    measured: float
    slowed: float
    """Time over processor time of a batch, while the model was timed."""
    step_error: float
    """Relative: of the batches' time, prediction against what workers measured."""

    @property
    def error(self) -> float:
        """Relative."""
        return abs(self.predicted - self.measured) / self.measured


def run() -> list[Figure]:
    """Measure, and give the figures. Raises RunFailed."""
    return figures([each for name in MODELS for each in compare(name, MODELS[name])])


def figures(found: list[Compared]) -> list[Figure]:
    """Of all runs."""
    errors = [each.error for each in found]
    inside = sum(each.error * each.measured <= 2 * each.spread * each.predicted for each in found)
    made = [
        Figure(
            name="median_error", value=statistics.median(errors), unit="of a round", better="lower", must=0.2, aim=0.1
        ),
        Figure(name="largest_error", value=max(errors), unit="of a round", better="lower"),
        Figure(name="within_two_bands", value=inside / len(found), unit="of the runs", better="higher"),
        Figure(
            name="median_step_error", value=statistics.median(each.step_error for each in found), unit="of a batch",
            better="lower",
        ),
        Figure(name="slowed", value=statistics.median(each.slowed for each in found), unit="x", better="lower"),
    ]  # fmt: skip
    for each in found:
        made += [
            Figure(name=f"error_{each.name}", value=each.error, unit="of a round", better="lower"),
            Figure(name=f"predicted_{each.name}", value=each.predicted, unit="s", better="neither"),
            Figure(name=f"measured_{each.name}", value=each.measured, unit="s", better="neither"),
        ]
    return made


def compare(name: str, changes: dict[str, Any]) -> list[Compared]:
    """One model with every number of peers."""
    configs = [configuration(WARM + ROUNDS, peers=peers, **changes) for peers in PEERS]
    works = [Workload.of(config, _tell) for config in configs]
    before = measured(configs[0], works[0])
    runs = [train_peers(config) for config in configs]
    after = measured(configs[0], works[0])
    return [
        compared(f"{name}_{config.peers}_peers", Job.of(config, work), (before, after), found)
        for config, work, found in zip(configs, works, runs, strict=True)
    ]


def measured(config: RunConfig, work: Workload) -> Calibration:
    """As `--calibrate`."""
    return calibrate(config, work, SystemClock(), local.cores(), _tell)


def compared(name: str, job: Job, calibrations: tuple[Calibration, Calibration], found: Peers) -> Compared:
    """One run with what was predicted of it from both calibrations, whose mean counts."""
    known = assumptions()
    plans = [configured_plan(job, each) for each in calibrations]
    pairs = [local.predicted(job, plan, each, known) for plan, each in zip(plans, calibrations, strict=True)]
    step = statistics.fmean(local.step_seconds(job, plan, each) for plan, each in zip(plans, calibrations, strict=True))
    told = statistics.median(event["step_seconds"] for event in found.worked if event["round"] >= WARM)
    each = statistics.median(later["t"] - earlier["t"] for earlier, later in pairwise(found.commits[WARM:]))
    made = Compared(
        name=name,
        predicted=statistics.fmean(total(terms) for terms in pairs),
        spread=statistics.fmean(spread(terms) for terms in pairs),
        measured=each,
        slowed=statistics.median(
            point.seconds / point.cpu_seconds
            for calibration in calibrations
            for point in calibration.points
            if point.threads == point.crowd == 1
        ),
        step_error=abs(step - told) / told,
    )
    _tell(f"{name}: predicted {made.predicted:.3g} s ±{made.spread:.0%}, measured {made.measured:.3g} s")
    return made


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
