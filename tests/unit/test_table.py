"""What a person reads at the end of a run."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from contract.config import RunConfig
from peerless.launch.follow import Told
from peerless.launch.result import summarise
from peerless.report.table import result_table
from tests.unit.test_result import report


def rows(told: Told, cost: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    """First and second column for a run of which two peers report."""
    summary = summarise(
        run="r",
        config=RunConfig.model_validate({"peers": 5, "aggregation": {"name": "krum"}}),
        reports=[report(0, stages={}, **changes), report(1, stages={})],
        model=None,
        counters={},
        told=told,
        peak_memory_bytes=None,
        seconds_total=9.0,
        error=None,
        cost=cost,
    )
    text = io.StringIO()
    Console(file=text, width=240).print(result_table(summary, "runs/r"))
    cells = [line.strip("│┃ ").split("│") for line in text.getvalue().splitlines() if "│" in line]
    return {row[0].strip(): row[1].strip() for row in cells if len(row) == 2}


def test_what_was_rejected_is_told_by_sender_and_reason() -> None:
    told = Told(rejected={"1": {"signature": 2, "stale": 1}, "unknown": {"run": 1}})
    assert rows(told)["rejected"] == "3 of peer 1 (signature 2, stale 1); 1 of an unknown sender (run 1)"


def test_whom_aggregation_left_out_or_clipped_is_told() -> None:
    shown = rows(Told(), left_out={"1": 4, "3": 10}, clipped={"1": 2})
    assert shown["left out"] == "by krum, of 10 rounds: peer 1 in 4, peer 3 in 10"
    assert shown["clipped"] == "by krum, of 10 rounds: peer 1 in 2"


def test_batches_that_rounds_went_on_without_are_told_by_peer() -> None:
    assert rows(Told(batches_failed={1: 2, 3: 10}))["not in a mean"] == (
        "batches that failed for good: 2 of peer 1, 10 of peer 3"
    )


def test_nothing_is_told_where_there_is_nothing_to_tell() -> None:
    assert not rows(Told()).keys() & {"rejected", "left out", "clipped", "not in a mean"}


BILL: dict[str, Any] = {
    "total": 0.0316,
    "parts": {"broker": 0.02, "peers": 0.01, "state transitions": 0.001, "S3 reads": 0.0005, "secrets": 0.0001},
    "use": {},
    "estimated": [],
    "as_if_on_aws": True,
    "unpriced": [],
    "prices": {"region": "us-east-1", "oldest": "", "newest": "", "overridden": [], "undated": [], "warnings": []},
}


def test_the_bill_is_told_with_its_largest_parts() -> None:
    shown = rows(Told(), cost=BILL)
    assert shown["cost"] == (
        "0.0316 USD (as if on AWS, prices of us-east-1): broker 0.0200, peers 0.0100, state transitions 0.0010, "
        "S3 reads 0.0005, 1 more parts 0.0001"
    )
    assert "of the cost" not in shown


def test_what_is_to_be_known_of_the_bill_is_told() -> None:
    prices = {**BILL["prices"], "warnings": ["old"]}
    told = {"as_if_on_aws": False, "unpriced": ["peers, 2 x m8g.medium"], "estimated": ["lambda_gb_seconds"]}
    shown = rows(Told(), cost={**BILL, **told, "prices": prices})
    assert shown["cost"].startswith("0.0316 USD (prices of us-east-1): ")
    assert shown["of the cost"] == (
        "without peers, 2 x m8g.medium, whose price is unknown; worked out from what workers told, not counted: "
        "lambda_gb_seconds; old"
    )


def test_without_a_bill_the_peers_own_count_is_told() -> None:
    assert rows(Told(), estimated_usd=0.25)["cost"] == "at most 0.2500 USD, by the peers' own count"
    assert "cost" not in rows(Told())
