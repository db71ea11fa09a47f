"""The price book and what follows from it by the hour, checked against figures worked out by hand."""

from __future__ import annotations

import re

import pytest

from contract.errors import ConfigError
from infra.settings import Settings
from peerless import cost


def test_every_price_is_dated_or_says_that_it_is_not() -> None:
    prices = [price for section in cost.book().values() for price in section.values()]
    assert len(prices) > 20
    for price in prices:
        assert price.usd > 0
        assert price.sure in ("H", "M", "L")
        assert price.source
        assert re.fullmatch(r"(20\d\d-\d\d(-\d\d)?)?", price.date)


def test_a_small_deployment_while_it_trains_and_while_it_stands() -> None:
    settings = Settings(peers=4)
    training = cost.hourly(settings)
    assert training["broker, 1 x mq.m7g.medium"] == pytest.approx(0.1367)
    assert training["broker storage"] == pytest.approx(20 * 0.10 / 730)
    assert training["secrets"] == pytest.approx(5 * 0.40 / 730)
    assert training["peers, 4 x t4g.medium"] == pytest.approx(0.1344)
    assert training["public addresses"] == pytest.approx(0.02)
    assert "NAT gateway" not in training
    standing = cost.hourly(settings, training=False)
    assert set(training) - set(standing) == {"peers, 4 x t4g.medium", "peers' disks", "public addresses"}
    assert all(training[part] == usd for part, usd in standing.items())


def test_a_large_private_one() -> None:
    settings = Settings(
        peers=20,
        network="private",
        broker_instance_type="mq.m7g.large",
        broker_cluster=True,
        snap_start=True,
        memory_mb=2_048,
        instance_type="c7g.large",
    )
    training = cost.hourly(settings)
    assert training["broker, 3 x mq.m7g.large"] == pytest.approx(0.8202)
    assert training["NAT gateway"] == pytest.approx(0.05)
    assert training["peers, 20 x c7g.large"] == pytest.approx(1.45)
    assert training["SnapStart snapshots"] == pytest.approx(40 * 2 * 0.0000015046 * 3_600)  # 0.43333 USD
    without = Settings(peers=20, snap_start=True, memory_mb=2_048, reduce=False)
    assert cost.hourly(without)["SnapStart snapshots"] == pytest.approx(20 * 2 * 0.0000015046 * 3_600)
    assert "public addresses" not in training
    shared = Settings(peers=20, snap_start=True, shared_worker=True, memory_mb=2_048)
    assert cost.hourly(shared)["SnapStart snapshots"] == pytest.approx(2 * 0.0108331, abs=1e-6)


def test_without_a_broker_and_locally() -> None:
    assert not [part for part in cost.hourly(Settings(broker=False)) if "broker" in part or part == "secrets"]
    assert cost.hourly(Settings(local=True)) == {}
    assert cost.unpriced(Settings(local=True)) == []


def test_an_unknown_instance_type_is_named_and_not_guessed() -> None:
    settings = Settings(peers=2, instance_type="m8g.medium", broker_instance_type="mq.m5.large")
    assert cost.unpriced(settings) == ["broker, 1 x mq.m5.large", "peers, 2 x m8g.medium"]
    assert not [part for part in cost.hourly(settings) if "m8g" in part or "m5" in part]
    with pytest.raises(ConfigError, match=r"broker, 1 x mq\.m5\.large and of peers, 2 x m8g\.medium"):
        cost.run_prices(settings)


def test_what_a_run_counts_with() -> None:
    prices = cost.run_prices(Settings(peers=4))
    assert prices.run_usd_per_hour == pytest.approx(sum(cost.hourly(Settings(peers=4)).values()))
    assert 0.29 < prices.run_usd_per_hour < 0.32
    assert prices.lambda_usd_per_gb_second == 0.0000133334
    assert prices.lambda_usd_per_request * 1_000_000 == pytest.approx(0.20)
    assert prices.transition_usd == 0.000025
    x86 = Settings(architecture="x86_64", instance_type="t3.medium", torch_index="https://example.invalid")
    assert cost.run_prices(x86).lambda_usd_per_gb_second == 0.0000166667
