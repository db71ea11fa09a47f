"""A peer's bill, in numbers that can be checked by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from contract.config import ComputeConfig
from contract.prices import Prices
from contract.runspec import RunSpec
from contract.store import StoreCounts
from peer_agent.meter import Meter, at_once, stage_usd, worker_requests
from tests.unit.test_runspec import spec

CREATED = 1_700_000_000.5
PRICES = Prices(
    run_usd_per_hour=0.8,
    lambda_usd_per_gb_second=1e-5,
    lambda_usd_per_request=2e-7,
    transition_usd=2.5e-5,
    put_usd=5e-6,
    get_usd=4e-7,
)
NOTHING = StoreCounts()


def priced(max_usd: float = 0.0, peers: int = 4, **compute: Any) -> RunSpec:
    settings = {"state_machine": "inline_map", "memory_mb": 2_048, **compute}
    run = spec((5,) * peers, aws={"max_usd": max_usd}, compute=settings)
    return dataclasses.replace(run, prices=PRICES)


def compute(**changes: Any) -> ComputeConfig:
    return ComputeConfig.model_validate({"state_machine": "inline_map", "memory_mb": 2_048, **changes})


@pytest.mark.parametrize(
    ("changes", "invocations", "expected"),
    [
        ({}, 3, 3),
        ({}, 100, 40),
        ({"concurrency": 8}, 100, 8),
        ({"concurrency": 64}, 100, 40),
        ({"state_machine": "distributed_map"}, 100, 100),
        ({"state_machine": "distributed_map", "concurrency": 64}, 100, 64),
        ({"state_machine": "distributed_map"}, 30_000, 10_000),
        ({"state_machine": "parallel", "concurrency": 8}, 100, 100),
    ],
)
def test_no_more_workers_are_billed_than_can_run_at_once(
    changes: dict[str, Any], invocations: int, expected: int
) -> None:
    assert at_once(compute(**changes), invocations) == expected


def test_a_stage_by_hand() -> None:
    # 10 workers of 2 GB for 6 s; 10 requests with 2 reads and 1 write each; 4 + 3 x 10 transitions.
    expected = 10 * 2 * 6 * 1e-5 + 10 * (2e-7 + 2 * 4e-7 + 5e-6) + 34 * 2.5e-5
    assert stage_usd(PRICES, compute(), invocations=10, executions=1, seconds=6.0) == pytest.approx(expected)
    assert stage_usd(PRICES, compute(), invocations=0, executions=0, seconds=6.0) == 0.0
    several = stage_usd(
        PRICES, compute(), invocations=10, executions=1, seconds=6.0, requests=worker_requests(priced(), 8)
    )
    assert several == pytest.approx(expected + 10 * 7 * PRICES.get_usd), "each batch is read once"


def test_reducers_are_on_the_bill() -> None:
    """64 workers and 9 reducers, which read at most 22 objects each and write one, in five states more."""
    plain = stage_usd(PRICES, compute(), invocations=64, executions=1, seconds=6.0)
    reduced = stage_usd(PRICES, compute(), invocations=73, executions=1, seconds=6.0, reducers=9)
    assert reduced - plain == pytest.approx(9 * (2e-7 + 22 * 4e-7 + 5e-6 + 3 * 2.5e-5) + 5 * 2.5e-5)
    meter = Meter(priced(), now=CREATED)
    meter.begin(64, 100.0, 9)
    assert meter.usd(CREATED, 106.0, NOTHING) == pytest.approx(reduced)
    meter.end(73, 1, 106.0, reducers=9)
    assert meter.usd(CREATED, 900.0, NOTHING) == pytest.approx(reduced)


def test_it_is_never_below_what_aws_would_bill() -> None:
    """Workers one after another, at most 40 at once, each billed for its own time: their sum fits into the stage."""
    lasted = [1.0 + 0.1 * (number % 7) for number in range(100)]
    free = [0.0] * 40
    for seconds in lasted:
        free.sort()
        free[0] += seconds
    billed = sum(lasted) * 2 * 1e-5 + 100 * 2e-7 + (1 + 100) * 2.5e-5
    assert stage_usd(PRICES, compute(), invocations=100, executions=1, seconds=max(free)) >= billed


def test_a_peer_pays_its_share_of_the_hours_from_the_launch_on() -> None:
    meter = Meter(priced(), now=CREATED + 600)
    assert meter.usd(CREATED + 1_800, 0.0, NOTHING) == pytest.approx(0.8 / 4 / 2)
    assert meter.usd(CREATED - 5, 0.0, NOTHING) == 0.0, "a clock that is behind owes nothing back"
    unknown = Meter(dataclasses.replace(priced(), created=0.0), now=5_000.0)
    assert unknown.usd(5_000.0 + 3_600, 0.0, NOTHING) == pytest.approx(0.2)


def test_stages_add_up_and_the_one_under_way_counts() -> None:
    meter = Meter(priced(), now=CREATED)
    whole = stage_usd(PRICES, priced().config.compute, invocations=2, executions=1, seconds=10.0)
    meter.begin(2, 100.0)
    assert meter.usd(CREATED, 110.0, NOTHING) == pytest.approx(whole)
    meter.end(2, 1, 110.0)
    assert meter.usd(CREATED, 500.0, NOTHING) == pytest.approx(whole)
    meter.begin(2, 500.0)
    meter.end(3, 1, 510.0)  # one was retried
    again = stage_usd(PRICES, priced().config.compute, invocations=3, executions=1, seconds=10.0)
    assert meter.usd(CREATED, 510.0, NOTHING) == pytest.approx(whole + again)


def test_an_invocation_that_takes_steps_reads_more() -> None:
    """Weights, manifest, moments and two batches of the five; moments are written beside the update."""
    steps = spec((5,) * 4, algorithm={"name": "local_sgd"}, batches_per_round=2)
    assert worker_requests(steps) == (5, 2)
    assert worker_requests(spec((5, 7), algorithm={"name": "local_sgd"}, batches_per_round=0)) == (10, 2)
    assert worker_requests(priced()) == (2, 1)
    meter = Meter(dataclasses.replace(steps, prices=PRICES), now=CREATED)
    meter.begin(1, 0.0)
    meter.end(1, 1, 10.0)
    plain = stage_usd(PRICES, steps.config.compute, invocations=1, executions=1, seconds=10.0)
    begun = steps.created
    assert meter.usd(begun, 10.0, NOTHING) == pytest.approx(plain + 3 * 4e-7 + 5e-6)


def test_the_own_requests_to_s3_count() -> None:
    counts = StoreCounts(gets=10, puts=3, lists=2, deletes=7)
    assert Meter(priced(), now=CREATED).usd(CREATED, 0.0, counts) == pytest.approx(10 * 4e-7 + 5 * 5e-6)


def test_computing_in_the_own_process_costs_hours_only() -> None:
    meter = Meter(priced(service="local"), now=CREATED)
    meter.begin(2, 0.0)
    assert meter.usd(CREATED + 3_600, 50.0, NOTHING) == pytest.approx(0.2)
    meter.end(0, 0, 60.0)
    assert meter.usd(CREATED + 3_600, 60.0, NOTHING) == pytest.approx(0.2)


def test_the_limit_is_shared_by_all_peers() -> None:
    meter = Meter(priced(max_usd=2.0), now=CREATED)
    assert meter.limit_usd == 0.5
    assert not meter.reached(CREATED + 2.49 * 3_600, 0.0, NOTHING)
    assert meter.reached(CREATED + 2.51 * 3_600, 0.0, NOTHING)


def test_a_bill_as_if_on_aws_ends_nothing() -> None:
    spec = priced(max_usd=2.0)
    rehearsal = Meter(dataclasses.replace(spec, prices=dataclasses.replace(PRICES, as_if_on_aws=True)), now=CREATED)
    assert rehearsal.limit_usd is None
    assert not rehearsal.reached(CREATED + 9 * 3_600, 0.0, NOTHING)
    assert rehearsal.usd(CREATED + 3_600, 0.0, NOTHING) == pytest.approx(0.2), "and is counted all the same"


def test_without_prices_or_without_a_limit_nothing_ends() -> None:
    free = Meter(dataclasses.replace(priced(max_usd=0.01), prices=None), now=CREATED)
    free.begin(2, 0.0)
    free.end(2, 1, 1e6)
    assert free.usd(CREATED + 1e9, 0.0, NOTHING) is None
    assert free.limit_usd is None
    assert not free.reached(CREATED + 1e9, 0.0, NOTHING)
    assert not Meter(priced(), now=CREATED).reached(CREATED + 1e9, 0.0, NOTHING)
