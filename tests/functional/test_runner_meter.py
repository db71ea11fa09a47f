"""Runs with prices: every peer shows its bill each round, and the limit ends all in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from contract.prices import Prices
from contract.records import Stop
from peer_agent.meter import Meter
from peerless.launch.follow import Told
from peerless.launch.result import summarise
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import configuration, events

#: Nothing but requests costs: every batch 0.01 USD.
PRICES = Prices(run_usd_per_hour=0.0, lambda_usd_per_gb_second=0.0, lambda_usd_per_request=0.01, transition_usd=0.0)


def priced(tmp_path: Path, prices: Prices | None = PRICES, **changes: Any) -> Cast:
    """Three peers of one batch a round whose configuration has prices."""
    cast = Cast(configuration(epochs=50, **changes), (24, 24, 12), events=tmp_path / "events.jsonl")
    spec = dataclasses.replace(cast.spec, prices=prices)
    for peer in cast.peers:
        peer.actions.bill.meter = Meter(spec, cast.clock.now())
    return cast


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_limit_ends_all_in_order(tmp_path: Path, mode: str) -> None:
    cast = priced(tmp_path, mode=mode, aws={"max_usd": 0.15})  # 0.05 each: five batches
    cast.play()
    reports = cast.reports()
    assert {(r.reason, r.error) for r in reports} == {("max_usd", None)}
    assert Stop.from_json(cast.store.get(cast.spec.places.stop())).reason == "max_usd"
    assert all(4 <= r.rounds <= 7 for r in reports)
    assert all(0.04 <= (r.estimated_usd or 0) <= 0.07 for r in reports)
    if mode == "sync":
        assert len({(r.rounds, r.weights_sha256) for r in reports}) == 1
    cast.close()
    summary = summarise(
        run="trial", config=cast.config, reports=reports, model=None, counters={}, told=Told(),
        peak_memory_bytes=None, seconds_total=1.0, error=None,
    )  # fmt: skip
    assert summary["reason"] == "max_usd"
    assert summary["estimated_usd"] == pytest.approx(sum(r.estimated_usd or 0 for r in reports))


def test_every_round_shows_the_bill_so_far(tmp_path: Path) -> None:
    cast = priced(tmp_path, aws={"max_usd": 0.15})
    cast.play()
    bills = [e for e in events(tmp_path) if e["event"] == "bill" and e["rank"] == 1]
    assert [e["round"] for e in bills] == list(range(cast.reports()[1].rounds))
    assert [e["usd"] for e in bills] == pytest.approx([0.01 * (n + 1) for n in range(len(bills))])
    assert {e["limit_usd"] for e in bills} == {0.15 / 3}
    cast.close()


def test_hours_end_a_run_whose_peers_only_wait(tmp_path: Path) -> None:
    """A computation that never comes back must not cost for ever."""

    prices = dataclasses.replace(PRICES, run_usd_per_hour=3_600.0)  # a dollar a second
    cast = priced(tmp_path, prices, aws={"max_usd": 30.0}, exchange={
        **configuration().exchange.model_dump(), "round_timeout_seconds": 3_600.0,
    })  # fmt: skip
    cast.peers[2].runner.ports.background.finished = lambda timeout_seconds: []  # type: ignore[method-assign]
    cast.play()
    assert {r.reason for r in cast.reports()} == {"max_usd"}
    assert 25 < cast.clock.monotonic() < 45
    cast.close()


def test_without_prices_there_is_no_bill(tmp_path: Path) -> None:
    cast = priced(tmp_path, None, aws={"max_usd": 1e-9})
    for peer in cast.peers:
        peer.runner.request_end("interrupted")
    cast.play()
    assert {(r.reason, r.estimated_usd) for r in cast.reports()} == {("interrupted", None)}
    assert not [e for e in events(tmp_path) if e["event"] == "bill"]
    cast.close()
