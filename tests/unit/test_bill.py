"""From counts to US dollars, with figures worked out by hand."""

from __future__ import annotations

import calendar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.config import RunConfig
from contract.errors import ConfigError
from contract.records import PeerReport
from contract.store import StoreCounts
from contract.used import Used
from infra.settings import Settings
from peerless import cost
from peerless.cost.use import Use, hours_of, measure
from peerless.launch.deployed import settings_for
from peerless.launch.local_session import tariff_of
from tests.fakes.clock import FakeClock
from tests.unit.test_result import report

NOW = float(calendar.timegm((2026, 11, 22, 12, 0, 0)))
LAUNCHER = StoreCounts(gets=5, puts=20, lists=1, deletes=9, bytes_out=2**30)
COUNTERS = {"invocations": 12, "billed_ms": 30_000, "init_ms": 6_000, "cold_starts": 2}


def configured(**changes: Any) -> RunConfig:
    compute = {"state_machine": "inline_map", "memory_mb": 2_048, "reduce": "never", **changes.pop("compute", {})}
    return RunConfig.model_validate({"peers": 2, "compute": compute, **changes})


def used(rank: int, **changes: Any) -> PeerReport:
    """Of six invocations in three executions."""
    counts = {"store_gets": 10, "store_puts": 4, "store_bytes": 2**30, "worker_gets": 18, "worker_puts": 6}
    told = {"worker_seconds": 12.0, "cold_starts": 1, "execution_seconds": 30.0}
    taken = Used(**{**counts, **told, **changes.pop("used", {})})
    return report(rank, lambda_invocations=6, state_machine_executions=3, used=taken, **changes)


def measured(config: RunConfig, counters: dict[str, Any], *reports: PeerReport, hours: float = 0.5) -> Use:
    reports = reports or (used(0), used(1))
    return measure(
        config, reports, counters=counters, counted_run="r", launcher=LAUNCHER, hours=hours, reducer=False
    )  # fmt: skip


def test_local_counts_are_those_of_the_lambda_service() -> None:
    use = measured(configured(), COUNTERS)
    assert use.lambda_invocations == 12
    assert use.lambda_gb_seconds == pytest.approx((30 + 6) * 2)
    assert use.lambda_init_gb_seconds == pytest.approx(12)
    assert (use.executions, use.state_transitions) == (6, 6 + 12)
    assert use.s3_put_requests == 21 + 2 * (4 + 6)
    assert use.s3_get_requests == 5 + 2 * (10 + 18)
    assert use.s3_gb_months == pytest.approx((1 + 2 / 2) * 0.5 / 730)
    assert use.estimated == ()


def test_on_aws_the_workers_word_counts_and_that_is_said() -> None:
    use = measured(configured(), {})
    assert use.lambda_invocations == 12
    assert use.lambda_init_gb_seconds == pytest.approx(2 * 20 * 2)
    assert use.lambda_gb_seconds == pytest.approx(2 * 12 * 2 + 80)
    assert use.estimated == ("lambda_gb_seconds", "lambda_init_gb_seconds")
    snapped = measured(configured(aws={"snap_start": True}), {})
    assert snapped.lambda_init_gb_seconds == pytest.approx(2 * 1.2 * 2)
    assert snapped.snapshots_restored_gb == pytest.approx(4)


def test_what_an_earlier_part_of_the_run_took_is_on_the_bill_too() -> None:
    """The counters are the last part's; six invocations of an earlier one are taken to have lasted as long."""
    use = measured(configured(), COUNTERS, used(0), used(1), used(0, run="before"))
    assert use.lambda_invocations == 12 + 6
    assert use.lambda_gb_seconds == pytest.approx((30 * 18 / 12 + 6) * 2)
    assert use.estimated == ("lambda_gb_seconds",)
    assert use.state_transitions == 9 + 18


def test_express_executions_are_billed_by_request_and_duration() -> None:
    use = measured(configured(aws={"express": True}), COUNTERS)
    assert (use.state_transitions, use.express_requests) == (0, 6)
    assert use.express_gb_hours == pytest.approx(60 / 3_600 * 64 / 1_024)
    distributed = measured(configured(aws={"express": True}, compute={"state_machine": "distributed_map"}), COUNTERS)
    assert (distributed.express_requests, distributed.state_transitions) == (0, 18)


