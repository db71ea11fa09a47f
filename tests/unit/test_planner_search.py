"""The frontier against every combination looked at one by one; the knee, the limits, and what the verdict says."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from contract.errors import ConfigError, UserError
from peerless.planner.assumptions import assumptions
from peerless.planner.choice import choose, knee, seconds_of
from peerless.planner.model import Model
from peerless.planner.planning import configured_plan, planned
from peerless.planner.search import Axes, frontier, undominated
from peerless.planner.verdict import crossover, judge, span
from tests.fakes.planning import calibration, job

#: Few enough for every combination to be predicted whole.
FEW: dict[str, tuple[Any, ...]] = {
    "service": ("lambda", "local"),
    "memory_mb": (885, 1_769, 3_538),
    "batches_per_worker": (1, 4, 16),
    "state_machine": ("inline_map", "distributed_map"),
    "express": (False, True),
    "codec": ("none", "qsgd4"),
    "topology": ("all_gather", "reduce_scatter"),
    "peers": (2, 4),
    "architecture": ("arm64", "x86_64"),
    "instance_type": ("t4g.small", "t3.small", "c7g.large"),
    "broker": ("mq.m7g.medium", "mq.m7g.large"),
}


@pytest.mark.parametrize("snap_start", [False, True])
def test_the_frontier_is_that_of_all_combinations(snap_start: bool) -> None:
    found = job(aws={"snap_start": snap_start})
    model, configured = Model(found, calibration(), assumptions()), configured_plan(found, calibration())
    every = []
    for values in itertools.product(*FEW.values()):
        given = dict(zip(FEW, values, strict=True))
        lambdas = given["service"] == "lambda"
        if given["instance_type"].startswith("t3.") == (given["architecture"] == "arm64"):
            continue
        if given["express"] and (given["state_machine"] != "inline_map"):
            continue
        threads = {885: 1, 1_769: 1, 3_538: 2}[given["memory_mb"]] if lambdas else 2
        plan = dataclasses.replace(configured, **given, threads=threads)
        if model.fits(plan):
            prediction = model.predict(plan)
            every.append((prediction.seconds, prediction.usd, None))
    expected = [(seconds, usd) for seconds, usd, _ in undominated(every)]
    got = [(plan.seconds, plan.usd) for plan in frontier(model, Axes(values=FEW), configured)]
    assert len(expected) > 4
    assert [x for point in got for x in point] == pytest.approx([x for point in expected for x in point])


def test_the_alternatives_of_a_configuration() -> None:
    found = job()
    configured = configured_plan(found, calibration())
    axes = Axes.of(configured, found.config, assumptions(), 16)
    assert axes.values["batches_per_worker"] == (1, 2, 4, 8, 16)
    assert axes.values["peers"] == (4,)
    assert not [name for name in axes.values["instance_type"] if name.startswith(("t2.", "g"))]
    whole = job(aggregation={"name": "krum", "byzantine": 0}, exchange={"topology": "all_gather"})
    assert Axes.of(configured, whole.config, assumptions(), 16).values["topology"] == ("all_gather",)
    varied = axes.varied(["peers=2,4", "compute.memory_mb=4400", "aws.express=true"], found.config)
    assert varied.values["peers"] == (2, 4)
    assert varied.values["memory_mb"] == (4_400,)
    assert varied.values["express"] == (True,)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("peers", "write KEY=VALUE,VALUE"),
        ("optimizer.lr=0.1", "write KEY=VALUE,VALUE with one of compute.service"),
        ("peers=0", "peers"),
        ("exchange.codec=zip", "exchange.codec"),
        ("compute.batches_per_worker=auto", "leave auto out"),
    ],
)
def test_a_value_that_cannot_be_tried(text: str, named: str) -> None:
    found = job()
    axes = Axes.of(configured_plan(found, calibration()), found.config, assumptions(), 16)
    with pytest.raises((UserError, ConfigError), match=named):
        axes.varied([text], found.config)


def test_what_no_other_beats() -> None:
    points = [
        (3.0, 1.0, "c"),
        (1.0, 3.0, "a"),
        (2.0, 3.0, "beaten"),
        (2.0, 2.0, "b"),
        (2.5, 2.0, "later"),
        (3.0, 1.0, "d"),
    ]
    assert undominated(points) == [(1.0, 3.0, "a"), (2.0, 2.0, "b"), (3.0, 1.0, "c")]


def test_the_knee_is_where_the_curve_bends() -> None:
    assert knee([(1, 100), (2, 10), (4, 8), (100, 7)]) == 1
    assert knee([(1, 100), (2, 60), (10, 12), (12, 2), (100, 1)]) == 3
    assert knee([(1, 100), (50, 95), (99, 2), (100, 1)]) == 3  # it bulges out: no knee, so the cheapest
    assert knee([(1, 2)]) == 0
    assert knee([(1, 2), (2, 1)]) == 1


def test_limits() -> None:
    found = job()
    whole = planned(found, calibration(), assumptions())
    plans, marks = whole.frontier, whole.marks
    assert (marks.fastest, marks.cheapest) == (0, len(plans) - 1)
    assert marks.chosen == marks.knee
    assert all(a.seconds < b.seconds and a.usd > b.usd for a, b in itertools.pairwise(plans))
    middle = plans[len(plans) // 2]
    assert choose(plans, deadline=middle.seconds).chosen == len(plans) // 2
    assert choose(plans, budget=middle.usd).chosen == len(plans) // 2
    assert choose(plans, deadline=plans[-1].seconds * 2).chosen == len(plans) - 1
    assert choose(plans, deadline=plans[0].seconds / 2).chosen is None
    assert choose(plans, deadline=middle.seconds, budget=middle.usd / 2).chosen is None
    nothing = planned(found, calibration(), assumptions(), deadline=1.0)
    assert nothing.taken is None
    assert nothing.changes == {}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7_200), ("1.5 d", 129_600)]
)
def test_a_duration(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2 weeks", "0", "-3s", "h"])
def test_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="--deadline"):
        seconds_of(text)


def best(model: Model, service: str) -> list[Any]:
    """The frontier of one service."""
    configured = configured_plan(model.job, model.calibration)
    axes = Axes.of(configured, model.job.config, model.known, max(model.job.in_a_round(4)))
    return frontier(model, Axes(values={**axes.values, "service": (service,)}), configured)


def test_a_burst_of_heavy_batches_is_where_lambda_is_faster_and_dearer() -> None:
    model = Model(job(batches_per_round=100, samples=400_000), calibration(seconds=3.0), assumptions())
    verdict = judge(model, best(model, "lambda"), best(model, "local"))
    assert not verdict.serverless_loses
    assert verdict.duty_cycle is not None
    assert 0 < verdict.duty_cycle < 1
    assert verdict.deadline_seconds is not None
    assert verdict.burst_batches is not None
    assert verdict.burst_batches < 100
    assert "It wins on time" in verdict.sentences[0]


def test_small_batches_are_where_serverless_loses() -> None:
    model = Model(job(batches_per_round=2), calibration(seconds=0.005), assumptions())
    verdict = judge(model, best(model, "lambda"), best(model, "local"))
    assert verdict.serverless_loses
    assert verdict.deadline_seconds is None
    assert verdict.sentences[0].startswith("Serverless loses here")
    assert verdict.burst_batches is None or verdict.burst_batches > 2


def test_the_burst_from_which_lambda_is_faster() -> None:
    model = Model(job(), calibration(), assumptions())
    plans = best(model, "lambda")[-1], best(model, "local")[0]
    at = crossover(model, *plans)
    assert at is not None

    def rounds(batches: int) -> tuple[float, ...]:
        config = model.job.config.model_copy(update={"batches_per_round": batches})
        other = Model(dataclasses.replace(model.job, config=config, samples=10**7), model.calibration, model.known)
        mode = "inline_map" if batches <= 40 else "distributed_map"
        first = dataclasses.replace(plans[0].plan, batches_per_worker=1, state_machine=mode, express=False)
        return tuple(other.predict(plan).round_seconds for plan in (first, plans[1].plan))

    longer, shorter = rounds(at - 1), rounds(at)
    assert longer[0] >= longer[1]
    assert shorter[0] < shorter[1]


def test_a_gpu_is_priced_by_an_assumption_that_can_be_replaced() -> None:
    known = assumptions().replaced(["gpu.g5.xlarge=100", "aws.instance_start_seconds=1e-9"])
    found = dataclasses.replace(job(), validation_samples=0)
    model = Model(found, calibration(), known)
    verdict = judge(model, best(model, "lambda"), best(model, "local"))
    gpu = next(each for each in verdict.gpus if each.instance_type == "g5.xlarge")
    assert gpu.seconds == pytest.approx(20 * 64 * 0.5 / 100)
    assert gpu.usd == pytest.approx(gpu.seconds / 3_600 * 1.006)
    assert any("g5.xlarge" in sentence and "--assume" in sentence for sentence in verdict.sentences)


def test_an_invocation_must_end_in_time() -> None:
    found = job(compute={"timeout_seconds": 4})
    model, configured = Model(found, calibration(), assumptions()), configured_plan(job(), calibration())
    axes = Axes(values={**FEW, "service": ("lambda",), "memory_mb": (1_769,), "peers": (4,)})
    assert {plan.plan.batches_per_worker for plan in frontier(model, axes, configured)} <= {1, 4}
    none = job(compute={"timeout_seconds": 1})
    assert frontier(Model(none, calibration(seconds=0.6), assumptions()), axes, configured) == []


def test_times_for_people() -> None:
    assert [span(value) for value in (5, 119, 600, 9_000)] == ["5 s", "119 s", "10 min", "2.5 h"]
