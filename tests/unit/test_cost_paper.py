"""The paper's two formulas against its own Tables II and III, and the parts that they leave out, worked out by hand."""

from __future__ import annotations

import math

import pytest

from contract.errors import ConfigError
from peerless.cost import Price
from peerless.cost.paper import (
    Used,
    full_cost_usd,
    instance_cost_usd,
    instance_usd_per_second,
    serverless_cost_usd,
    worker_usd_per_second,
)
from peerless.reproduce.tables import TABLE_2, TABLE_3, Instance, Serverless


def truncated(usd: float) -> float:
    """To five decimals, as the paper prints."""
    return math.floor(usd * 1e5) / 1e5


@pytest.mark.parametrize(
    "column", [*TABLE_2, *TABLE_3], ids=lambda column: f"{column.instance_type}-{column.batch_size}"
)
def test_the_formulas_give_what_the_paper_prints(column: Serverless | Instance) -> None:
    """Seven of eight do. With serverless and batches of 128 the table's own figures give 0.03554, not 0.03451."""
    if isinstance(column, Serverless) and column.batch_size == 128:
        assert column.usd == 0.03451
        assert truncated(column.formula_usd()) == 0.03554
    else:
        assert truncated(column.formula_usd()) == column.usd


def test_the_factor_of_5_34_belongs_to_batches_of_64() -> None:
    """The paper's text gives it for 1024, where its own tables give 5.36."""
    factors = {column.batch_size: column.usd / other.usd for column, other in zip(TABLE_2, TABLE_3, strict=True)}
    assert round(factors[64], 2) == 5.34
    assert round(factors[1024], 2) == 5.36
    assert round(1 - TABLE_2[3].seconds / TABLE_3[3].seconds, 4) == 0.9734


def test_the_formulas_by_hand() -> None:
    assert instance_cost_usd(0.5, 4.0) == 2.0
    assert serverless_cost_usd(3, 2.0, 0.5, 4.0) == 26.0
    assert serverless_cost_usd(0, 2.0, 0.5, 4.0) == instance_cost_usd(0.5, 4.0)


@pytest.mark.parametrize(
    "arguments", [(-1, 1.0, 1.0, 1.0), (1, -1.0, 1.0, 1.0), (1, 1.0, -1.0, 1.0), (1, 1.0, 1.0, math.nan)]
)
def test_what_is_negative_is_refused(arguments: tuple[int, float, float, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        serverless_cost_usd(*arguments)


BOOK = {
    section: {name: Price(usd=usd, date="", sure="H", source="this test")}
    for section, name, usd in (
        ("lambda_gb_second", "arm64", 0.25),
        ("lambda", "request", 0.5),
        ("step_functions", "transition", 2.0),
        ("broker_node_hour", "mq.m7g.medium", 7200.0),
        ("instance_hour", "t2.small", 3600.0),
    )
} | {"s3": {name: Price(usd=usd, date="", sure="H", source="this test") for name, usd in (("put", 3.0), ("get", 0.1))}}


def test_the_full_model_prices_every_part() -> None:
    used = Used(
        seconds=10.0,
        instance_type="t2.small",
        memory_mb=2048,
        invocations=4,
        worker_seconds=30.0,
        initialisation_seconds=8.0,
        transitions=5,
        puts=2,
        gets=20,
        peers=4,
    )
    assert full_cost_usd(used, BOOK) == pytest.approx(
        {
            "instance": 10.0,
            "workers": 15.0,
            "initialisation": 4.0,
            "requests": 2.0,
            "transitions": 10.0,
            "s3": 8.0,
            "broker": 5.0,
        }
    )


def test_instance_and_workers_alone_are_formula_1() -> None:
    """Where every worker is billed for the whole time, as the formula has it."""
    column = TABLE_2[0]
    parts = full_cost_usd(
        Used(
            seconds=column.seconds,
            instance_type=column.instance_type,
            memory_mb=column.memory_mb,
            worker_seconds=column.batches * column.seconds,
        )
    )
    assert parts["instance"] + parts["workers"] == pytest.approx(
        serverless_cost_usd(
            column.batches,
            worker_usd_per_second(column.memory_mb),
            instance_usd_per_second(column.instance_type),
            column.seconds,
        )
    )


def test_the_papers_prices_are_those_of_the_book() -> None:
    """arm64 for Lambda, to 1.2%: the paper's figures for 2800 to 1700 MB lie a little below the list's."""
    for column in TABLE_2:
        assert worker_usd_per_second(column.memory_mb) == pytest.approx(column.lambda_usd_per_second, rel=0.012)
        assert instance_usd_per_second(column.instance_type) == pytest.approx(column.ec2_usd_per_second, rel=1e-3)
    for other in TABLE_3:
        assert instance_usd_per_second(other.instance_type) == pytest.approx(other.ec2_usd_per_second, rel=1e-3)


def test_what_has_no_price_is_named() -> None:
    with pytest.raises(ConfigError, match=r"t9\.huge"):
        full_cost_usd(Used(seconds=1.0, instance_type="t9.huge"))
