"""Seconds and US dollars of a plan on AWS, per round and to the end, each with its error band. Pure.

A round is the slowest peer's gradients and then the exchange, one after the other, as in synchronous mode. To the end
means until the epoch limit, or until the wanted accuracy where a run has shown how many rounds that takes. What costs
by the hour counts from the instances' start to the last round; what a deployment costs while it stands is not in it.

A band is one standard deviation to either side: of every term its own (a measurement's scatter, or what an assumption
admits), added up as independent. Prices are exact.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contract.config import RunConfig
from contract.errors import UserError
from contract.prices import Prices
from infra.settings import Settings
from peerless import cost
from peerless.launch.deployed import settings_for
from peerless.planner import workers
from peerless.planner.assumptions import Assumptions
from peerless.planner.calibration import Calibration
from peerless.planner.exchanging import exchange
from peerless.planner.job import Job
from peerless.planner.plan import Plan
from peerless.planner.refine import corrected
from peerless.planner.terms import Term, least_sure, spread, total
from peerless.planner.workers import Side

#: A forward pass alone, in forward and backward passes.
FORWARD = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a plan takes and costs. Spreads are relative standard deviations."""

    plan: Plan
    rounds: int
    round_seconds: float
    round_spread: float
    round_usd: float
    """With the share of what costs by the hour."""
    seconds: float
    """To the end."""
    seconds_spread: float
    usd: float
    usd_spread: float
    terms: tuple[Term, ...]
    """Seconds of a round."""
    parts: tuple[Term, ...]
    """US dollars to the end."""

    @property
    def unsure(self) -> str:
        """Where most of the time's band comes from."""
        found = least_sure(self.terms)
        return f"{found.name}: {found.source}" if found else "nothing"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "plan": self.plan.described(),
            "rounds": self.rounds,
            "round_seconds": self.round_seconds,
            "round_seconds_band": band(self.round_seconds, self.round_spread),
            "round_usd": self.round_usd,
            "seconds": self.seconds,
            "seconds_band": band(self.seconds, self.seconds_spread),
            "usd": self.usd,
            "usd_band": band(self.usd, self.usd_spread),
            "band_from": self.unsure,
            "terms": [dataclasses.asdict(term) for term in self.terms],
            "parts": {term.name: term.value for term in self.parts},
        }


