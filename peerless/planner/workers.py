"""A round's gradients on AWS: by Lambda workers, or in the peers' own processes. Seconds of a round, US dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contract import tree
from contract.codec import codec
from contract.computing import MB_PER_VCPU
from contract.prices import Prices
from peerless.planner.assumptions import Assumptions, Figure
from peerless.planner.calibration import Calibration
from peerless.planner.job import Job
from peerless.planner.plan import Plan
from peerless.planner.terms import Part, Term, total
from statemachines.gradients import INLINE_CONCURRENCY, Mode
from statemachines.transitions import transitions

#: Memory by which Express executions are billed at least, MB.
EXPRESS_MB = 64
#: A worker needs at most this much beside what a process with the data set had: room for the runtime.
MEMORY_ROOM = 1.1


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a round under a plan: computing gradients, or exchanging them."""

    terms: tuple[Term, ...]
    """Seconds of a round."""
    usd: tuple[Term, ...]
    """Of a round, all peers together, beside what costs by the hour."""
    once: tuple[Term, ...] = ()
    """Seconds before or in the first round."""
    once_usd: tuple[Term, ...] = ()

    @property
    def seconds(self) -> float:
        """Of a round."""
        return total(self.terms)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How a round is divided into invocations."""

    largest: int
    """Of the peer that has the most."""
    everyone: int
    """Of all peers."""
    passes: int
    """Forward and backward passes of the largest invocation."""
    passes_everyone: int
    at_once: int
    """Invocations of one peer that run at the same time."""

    @property
    def waves(self) -> int:
        """How many of the largest peer's invocations follow one another on a worker."""
        return -(-self.largest // self.at_once)


def shares(job: Job, plan: Plan, known: Assumptions) -> Shares:
    """Of a plan whose service is `lambda`."""
    batches = job.in_a_round(plan.peers)
    most, per = max(batches), plan.batches_per_worker
    counts = (1,) * len(batches) if job.takes_steps else tuple(-(-count // per) for count in batches)
    limit = max(1, int(known.value("aws.concurrency")) // plan.peers)
    if plan.state_machine == "inline_map":
        limit = min(limit, INLINE_CONCURRENCY)
    if (own := job.config.compute.concurrency) and plan.state_machine != "parallel":
        limit = min(limit, own)
    largest = max(counts)
    return Shares(
        largest=largest,
        everyone=sum(counts),
        passes=job.steps(-(-most // largest)),
        passes_everyone=sum(map(job.steps, batches)),
        at_once=min(largest, limit),
    )


def step(job: Job, plan: Plan, calibration: Calibration, known: Assumptions) -> Term:
    """Forward and backward of one batch where the plan computes it."""
    if plan.service == "lambda":
        name, vcpus = f"speed.lambda_{plan.architecture}", plan.memory_mb / MB_PER_VCPU
    else:
        name, vcpus = speed_of(plan.instance_type), float(known.instances[plan.instance_type].vcpus)
    speed = known[name]
    seconds, unsure = calibration.step(job.config.batch_size, min(vcpus, plan.threads))
    return Term(
        name="forward and backward",
        part="step",
        value=seconds / speed.value,
        spread=math.hypot(unsure, speed.spread),
        source=f"measured {calibration.taken}; {name} ({speed.source})",
    )


def speed_of(instance_type: str) -> str:
    """Name of the assumption about an instance type's vCPU."""
    return f"speed.{instance_type.partition('.')[0]}"


def by_lambda(job: Job, plan: Plan, calibration: Calibration, known: Assumptions, prices: Prices) -> Side:
    """Gradients by Step Functions and Lambda."""
    found, one = shares(job, plan, known), step(job, plan, calibration, known)
    compute = job.config.compute
    encoded, mean = codec(compute.gradient_codec).encoded_bytes(job.elements), 4 * job.elements
    reduced = not job.takes_steps and tree.reduces(compute.reduce, found.largest, encoded, mean)
    line, put = known["aws.line_bytes_per_second"], known.value("aws.put_weight")
    request = known["aws.request_seconds"]
    per_second = line.value

    def term(name: str, seconds: float, figure: Figure, part: Part = "compute") -> Term:
        return Term(name=name, part=part, value=seconds, spread=figure.spread, source=figure.source)

    # Batches are fetched one ahead of the computation, so that the first one's way counts, and what steps do not hide.
    batch_way = request.value + job.batch_bytes / per_second
    hidden = max(0.0, job.batch_bytes / per_second - one.value) * (found.passes - 1)
    weights_way = request.value + job.weights_bytes / per_second
    result_way = request.value + put * job.result_bytes / per_second
    execution, invocation = known["aws.execution_seconds"], known["aws.invocation_seconds"]
    gathered = found.largest * job.result_bytes / per_second
    terms = [
        term("state machine", execution.value, execution),
        term("invocations", found.waves * invocation.value, invocation),
        term("weights to workers", weights_way, line),
        term("batches to workers", found.waves * (batch_way + hidden), line),
        one.times(found.waves * found.passes),
        term("gradients from workers", found.waves * result_way, line),
    ]
    if plan.state_machine == "distributed_map":
        starts = known["aws.child_starts_per_second"]
        terms.append(term("children's starts", (found.largest - 1) / starts.value, starts))
    reduce_seconds = 0.0
    if reduced:
        levels = tree.tree(found.largest)
        sizes = [job.result_bytes, *(job.weights_bytes for _ in levels[1:])]
        for level, size in zip(levels, sizes, strict=True):
            busy = request.value * 2 + level[0] * size / per_second + put * job.weights_bytes / per_second
            reduce_seconds += busy
            terms.append(term("adding up", busy + invocation.value, line))
        gathered = job.weights_bytes / per_second
    terms.append(term("gradients to the peer", request.value + gathered, line))

    reducers = tree.reducers(found.largest) * plan.peers if reduced else 0
    gb = plan.memory_mb / 1_024
    fresh = min(found.everyone, found.at_once * plan.peers)
    moved = found.everyone * (batch_way + result_way) + fresh * weights_way
    moved += reducers * reduce_seconds / max(1, len(tree.tree(found.largest)))
    gb_usd = gb * prices.lambda_usd_per_gb_second
    usd = [
        one.times(found.passes_everyone * gb_usd),
        term("Lambda: moving bytes", moved * gb_usd, line),
        _exact("Lambda requests", (found.everyone + reducers) * prices.lambda_usd_per_request),
        _exact("state machine", _transitions_usd(job, plan, found, reducers, total(terms), prices)),
        _exact("S3 requests of workers", _requests_usd(job, plan, found, fresh, reducers, prices)),
    ]
    snap = job.config.aws.snap_start
    cold = known["aws.snap_start_seconds" if snap else "aws.cold_start_seconds"]
    sandboxes = found.at_once * plan.peers
    return Side(
        terms=tuple(terms),
        usd=tuple(usd),
        once=(term("cold start", cold.value, cold),),
        once_usd=(term("Lambda: cold starts", sandboxes * cold.value * gb_usd, cold),),
    )


def by_instances(job: Job, plan: Plan, calibration: Calibration, known: Assumptions, prices: Prices) -> Side:
    """Gradients in the peers' own processes."""
    one, batches = step(job, plan, calibration, known), job.in_a_round(plan.peers)
    passes, line = job.steps(max(batches)), known["aws.line_bytes_per_second"]
    way = known.value("aws.request_seconds") + job.batch_bytes / line.value
    terms = (
        one.times(passes),
        Term(name="batches to the peer", part="compute", value=max(batches) * way, spread=line.spread,
             source=line.source),
    )  # fmt: skip
    usd = [_exact("S3 requests of peers for batches", sum(batches) * prices.get_usd)]
    instance = known.instances[plan.instance_type]
    beyond = min(plan.threads, instance.vcpus) - instance.baseline * instance.vcpus
    family = plan.instance_type.partition(".")[0]
    if beyond > 0 and family in ("t3", "t4g"):  # unlimited by default; T2 slows down instead
        rate = known.value(f"aws.surplus_usd_per_vcpu_hour_{plan.architecture}") / 3_600
        usd.append(one.times(passes * plan.peers * beyond * rate, source="instances beyond their baseline"))
    return Side(terms=terms, usd=tuple(usd))


def fits(job: Job, plan: Plan, calibration: Calibration, known: Assumptions) -> bool:
    """Whether what was measured of the model's memory fits where the plan computes."""
    needed_mb = MEMORY_ROOM * calibration.peak_bytes / 2**20
    if plan.service == "lambda":
        return plan.memory_mb >= needed_mb
    return known.instances[plan.instance_type].gb * 1_024 >= needed_mb + 512  # the system's own


def _transitions_usd(job: Job, plan: Plan, found: Shares, reducers: int, seconds: float, prices: Prices) -> float:
    if plan.express:
        express = job.prices["step_functions"]
        hours = plan.peers * seconds * EXPRESS_MB / 1_024 / 3_600
        return plan.peers * express["express_request"].usd + hours * express["express_gb_hour"].usd
    return of_a_round(plan, found.everyone, reducers) * prices.transition_usd


def of_a_round(plan: Plan, workers: int, reducers: int) -> int:
    """State transitions of all peers' executions of a round, of so many invocations; without retries. Where nothing is
    added up, the machine has no states for it."""
    return transitions(
        Mode(plan.state_machine),
        executions=plan.peers,
        invocations=workers + reducers,
        children=workers if plan.state_machine == "distributed_map" else 0,
        reducer=bool(reducers),
        reductions=plan.peers if reducers else 0,
    )


def _requests_usd(job: Job, plan: Plan, found: Shares, fresh: int, reducers: int, prices: Prices) -> float:
    """Weights, batches and results; and the peers' reading of these, or of what reducers made of them."""
    read_home = plan.peers if reducers else found.everyone
    batches = sum(job.in_a_round(plan.peers))
    gets = fresh + batches + read_home + (found.everyone + reducers if reducers else 0)
    return gets * prices.get_usd + (found.everyone + reducers) * prices.put_usd


def _exact(name: str, usd: float) -> Term:
    return Term(name=name, part="compute", value=usd, spread=0.0, source="price book")
