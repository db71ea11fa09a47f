"""Events as log lines with metrics in the embedded metric format."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from contract import metrics
from peer_agent.instance.log import Log
from peer_agent.instance.telemetry import Telemetry
from tests.fakes.clock import FakeClock


def event(name: str, t: float = 1_700_000_000.25, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "t": t, "run": "r", "rank": 2, "round": 0, "event": name, **fields}


def commit(t: float, contributors: tuple[int, ...] = (0, 1, 2), validation_loss: float | None = None) -> dict[str, Any]:
    return event("commit", t, contributors=list(contributors), loss=0.5, validation_loss=validation_loss)


def found(line: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a line as CloudWatch takes them: name -> value, checked against the format."""
    if "_aws" not in line:
        return {}
    values = {}
    for directive in line["_aws"]["CloudWatchMetrics"]:
        assert directive["Namespace"] == "Peerless"
        for metric in directive["Metrics"]:
            assert metric["Unit"] == metrics.UNITS[metric["Name"]]
            assert directive["Dimensions"] == [list(names) for names in metrics.dimension_sets(metric["Name"])]
            assert type(line[metric["Name"]]) in (int, float)
            values[metric["Name"]] = line[metric["Name"]]
        for names in directive["Dimensions"]:
            assert all(isinstance(line[name], str) for name in names), "every dimension is a member of the line"
    return values


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("lab", 2)


def test_a_round_lasts_from_the_one_before(telemetry: Telemetry) -> None:
    assert found(telemetry.line(event("round_started", 100.0))) == {}
    assert found(telemetry.line(commit(107.0))) == {"RoundsCommitted": 1, "RoundSeconds": 7.0}
    telemetry.line(event("round_started", 108.0))
    assert found(telemetry.line(commit(110.0, validation_loss=0.25))) == {
        "RoundsCommitted": 1,
        "RoundSeconds": 3.0,
        "Loss": 0.25,
    }
    assert found(telemetry.line(commit(111.0, (), validation_loss=0.2))) == {"Loss": 0.2}, "it only closes the run"


def test_asynchronous_rounds_and_losses(telemetry: Telemetry) -> None:
    telemetry.line(event("peer_started", 90.0, pid=1, mode="async"))
    telemetry.line(event("round_started", 100.0))
    assert found(telemetry.line(event("averaged", 104.0, contributors=[0], staleness=[0], loss=1.0))) == {
        "RoundsCommitted": 1,
        "RoundSeconds": 4.0,
    }
    assert found(telemetry.line(event("validated", validation_loss=0.3))) == {"Loss": 0.3}
    telemetry.line(event("peer_started", 200.0, pid=1, mode="sync"))
    assert found(telemetry.line(event("validated", validation_loss=0.3))) == {}, "its commit will say so"
    assert found(telemetry.line(commit(300.0))) == {"RoundsCommitted": 1}, "a new process, so the begin is not known"


def test_stages_and_the_bill(telemetry: Telemetry) -> None:
    stage = event("stage", stage="send", seconds=1.5, bytes_in=0, bytes_out=77, cpu_percent=1.0)
    line = telemetry.line(stage)
    assert found(line) == {"StageSeconds": 1.5, "BytesSent": 77}
    assert (line["Deployment"], line["Rank"], line["Stage"]) == ("lab", "0002", "send")
    assert line["_aws"]["Timestamp"] == 1_700_000_000_250
    assert line["bytes_out"] == 77, "the event itself is in the line"
    assert found(telemetry.line(event("bill", usd=0.125, limit_usd=None))) == {"EstimatedUsd": 0.125}


def test_what_is_not_a_number_is_left_out(telemetry: Telemetry) -> None:
    assert found(telemetry.line(event("bill", usd=None))) == {}
    assert found(telemetry.line(event("stage", stage="send"))) == {}
    assert found(telemetry.line(event("something new"))) == {}


def test_a_heartbeat_says_no_round(telemetry: Telemetry) -> None:
    assert found(telemetry.heartbeat(5.0, "r")) == {"RoundsCommitted": 0}


def test_every_metric_of_the_contract_is_emitted(telemetry: Telemetry) -> None:
    lines = [
        telemetry.line(event("round_started", 1.0)),
        telemetry.line(commit(2.0, validation_loss=0.1)),
        telemetry.line(event("stage", stage="send", seconds=1.0, bytes_in=1, bytes_out=1)),
        telemetry.line(event("bill", usd=1.0)),
    ]
    assert set().union(*map(found, lines)) == set(metrics.UNITS)


def test_log_lines_are_json_and_hide_what_is_secret() -> None:
    stream = io.StringIO()
    log = Log(stream, FakeClock(now=5.0), "lab", 2)
    log.hide('pa"ss')
    log.hide("")
    log.run = "r"
    log.warning('it said pa"ss', attempt=1, seconds=float("nan"))
    assert json.loads(stream.getvalue()) == {
        "t": 5.0, "level": "warning", "message": "it said ***", "deployment": "lab", "rank": 2, "run": "r",
        "attempt": 1,
    }  # fmt: skip
