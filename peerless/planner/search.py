"""All alternatives of a configuration, and those that no other beats in both time and money.

Nothing is sampled: every combination is looked at. A run's seconds are a sum of two sides (gradients, exchange), and
its US dollars are what both sides use plus the hours at one price; so within plans of the same price by the hour, a
side that another side of the same beats in both can be in no plan of the frontier, and only what is left is combined.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from contract.codec import codec
from contract.computing import MB_PER_VCPU
from contract.config import RunConfig, with_overrides
from contract.errors import ConfigError, UserError
from peerless.cost.book import Book
from peerless.planner.assumptions import Assumptions
from peerless.planner.job import prices_of
from peerless.planner.model import Model, Prediction
from peerless.planner.plan import KEYS, Plan
from peerless.planner.terms import total
from peerless.planner.workers import shares
from statemachines import choose_mode

#: Memory settings of a worker: half a vCPU, whole ones, and the most there is.
MEMORY_MB = (885, 1_769, 3_538, 5_307, 7_076, 10_240)
#: What fixes a plan's price by the hour, and what of the rest belongs to which side.
HOURLY = ("service", "peers", "architecture", "instance_type", "broker")
COMPUTE = ("memory_mb", "batches_per_worker", "state_machine", "express")
EXCHANGE = ("codec", "topology")
#: An Express execution lasts no longer.
EXPRESS_SECONDS = 300
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The values of each field of a plan that are tried; `threads` follow from the others."""

    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, configured: Plan, config: RunConfig, known: Assumptions, batches: int) -> Axes:
        """What there is to choose. Peers stay as they are: their number changes the training itself, not only its price
        (`--vary peers=2,4,8` tries others). Aggregations that need whole gradients keep their topology."""
        shared = config.mode == "async" or config.aggregation.name == "krum" or config.aggregation.clip_norm > 0
        priced = prices_of(config)
        modes = ("inline_map", "distributed_map", "parallel")
        return cls(
            values={
                "service": ("lambda", "local"),
                "memory_mb": tuple(sorted({*MEMORY_MB, configured.memory_mb})),
                "batches_per_worker": _powers(batches, configured.batches_per_worker),
                "state_machine": modes[:2] if config.algorithm.name != "gradient_averaging" else modes,
                "express": (False, True),
                "codec": ("none", "fp16", "qsgd8", "qsgd4"),
                "topology": (configured.topology,) if shared else ("all_gather", "reduce_scatter"),
                "peers": (configured.peers,),
                "architecture": ("arm64", "x86_64"),
                "instance_type": tuple(
                    name for name in known.instances if _offered(name, configured.instance_type, priced)
                ),
                "broker": tuple(sorted({*priced["broker_node_hour"], configured.broker})),
            }
        )

    def varied(self, given: Sequence[str], config: RunConfig) -> Axes:
        """With the `KEY=V1,V2` of `--vary` in place of its values; one value holds a key. Raises UserError."""
        fields, values = {key: field for field, key in KEYS.items()}, dict(self.values)
        for text in given:
            key, equals, listed = text.partition("=")
            field = fields.get(key)
            if not equals or field not in values:
                there = ", ".join(KEYS[name] for name in self.values)
                raise UserError(f"--vary {text}: write KEY=VALUE,VALUE with one of {there}")
            values[field] = tuple(_checked(key, each.strip(), config) for each in listed.split(","))
        return Axes(values=values)

    def count(self) -> int:
        """Combinations, those that mean the same or nothing included."""
        found = 1
        for each in self.values.values():
            found *= len(each)
        return found


def frontier(model: Model, axes: Axes, configured: Plan) -> list[Prediction]:
    """The plans that no other beats in seconds and US dollars to the end, the fastest first."""
    left: list[tuple[float, float, Plan]] = []
    computing: dict[tuple[str, int, str, int, str], list[Plan]] = {}
    # A snapshot's price by the hour goes with its memory.
    outer = (*HOURLY, "memory_mb") if model.job.config.aws.snap_start else HOURLY
    free = [name for name in COMPUTE if name not in outer]
    for fixed in _combinations(axes, outer):
        base = dataclasses.replace(configured, **fixed)
        if not _consistent(base):
            continue
        # Workers care for no machine but their own, and nobody but the bill for the broker's.
        own = base.instance_type if base.service == "local" else ""
        key = (base.service, base.peers, base.architecture, base.memory_mb, own)
        if key not in computing:
            computing[key] = _best(model, _computing(model, base, axes, free), 0)
        compute = [
            dataclasses.replace(one, instance_type=base.instance_type, broker=base.broker) for one in computing[key]
        ]
        exchanged = _best(model, (dataclasses.replace(base, **each) for each in _combinations(axes, EXCHANGE)), 1)
        around = None
        for one, other in itertools.product(compute, exchanged):
            plan = dataclasses.replace(one, **{name: getattr(other, name) for name in EXCHANGE})
            if around is None:  # alike for all plans of one price by the hour, but for the cold start
                around = total(model.once(plan)) - total(model.sides(plan)[0].once)
            seconds, usd = _to_the_end(model, plan, around)
            left.append((seconds, usd, plan))
    return [model.predict(plan) for _, _, plan in undominated(left)]