def test_peers_that_compute_themselves_use_no_lambda() -> None:
    plain = [report(rank, lambda_invocations=0, state_machine_executions=0) for rank in (0, 1)]
    use = measured(configured(compute={"service": "local"}), {}, *plain)
    assert (use.lambda_invocations, use.lambda_gb_seconds, use.state_transitions) == (0, 0.0, 0)
    assert use.estimated == ()


def test_hours_are_those_of_all_parts() -> None:
    assert hours_of({"r": 100.0, "r-r2": 9_000.0}, {"r": 3_700.0, "r-r2": 10_800.0}) == pytest.approx(1.5)
    assert hours_of({"r": 100.0}, {}) == 0.0, "nothing was heard of it"
    assert hours_of({"r": 100.0}, {"r": 99.0}) == 0.0, "a clock that is behind owes nothing back"


def test_a_bill_by_hand() -> None:
    config = configured()
    tariff = cost.Tariff(prices=cost.book(), settings=Settings(peers=2), as_if_on_aws=True)
    bill = cost.Bill.of(measured(config, COUNTERS), tariff, config, NOW).to_dict()
    parts = bill["parts"]
    assert parts["gradient workers"] == pytest.approx(72 * 0.0000133334)
    assert parts["worker requests"] == pytest.approx(12 * 0.0000002)
    assert parts["state transitions"] == pytest.approx(18 * 0.000025)
    assert parts["S3 writes and lists"] == pytest.approx(41 * 0.000005)
    assert parts["S3 reads"] == pytest.approx(61 * 0.0000004)
    assert parts["S3 storage"] == pytest.approx(0.023 / 730)
    assert parts["broker"] == pytest.approx(0.1367 / 2)
    assert parts["peers"] == pytest.approx(2 * 0.0336 / 2)
    assert bill["total"] == pytest.approx(sum(parts.values()))
    by_the_hour = sum(cost.hourly(Settings(peers=2)).values()) / 2
    by_the_piece = ["gradient workers", "worker requests", "state transitions"]
    by_the_piece += ["S3 writes and lists", "S3 reads", "S3 storage"]
    assert bill["total"] == pytest.approx(by_the_hour + sum(parts[name] for name in by_the_piece), abs=1e-8)
    assert bill["use"]["instance_hours"] == 1.0
    assert bill["use"]["broker_node_hours"] == 0.5
    assert bill["use"]["public_address_hours"] == 1.0
    assert bill["use"]["nat_gateway_hours"] == 0.0
    assert bill["use"]["state_transitions"] == 18
    assert bill["as_if_on_aws"] is True
    assert bill["unpriced"] == []
    assert bill["prices"]["region"] == "us-east-1"
    assert (bill["prices"]["oldest"], bill["prices"]["newest"]) == ("2026-07-20", "2026-10")
    assert "step_functions.transition" in bill["prices"]["undated"]
    assert bill["prices"]["overridden"] == []
    assert bill["prices"]["warnings"] == []


def test_a_private_network_has_a_gateway_and_one_address() -> None:
    config = configured()
    tariff = cost.Tariff(prices=cost.book(), settings=Settings(peers=2, network="private"), as_if_on_aws=False)
    bill = cost.Bill.of(measured(config, COUNTERS), tariff, config, NOW).to_dict()
    assert bill["parts"]["NAT gateway"] == pytest.approx((0.045 + 0.005) / 2)
    assert "public addresses" not in bill["parts"]
    assert (bill["use"]["nat_gateway_hours"], bill["use"]["public_address_hours"]) == (0.5, 0.5)
    assert bill["as_if_on_aws"] is False


