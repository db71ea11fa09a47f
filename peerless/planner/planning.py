"""From a configuration to a choice: the parts of the planner in their order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contract.clock import Clock
from contract.config import RunConfig
from contract.errors import UserError
from peerless.launch import shipping
from peerless.launch.workload import Workload
from peerless.planner import local, refine, workers
from peerless.planner.assumptions import Assumptions
from peerless.planner.calibration import Calibration, identity, machine_name, path_of
from peerless.planner.choice import Marks, choose
from peerless.planner.job import Job
from peerless.planner.measure import calibrate
from peerless.planner.model import Model, Prediction
from peerless.planner.plan import Plan
from peerless.planner.search import Axes, frontier, undominated
from peerless.planner.terms import Term, spread, total
from peerless.planner.verdict import Verdict, judge

#: What `batches_per_worker = "auto"` gives an invocation, in seconds (peer_agent/compute/division.py).
AUTO_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What `peerless plan` shows."""

    configured: Prediction
    frontier: tuple[Prediction, ...]
    marks: Marks
    verdict: Verdict
    tried: int
    """Combinations that were looked at."""
    calibration: Calibration

    @property
    def taken(self) -> Prediction | None:
        """The plan that the limits leave; None where there is none."""
        return None if self.marks.chosen is None else self.frontier[self.marks.chosen]

    @property
    def changes(self) -> dict[str, Any]:
        """What `--apply` writes."""
        return {} if self.taken is None else self.taken.plan.changes(self.configured.plan)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        marks = dataclasses.asdict(self.marks)
        return {
            "configured": self.configured.to_dict(),
            "frontier": [plan.to_dict() for plan in self.frontier],
            "marks": marks,
            "changes": self.changes,
            "verdict": self.verdict.to_dict(),
            "tried": self.tried,
            "calibration": {
                "machine": self.calibration.machine,
                "taken": self.calibration.taken,
                "corrections": [dataclasses.asdict(each) for each in self.calibration.corrections],
            },
        }


def calibration_for(
    config: RunConfig,
    work: Workload,
    known: Assumptions,
    *,
    anew: bool,
    run: str | None,
    clock: Clock,
    cores: int,
    log: Callable[[str], None],
) -> Calibration:
    """The one that is kept for the configured model on this machine; measured now where `anew` says so, refined by a
    `run` where one is named, and then kept. Raises UserError where there is none."""
    model = identity(config, work.prepared.sample_shape)
    path = path_of(model, machine_name())
    found = calibrate(config, work, clock, cores, log) if anew else Calibration.load(path)
    if found is None:
        raise UserError(
            "this model has not been timed on this machine; add --calibrate, which takes less than a minute"
        )
    if run is not None:
        found = _refined(found, run, model, known, log)
    if anew or run is not None:
        found.save(path)
    return found


def configured_plan(job: Job, calibration: Calibration) -> Plan:
    """What the configuration says, with the number that `auto` batches per worker comes to."""
    most = max(job.in_a_round(job.config.peers))
    seconds, _ = calibration.step(job.config.batch_size, 1)
    return Plan.of(
        job.config,
        batches=1 if job.takes_steps else most,
        per_worker=min(most, max(1, math.ceil(AUTO_SECONDS / seconds))),
    )


def planned(
    job: Job,
    calibration: Calibration,
    known: Assumptions,
    *,
    vary: Sequence[str] = (),
    deadline: float | None = None,
    budget: float | None = None,
    accuracy: float | None = None,
) -> Planned:
    """Look at all alternatives and choose. Limits as `choice.choose` has them. Raises UserError where nothing fits."""
    model = Model(job, calibration, known, accuracy=accuracy)
    configured = configured_plan(job, calibration)
    first = model.predict(configured)
    batches = 1 if job.takes_steps else max(job.in_a_round(configured.peers))
    axes = Axes.of(configured, job.config, known, batches).varied(vary, job.config)
    each = {
        name: frontier(model, Axes(values={**axes.values, "service": (name,)}), configured)
        for name in ("lambda", "local")
    }
    allowed = [plan for name in axes.values["service"] for plan in each[name]]
    found = [plan for _, _, plan in undominated([(plan.seconds, plan.usd, plan) for plan in allowed])]
    if not found:
        raise UserError(
            "no alternative has the memory and the time that this job needs; use a smaller batch_size, a larger "
            "compute.timeout_seconds, or other values with --vary"
        )
    return Planned(
        configured=first,
        frontier=tuple(found),
        marks=choose(found, deadline=deadline, budget=budget),
        verdict=judge(model, each["lambda"], each["local"]),
        tried=axes.count(),
        calibration=calibration,
    )


def _refined(found: Calibration, run: str, model: str, known: Assumptions, log: Callable[[str], None]) -> Calibration:
    measured = refine.read(run)
    config = measured.config
    with shipping.importable(config.code):
        work = Workload.of(config, log)
    if identity(config, work.prepared.sample_shape) != model:
        raise UserError(f"--from-run {run}: it trained another model, or on other inputs, than this configuration")
    job = Job.of(config, work)
    log(comparison(measured, _round(job, found, known, measured)))
    bare = dataclasses.replace(found, corrections=())
    plan = configured_plan(job, bare)
    here = measured.where.startswith("local.")
    step = local.step_seconds(job, plan, bare) if here else workers.step(job, plan, bare, known).value
    return refine.refined(found, measured, _round(job, bare, known, measured), step)


def comparison(measured: refine.Measured, terms: Sequence[Term]) -> str:
    """Predicted beside actual, for people."""
    seconds, relative = total(terms), spread(terms)
    off = seconds / measured.round_seconds - 1
    return (
        f"{measured.run}: a round took {measured.round_seconds:.3g} s (median of {measured.rounds}); predicted before "
        f"it was known: {seconds:.3g} s ±{relative:.0%}, {abs(off):.0%} {'more' if off > 0 else 'less'}"
    )


def _round(job: Job, calibration: Calibration, known: Assumptions, measured: refine.Measured) -> Sequence[Term]:
    """Predicted seconds of a round where the run was."""
    plan = configured_plan(job, calibration)
    if measured.where.startswith("local."):
        return local.predicted(job, plan, calibration, known)
    return Model(job, calibration, known).predict(plan).terms
