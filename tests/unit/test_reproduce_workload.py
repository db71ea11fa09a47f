"""The model of the paper's own workload: how well it explains Table II, and what the search finds with it."""

from __future__ import annotations

import itertools

import pytest

from contract.errors import ConfigError
from peerless.reproduce.tables import PEERS, SAMPLES_PER_PEER, TABLE_1, TABLE_2, TABLE_3
from peerless.reproduce.workload import (
    LARGEST_MB,
    Choice,
    baseline,
    computing,
    plan,
    predicted_seconds,
    search,
    smallest_mb,
    start_seconds,
    time_reduction,
    vcpu_seconds,
)


def test_the_typed_tables_hold_together() -> None:
    assert PEERS * SAMPLES_PER_PEER == 60_000
    for column, other in zip(TABLE_2, TABLE_3, strict=True):
        assert column.batch_size == other.batch_size
        assert column.batches == -(-SAMPLES_PER_PEER // column.batch_size)
    stages = {"compute", "send", "receive", "update", "convergence"}
    assert all(set(rows) == stages for rows in TABLE_1.values())


def test_one_thread_explains_the_times_of_table_2() -> None:
    errors = [predicted_seconds(column) / column.seconds - 1 for column in TABLE_2]
    assert max(map(abs, errors)) < 0.081
    assert 7.2 < start_seconds() < 7.4


def test_as_many_threads_as_vcpus_do_not_whatever_the_constant() -> None:
    worst = min(
        max(abs((tenths / 10 + computing(column, threads=6)) / column.seconds - 1) for column in TABLE_2)
        for tenths in range(300)
    )
    assert 0.38 < worst < 0.40


def test_the_time_reductions_that_the_papers_text_names() -> None:
    """That of eight peers is from no table, so nothing was fitted to it."""
    assert time_reduction(64, peers=4) == pytest.approx(0.9734, abs=0.002)
    assert time_reduction(128, peers=8) == pytest.approx(0.9204, abs=0.002)
    assert time_reduction(1024, peers=12) < time_reduction(1024, peers=4)


def test_the_fitted_constant_is_the_best_one() -> None:
    def squares(start: float) -> float:
        return sum(((start + computing(column)) / column.seconds - 1) ** 2 for column in TABLE_2)

    best = start_seconds()
    assert squares(best) < min(squares(best - 0.01), squares(best + 0.01))


def test_a_plan_worked_out_by_hand() -> None:
    """Batches of 128, five in each of 24 workers with one thread on one and a half vCPUs, of which one is of use."""
    made = plan(
        Choice(batch_size=128, batches_per_worker=5, memory_mb=2560, threads=1, instance_type="t2.small"), start=7.0
    )
    assert vcpu_seconds(128) == pytest.approx(5.6)
    assert made.workers == 24
    assert made.seconds == pytest.approx(7.0 + 5 * 5.6)
    assert made.parts["workers"] == pytest.approx((24 * 7.0 + 118 * 5.6) * 2.5 * 0.0000133334)
    assert made.parts["instance"] == pytest.approx(35.0 * 0.0230 / 3600)
    assert made.parts["transitions"] == pytest.approx((24 + 1) * 0.000025)
    assert made.parts["requests"] == pytest.approx(24 * 0.0000002)
    assert made.parts["s3"] == pytest.approx(25 * 0.000005 + (118 + 48) * 0.0000004)
    assert made.usd == pytest.approx(sum(made.parts.values()))
    assert made.reduction == pytest.approx(1 - 35.0 / 394.8)
    assert made.factor == pytest.approx(made.usd / (394.8 * 0.00002578))


def test_more_workers_than_an_inline_map_takes_cost_more_transitions() -> None:
    choice = Choice(batch_size=128, batches_per_worker=2, memory_mb=2560, threads=1)
    assert plan(choice).workers == 59
    assert plan(choice).parts["transitions"] == pytest.approx((2 * 59 + 1) * 0.000025)


def test_the_cheapest_plan_is_nine_tenths_faster_and_costs_less_than_twice_as_much() -> None:
    found = search()
    cheapest = found[0]
    assert cheapest.reduction >= 0.9
    assert cheapest.factor <= 1.8
    assert cheapest.choice.memory_mb <= LARGEST_MB
    with_margin = search(reduction=1 - 0.1 / 1.081)[0]
    assert 1.081 * with_margin.seconds <= 0.1 * baseline().seconds
    assert with_margin.factor <= 1.8


def test_with_batches_of_64_the_start_keeps_the_factor_above_two_point_two() -> None:
    """What the paper's start and transfers cost there; half of them would do."""
    assert 2.2 < search(batch_sizes=[64])[0].factor < 2.3
    assert search(batch_sizes=[64], start=start_seconds() / 2)[0].factor < 2.2


def test_the_frontier_holds_nothing_that_another_plan_beats() -> None:
    found = search()
    assert len(found) > 10
    assert all(a.usd < b.usd and a.seconds > b.seconds for a, b in itertools.pairwise(found))
    assert all(made.reduction >= 0.9 for made in found)
    assert all(
        made.choice.memory_mb >= smallest_mb(made.choice.batch_size, made.choice.batches_per_worker) for made in found
    )


def test_faster_processors_and_less_time_move_it_the_right_way() -> None:
    cheapest = search()[0].factor
    assert search(speed=1.5)[0].factor < cheapest
    assert search(reduction=0.95)[0].factor > cheapest
    assert search(most_threads=1)[0].factor > cheapest
    assert search(reduction=0.99) == []


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(batch_size=100, batches_per_worker=1, memory_mb=4096, threads=2), "batches of 100"),
        (Choice(batch_size=1024, batches_per_worker=1, memory_mb=1769, threads=1), "4400 MB"),
        (Choice(batch_size=64, batches_per_worker=2, memory_mb=1700, threads=1), "2216 MB"),
    ],
)
def test_an_impossible_choice_is_refused(choice: Choice, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(choice)