def test_what_has_no_price_is_named_and_not_in_the_sum() -> None:
    config = configured()
    tariff = cost.Tariff(prices=cost.book(), settings=Settings(peers=2, instance_type="m8g.medium"), as_if_on_aws=True)
    bill = cost.Bill.of(measured(config, COUNTERS), tariff, config, NOW)
    assert bill.unpriced == ("peers, 2 x m8g.medium",)
    assert "peers" not in bill.parts
    assert tariff.for_peers() is None, "their sum would lie"


def test_ones_own_price_is_used_and_named_as_such(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    row = '{ usd = 1.0, date = "2024-01-01", sure = "H", source = "our contract" }'
    own.write_text(f'[us-east-1.instance_hour]\n"m8g.medium" = {row}\n"m8g.large" = {row}\n')
    config = configured(aws={"instance_type": "m8g.medium"}, cost={"prices": str(own)})
    tariff = cost.Tariff.local(config, settings_for)
    bill = cost.Bill.of(measured(config, COUNTERS), tariff, config, NOW).to_dict()
    assert bill["parts"]["peers"] == pytest.approx(2 * 1.0 / 2)
    assert bill["prices"]["overridden"] == ["instance_hour.m8g.medium"], "of what was used"
    assert bill["prices"]["oldest"] == "2024-01-01"
    (warning,) = bill["prices"]["warnings"]
    assert "instance_hour.m8g.medium; the oldest is of 2024-01-01" in warning
    assert tariff.warnings(NOW)[0].partition(" of ")[0] == "1", "the launch tells the same"


def test_a_local_run_is_priced_as_the_deployment_that_it_asks_for() -> None:
    config = configured(aws={"architecture": "x86_64", "instance_type": "t3.large", "broker_cluster": True})
    tariff = cost.Tariff.local(config, settings_for)
    assert tariff.as_if_on_aws
    prices = tariff.for_peers()
    assert prices is not None
    assert prices.as_if_on_aws
    assert prices.lambda_usd_per_gb_second == 0.0000166667
    assert 3 * 0.1367 + 2 * 0.0832 < prices.run_usd_per_hour < 3 * 0.1367 + 2 * 0.0832 + 0.05
    assert tariff.warnings(NOW) == []


def test_a_run_that_cannot_be_deployed_is_billed_by_the_piece_alone() -> None:
    config = configured(peers=200)
    tariff = cost.Tariff.local(config, settings_for)
    assert tariff.for_peers() is None
    (warning,) = tariff.warnings(NOW)
    assert "leaves out what costs by the hour, as this run cannot be deployed: peers = 200" in warning
    bill = cost.Bill.of(measured(config, COUNTERS), tariff, config, NOW)
    assert bill.unpriced == ("what costs by the hour",)
    assert set(bill.parts) == {
        "gradient workers", "worker requests", "state transitions", "S3 writes and lists", "S3 reads", "S3 storage",
    }  # fmt: skip


def test_another_regions_deployment_is_billed_with_that_region() -> None:
    tariff = cost.Tariff.deployed(configured(), Settings(peers=2), "eu-central-1")
    assert tariff.prices.region == "eu-central-1"
    (warning,) = tariff.warnings(NOW)
    assert "none of eu-central-1" in warning
    chosen = cost.Tariff.deployed(configured(cost={"region": "us-east-1"}), Settings(peers=2), "eu-central-1")
    assert chosen.warnings(NOW) == []


def test_a_launch_tells_of_old_prices_once_and_refuses_wrong_ones(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    row = '{ usd = 0.0000004, date = "2024-01", sure = "H", source = "an old page" }'
    own.write_text(f"[us-east-1.s3]\nget = {row}\n")
    config, clock = configured(cost={"prices": str(own)}), FakeClock(NOW)
    notes: list[str] = []
    observer: Any = SimpleNamespace(note=notes.append)
    tariff = tariff_of(config, observer, clock)
    assert tariff.prices.overridden == ("s3.get",)
    (note,) = notes
    assert note.startswith("note: 1 of ")
    assert "(s3.get; the oldest is of 2024-01)" in note
    own.write_text("[us-east-1.s3]\nget = 1\n")
    with pytest.raises(ConfigError, match="a price needs usd, date, sure and source"):
        tariff_of(config, observer, clock)