class Model:
    """Predicts plans for one job. Raises UserError for an instance type or price that it does not know."""

    def __init__(
        self, job: Job, calibration: Calibration, known: Assumptions, *, accuracy: float | None = None
    ) -> None:
        """`accuracy` (a share) ends the run where it was reached by the run that the calibration was refined from."""
        self.job, self.calibration, self.known = job, calibration, known
        self._accuracy = accuracy
        self._prices = functools.lru_cache(maxsize=None)(self._priced)
        self._compute = functools.lru_cache(maxsize=None)(self._computed)
        self._exchange = functools.lru_cache(maxsize=None)(self._exchanged)

    def predict(self, plan: Plan) -> Prediction:
        """All of it."""
        self._check(plan)
        compute, exchanged = self.sides(plan)
        terms = (*compute.terms, *exchanged.terms)
        rounds = self.rounds(plan.peers)
        end = [term.times(rounds) for term in terms] + self._around(plan, compute)
        hourly = self._prices(_hourly_key(plan, self.job.config)).run_usd_per_hour / 3_600
        usd = [term.times(rounds) for term in (*compute.usd, *exchanged.usd)] + list(compute.once_usd)
        standing = Term(
            name="instances, broker and what else costs by the hour", part="exchange", value=hourly * total(end),
            spread=spread(end), source="price book",
        )  # fmt: skip
        parts = (*usd, standing)
        each = total(terms)
        return Prediction(
            plan=plan,
            rounds=rounds,
            round_seconds=each,
            round_spread=spread(terms),
            round_usd=total([*compute.usd, *exchanged.usd]) + hourly * each,
            seconds=total(end),
            seconds_spread=spread(end),
            usd=total(parts),
            usd_spread=spread(parts),
            terms=terms,
            parts=parts,
        )

    def sides(self, plan: Plan) -> tuple[Side, Side]:
        """Computing gradients, and exchanging them, each with what measured runs have shown."""
        # What one side does not depend on is left out, so that alternatives share it.
        plain = dataclasses.replace(plan, codec="none", topology="all_gather", broker="")
        compute = self._compute(plain)
        bare = dataclasses.replace(
            plan, memory_mb=0, threads=1, batches_per_worker=1, state_machine="", express=False, broker=""
        )
        return compute, self._exchange(bare)

    def rounds(self, peers: int) -> int:
        """Until the end. Raises UserError for an accuracy that no run has shown, or with other peers."""
        limit = self.job.rounds(peers)
        if self._accuracy is None:
            return limit
        if peers != self.job.config.peers:
            raise UserError(
                "--target-accuracy: rounds are known for the configured peers alone; leave --vary peers out"
            )
        found = self.calibration.rounds_to(self._accuracy)
        if found is None:
            shown = max((pair[1] for pair in self.calibration.accuracy), default=None)
            told = "no run is known" if shown is None else f"{self.calibration.accuracy_run} reached {shown:.2%}"
            raise UserError(
                f"--target-accuracy {self._accuracy:.2%}: {told}; name a run that got so far with --from-run RUN"
            )
        return min(found, limit)

    def fits(self, plan: Plan) -> bool:
        """Whether the plan has the memory that the model was measured to need."""
        return workers.fits(self.job, plan, self.calibration, self.known)

    def usd_per_hour(self, plan: Plan) -> float:
        """What costs by the hour while the plan trains."""
        return self._prices(_hourly_key(plan, self.job.config)).run_usd_per_hour

    def once(self, plan: Plan) -> Sequence[Term]:
        """Seconds before the first round and beside the rounds."""
        return self._around(plan, self.sides(plan)[0])

    def _around(self, plan: Plan, compute: Side) -> list[Term]:
        """Seconds beside the rounds: the start, and validations, which everyone waits for."""
        start = self.known["aws.instance_start_seconds"]
        started = Term(
            name="instances' start", part="exchange", value=start.value, spread=start.spread, source=start.source
        )
        local = dataclasses.replace(plan, service="local", threads=self.known.instances[plan.instance_type].vcpus)
        one = workers.step(self.job, local, self.calibration, self.known)
        passes = self.job.validation_samples / self.job.config.batch_size
        passes *= self.job.validations(self.rounds(plan.peers), plan.peers)
        return [started, *compute.once, one.times(FORWARD * passes)]

    def _computed(self, plan: Plan) -> Side:
        prices = self._prices(_hourly_key(plan, self.job.config))
        by = workers.by_lambda if plan.service == "lambda" else workers.by_instances
        return self._corrected(by(self.job, plan, self.calibration, self.known, prices), plan)

    def _exchanged(self, plan: Plan) -> Side:
        prices = self._prices(_hourly_key(plan, self.job.config))
        return self._corrected(exchange(self.job, plan, self.known, prices), plan)

    def _corrected(self, side: Side, plan: Plan) -> Side:
        """As runs on AWS have shown it; what steps cost goes with what they take."""
        where = f"aws.{plan.service}"
        usd = tuple(corrected(self.calibration, where, [term])[0] if term.part == "step" else term for term in side.usd)
        return dataclasses.replace(side, terms=corrected(self.calibration, where, side.terms), usd=usd)

    def _priced(self, plan: Plan) -> Prices:
        return cost.run_prices(_settings(self.job.config, plan), self.job.prices)

    def _check(self, plan: Plan) -> None:
        if plan.instance_type not in self.known.instances:
            there = ", ".join(self.known.instances)
            raise UserError(f"aws.instance_type {plan.instance_type}: the planner knows {there}; name one of them")


def band(value: float, relative: float) -> list[float]:
    """One standard deviation to either side; never below 0."""
    return [max(0.0, value * (1 - relative)), value * (1 + relative)]


def _hourly_key(plan: Plan, config: RunConfig) -> Plan:
    """The plan, without what prices do not depend on."""
    memory = plan.memory_mb if config.aws.snap_start else 1_769
    return dataclasses.replace(
        plan, memory_mb=memory, threads=1, batches_per_worker=1, state_machine="", express=False, codec="",
        topology="", broker=plan.broker or config.aws.broker_instance_type,
    )  # fmt: skip


def _settings(config: RunConfig, plan: Plan) -> Settings:
    aws = config.aws.model_copy(
        update={
            "architecture": plan.architecture,
            "instance_type": plan.instance_type,
            "broker_instance_type": plan.broker,
            # Deploying on x86_64 asks for one; a price does not.
            "torch_index": config.aws.torch_index or "any",
        }
    )
    compute = config.compute.model_copy(update={"service": plan.service, "memory_mb": plan.memory_mb})
    return settings_for(config.model_copy(update={"aws": aws, "compute": compute, "peers": plan.peers}))
