"""A round on the local stack: servers, workers and peers on one machine, which all share its cores.

So nothing is a matter of lines and latencies here but of processor time: what peers, MiniStack, the Lambda service and
the broker use for a round is divided by the cores, and the batches by the workers that there are at once. Figures of
local.toml were measured on one machine; another is slower or faster as the probe tells (measure.probe).
"""

from __future__ import annotations

import os

from contract.computing import local_workers
from peerless.planner.assumptions import Assumptions, Figure
from peerless.planner.calibration import Calibration
from peerless.planner.job import Job
from peerless.planner.plan import Plan
from peerless.planner.refine import corrected
from peerless.planner.terms import Part, Term


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def predicted(job: Job, plan: Plan, calibration: Calibration, known: Assumptions) -> tuple[Term, ...]:
    """Seconds of a round, as measured runs have shown them, where there were any."""
    return corrected(calibration, f"local.{plan.service}", round_terms(job, plan, calibration, known))


def step_seconds(job: Job, plan: Plan, calibration: Calibration) -> float:
    """Forward and backward of one batch, with as many others at once as the round has."""
    return calibration.step(job.config.batch_size, _threads(plan, calibration), _at_once(job, plan, calibration))[0]


def round_terms(job: Job, plan: Plan, calibration: Calibration, known: Assumptions) -> tuple[Term, ...]:
    """Seconds of a round by the calibration and local.toml alone."""
    machine, peers = calibration.cores, plan.peers
    pace = calibration.probe_seconds / known.value("local.probe_seconds")
    lanes, counts = _at_once(job, plan, calibration), _invocations(job, plan)
    unsure = calibration.step(job.config.batch_size, _threads(plan, calibration), lanes)[1]
    passes = sum(map(job.steps, job.in_a_round(peers)))

    def spent(name: str, part: Part, cpu_seconds: float, figure: Figure) -> Term:
        return Term(
            name=name, part=part, value=cpu_seconds * pace / machine, spread=figure.spread, source=figure.source
        )

    # Whole invocations go to workers: the last ones may leave some of them idle.
    whole = -(-sum(counts) // lanes) * lanes / sum(counts)
    step = Term(
        name="forward and backward", part="step", value=passes * whole / lanes * step_seconds(job, plan, calibration),
        spread=unsure, source=f"measured {calibration.taken}",
    )  # fmt: skip
    terms = [step]
    if plan.service == "lambda":
        invocation, per_byte = known["local.invocation_cpu_seconds"], known["local.result_cpu_seconds_per_byte"]
        waits = known["local.execution_seconds"]
        terms += [
            Term(name="state machine", part="compute", value=waits.value, spread=waits.spread, source=waits.source),
            spent("invocations", "compute", sum(counts) * invocation.value, invocation),
            spent("results", "compute", sum(counts) * job.result_bytes * per_byte.value, per_byte),
        ]
    each, by_byte = known["local.peer_cpu_seconds"], known["local.moved_seconds_per_byte"]
    contributed = peers * peers * job.contribution_bytes(plan.codec)  # each is sent once, and fetched by all others
    # Weights are put by one peer and fetched once for all workers, while nobody has anything else to do.
    weights = 2 * job.weights_bytes if plan.service == "lambda" else 0
    at_once = min(machine, peers)
    terms += [
        spent("peers' messages and records", "exchange", peers * each.value, each),
        spent("contributions", "exchange", contributed * by_byte.value * machine / at_once, by_byte),
        spent("weights", "exchange", weights * by_byte.value * machine, by_byte),
    ]
    return tuple(term for term in terms if term.value)


def _invocations(job: Job, plan: Plan) -> tuple[int, ...]:
    """By rank; of peers that compute themselves, one each."""
    batches = job.in_a_round(plan.peers)
    if plan.service == "local" or job.takes_steps:
        return (1,) * len(batches)
    return tuple(-(-count // plan.batches_per_worker) for count in batches)


def _at_once(job: Job, plan: Plan, calibration: Calibration) -> int:
    """Batches that are computed at the same time."""
    lanes = max(1, calibration.cores // plan.threads)
    if plan.service == "lambda":
        lanes = local_workers(job.config.compute, calibration.cores)
    return min(lanes, sum(_invocations(job, plan)))


def _threads(plan: Plan, calibration: Calibration) -> int:
    return min(plan.threads, calibration.cores)
