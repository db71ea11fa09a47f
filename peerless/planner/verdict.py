"""Whether serverless is worth it for a job: who wins, where the crossover lies, and what a GPU would take.

All figures are the model's own predictions of alternatives; nothing here is a rule of thumb.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peerless.planner.assumptions import Figure
from peerless.planner.model import Model, Prediction, band

#: Rounds larger than this are not asked about, in batches per peer.
LARGEST_BURST = 4_096


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The same job on one GPU instance, all data in one place."""

    instance_type: str
    seconds: float
    usd: float
    spread: float
    speed: Figure

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "instance_type": self.instance_type,
            "seconds": self.seconds,
            "seconds_band": band(self.seconds, self.spread),
            "usd": self.usd,
            "usd_band": band(self.usd, self.spread),
            "assumed": dataclasses.asdict(self.speed),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known when the best plans of both services are."""

    sentences: tuple[str, ...]
    serverless_loses: bool
    """Whether instances are both cheaper and faster than every plan with Lambda."""
    duty_cycle: float | None
    """Instances that stand ready cost more than Lambda where they are busy for less than this share of the time."""
    burst_batches: int | None
    """From so many batches per peer and round on, Lambda's round is the shorter one; None where it never is."""
    deadline_seconds: float | None
    """Only Lambda keeps a shorter deadline; None where instances are as fast."""
    gpus: tuple[Gpu, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {name: getattr(self, name) for name in ("serverless_loses", "duty_cycle", "burst_batches")}
        told |= {"deadline_seconds": self.deadline_seconds, "sentences": list(self.sentences)}
        return {**told, "gpus": [gpu.to_dict() for gpu in self.gpus]}


def judge(model: Model, by_lambda: Sequence[Prediction], by_instances: Sequence[Prediction]) -> Verdict:
    """From the frontier of each service by itself, the fastest first; either may be empty where nothing fits."""
    gpus = tuple(_gpu(model, name) for name in _gpu_types(model))
    if not by_lambda or not by_instances:
        which = "Lambda" if not by_lambda else "instances"
        told = f"No plan with {which} has the memory and time that this job needs, so there is nothing to compare."
        return Verdict(
            sentences=(told, *map(_told_gpu, gpus)), serverless_loses=not by_lambda, duty_cycle=None,
            burst_batches=None, deadline_seconds=None, gpus=gpus,
        )  # fmt: skip
    fast_l, cheap_l, fast_i, cheap_i = by_lambda[0], by_lambda[-1], by_instances[0], by_instances[-1]
    loses = fast_l.seconds >= fast_i.seconds and cheap_l.usd >= cheap_i.usd
    duty = min(1.0, cheap_i.usd / cheap_l.usd)
    sentences = [_who(loses, fast_l, cheap_l, fast_i, cheap_i)]
    deadline = None if fast_l.seconds >= fast_i.seconds else fast_i.seconds
    if deadline is not None:
        sentences.append(
            f"Deadline: down to {span(deadline)} instances suffice; from there to {span(fast_l.seconds)} only Lambda "
            f"is in time (from {_cheapest_within(by_lambda, deadline).usd:.4g} USD)."
        )
    if duty < 1:
        sentences.append(
            f"Duty cycle: instances that stand ready cost as much as Lambda for such jobs where they train {duty:.0%} "
            "of the time; below that Lambda is cheaper, above it instances are. Instances that go off after each run "
            "(as Peerless's do) need no such share."
        )
    burst = crossover(model, cheap_l, fast_i)
    sentences.append(_burst(burst, max(model.job.in_a_round(cheap_l.plan.peers)), fast_i))
    return Verdict(
        sentences=(*sentences, *map(_told_gpu, gpus)), serverless_loses=loses, duty_cycle=duty, burst_batches=burst,
        deadline_seconds=deadline, gpus=gpus,
    )  # fmt: skip


def crossover(model: Model, by_lambda: Prediction, by_instances: Prediction) -> int | None:
    """The fewest batches per peer and round for which the Lambda plan, a batch per worker, has the shorter round."""
    peers = by_lambda.plan.peers

    def wins(batches: int) -> bool:
        config = model.job.config.model_copy(update={"batches_per_round": batches})
        samples = model.job.config.batch_size * batches * peers
        job = dataclasses.replace(model.job, config=config, samples=max(samples, model.job.samples))
        other = Model(job, model.calibration, model.known)
        mode = "inline_map" if batches <= 40 else "distributed_map"
        plan = dataclasses.replace(by_lambda.plan, batches_per_worker=1, state_machine=mode, express=False)
        first, second = (sum(side.seconds for side in other.sides(each)) for each in (plan, by_instances.plan))
        return first < second

    if model.job.takes_steps or not wins(LARGEST_BURST):
        return None
    low, high = 0, LARGEST_BURST  # more batches add workers to one side and passes to the other
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(middle) else (middle, high)
    return high


def span(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7_200 else f"{seconds / 3_600:.3g} h"


def _who(loses: bool, fast_l: Prediction, cheap_l: Prediction, fast_i: Prediction, cheap_i: Prediction) -> str:
    if loses:
        return (
            f"Serverless loses here: instances are cheaper ({cheap_i.usd:.4g} against {cheap_l.usd:.4g} USD) and no "
            f"slower ({span(fast_i.seconds)} against {span(fast_l.seconds)} at best)."
        )
    if cheap_l.usd <= cheap_i.usd:
        more = "and also faster" if fast_l.seconds <= fast_i.seconds else "though instances can be faster"
        return f"Serverless wins on cost: {cheap_l.usd:.4g} against {cheap_i.usd:.4g} USD, {more}."
    return (
        f"Serverless loses on cost: at least {cheap_l.usd:.4g} USD, {cheap_l.usd / cheap_i.usd:.2f} times the "
        f"{cheap_i.usd:.4g} USD of instances. It wins on time: {span(fast_l.seconds)} at best, against "
        f"{span(fast_i.seconds)}."
    )


def _burst(burst: int | None, now: int, fast_i: Prediction) -> str:
    against = f"the fastest instances ({fast_i.plan.instance_type})"
    if burst is None:
        return f"Burst: no round of up to {LARGEST_BURST:,} batches per peer is shorter with Lambda than on {against}."
    return (
        f"Burst: from {burst:,} batches per peer and round on, a round with Lambda is shorter than on {against}; "
        f"this configuration has {now:,}."
    )


def _cheapest_within(plans: Sequence[Prediction], seconds: float) -> Prediction:
    return [plan for plan in plans if plan.seconds <= seconds][-1]


def _gpu_types(model: Model) -> list[str]:
    prices = model.job.prices["instance_hour"]
    names = (name.removeprefix("gpu.") for name in model.known.figures if name.startswith("gpu."))
    return [name for name in names if name in prices]


def _gpu(model: Model, name: str) -> Gpu:
    """One instance goes through all peers' batches; no exchange, no broker."""
    job, speed, peers = model.job, model.known[f"gpu.{name}"], model.job.config.peers
    one, unsure = model.calibration.step(job.config.batch_size, 1)
    rounds = model.rounds(peers)
    passes = rounds * sum(map(job.steps, job.in_a_round(peers)))
    passes += int(job.validations(rounds, peers) * job.validation_samples / job.config.batch_size / 3)
    start = model.known["aws.instance_start_seconds"]
    busy = passes * one / speed.value
    seconds = start.value + busy
    spread = math.hypot(start.value * start.spread, busy * math.hypot(unsure, speed.spread)) / seconds
    usd = seconds / 3_600 * job.prices["instance_hour"][name].usd
    return Gpu(instance_type=name, seconds=seconds, usd=usd, spread=spread, speed=speed)


def _told_gpu(gpu: Gpu) -> str:
    low, high = band(gpu.usd, gpu.spread)
    return (
        f"One {gpu.instance_type} with all peers' data on it: {span(gpu.seconds)}, {gpu.usd:.3g} USD ({low:.2g} to "
        f"{high:.2g}), if it computes like {gpu.speed.value:g} of this machine's cores ({gpu.speed.source}; "
        f"{gpu.speed.date}; --assume gpu.{gpu.instance_type}=N)."
    )