def undominated(found: Sequence[tuple[float, float, T]]) -> list[tuple[float, float, T]]:
    """Those of (seconds, USD, anything) that no other is at least as good as in both and better in one; by seconds."""
    best, kept = float("inf"), []
    for each in sorted(found, key=lambda item: (item[0], item[1])):
        if each[1] < best:
            best = each[1]
            kept.append(each)
    return kept


def _to_the_end(model: Model, plan: Plan, around: float) -> tuple[float, float]:
    """Seconds and US dollars, as `Model.predict` adds them up, without its bands."""
    compute, exchanged = model.sides(plan)
    rounds = model.rounds(plan.peers)
    seconds = rounds * (compute.seconds + exchanged.seconds) + total(compute.once) + around
    usd = rounds * (total(compute.usd) + total(exchanged.usd)) + total(compute.once_usd)
    return seconds, usd + model.usd_per_hour(plan) / 3_600 * seconds


def _best(model: Model, plans: Iterable[Plan], side: int) -> list[Plan]:
    """Of plans that differ in one of the two sides alone, those that may be part of a plan on the frontier."""
    found = []
    for plan in plans:
        made = model.sides(plan)[side]
        rounds = model.rounds(plan.peers)
        seconds = rounds * made.seconds + total(made.once)
        found.append((seconds, rounds * total(made.usd) + total(made.once_usd), plan))
    return [plan for _, _, plan in undominated(found)]


def _computing(model: Model, base: Plan, axes: Axes, free: Sequence[str]) -> Iterator[Plan]:
    """All ways to compute gradients that can be run."""
    if base.service == "local":
        plan = dataclasses.replace(base, threads=model.known.instances[base.instance_type].vcpus)
        yield from [plan] if model.fits(plan) else []
        return
    config = model.job.config
    batches = 1 if model.job.takes_steps else max(model.job.in_a_round(base.peers))
    for fixed in _combinations(axes, free):
        plan = dataclasses.replace(base, **fixed)
        plan = dataclasses.replace(plan, threads=max(1, plan.memory_mb // MB_PER_VCPU))
        if plan.batches_per_worker > batches or (plan.express and plan.state_machine != "inline_map"):
            continue
        try:
            choose_mode(plan.state_machine, batches, config.compute.tolerated_failures, config.compute.concurrency)
        except ConfigError:
            continue  # more batches than this form of a state machine takes
        if model.fits(plan) and _in_time(model, plan):
            yield plan


def _in_time(model: Model, plan: Plan) -> bool:
    """Whether an invocation ends within its limit, and an Express execution within five minutes, with room to spare."""
    side = model.sides(plan)[0]
    waves = shares(model.job, plan, model.known).waves
    invocation = sum(term.value for term in side.terms if term.part == "step") / waves
    limit = model.job.config.compute.timeout_seconds
    return 2 * invocation <= limit and not (plan.express and 2 * side.seconds > EXPRESS_SECONDS)


def _offered(name: str, configured: str, prices: Book) -> bool:
    """Whether an instance type has a price; T2 slows down where it works for long, so only where it is configured."""
    return name == configured or (name in prices["instance_hour"] and not name.startswith("t2."))


def _consistent(plan: Plan) -> bool:
    """Instances and workers are of one architecture; Graviton's types have a g behind their generation's number."""
    family = plan.instance_type.partition(".")[0]
    return family.endswith("g") == (plan.architecture == "arm64")


def _combinations(axes: Axes, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*(axes.values[name] for name in names)):
        yield dict(zip(names, chosen, strict=True))


def _powers(batches: int, configured: int) -> tuple[int, ...]:
    """1, 2, 4 … up to a whole round, the round itself, and the configured number."""
    found = {1, batches, min(batches, configured)}
    size = 2
    while size < batches:
        found.add(size)
        size *= 2
    return tuple(sorted(found))


def _checked(key: str, text: str, config: RunConfig) -> Any:
    """The value that a configuration would have with it. Raises ConfigError."""
    held: Any = with_overrides(config.model_dump(mode="json"), [f"{key}={text}"], "--vary")
    for name in key.split("."):
        held = getattr(held, name)
    try:
        toml = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        toml = text
    if toml == "auto":
        raise UserError(f"--vary {key}={text}: the planner compares fixed values; leave auto out")
    if key == "exchange.codec":
        codec(str(held))
    return held
