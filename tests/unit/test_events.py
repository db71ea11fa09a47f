"""Events: one JSON object a line, whoever else writes to the file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.events import EventLog
from tests.fakes.clock import FakeClock


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_has_the_common_keys_and_its_own(tmp_path: Path) -> None:
    clock = FakeClock(now=100.0)
    log = EventLog(tmp_path / "run" / "events.jsonl", "mnist-1", 2, clock)
    log.emit("peer_started")
    clock.advance(2.5)
    log.emit("stage", round=7, fields={"stage": "compute", "seconds": 1.25, "ranks": (0, 1)})
    log.close()
    log.emit("after the end")
    assert read(tmp_path / "run" / "events.jsonl") == [
        {"v": 1, "t": 100.0, "run": "mnist-1", "rank": 2, "round": None, "event": "peer_started"},
        {
            "v": 1,
            "t": 102.5,
            "run": "mnist-1",
            "rank": 2,
            "round": 7,
            "event": "stage",
            "stage": "compute",
            "seconds": 1.25,
            "ranks": [0, 1],
        },
    ]


def test_without_a_path_events_go_nowhere(tmp_path: Path) -> None:
    EventLog(None, "mnist-1", None, FakeClock()).emit("peer_started")
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e", "r", None, FakeClock())
    log.emit("validated", fields={"loss": float("nan"), "nested": {"a": [float("inf"), 1.0]}})
    log.close()
    (event,) = read(tmp_path / "e")
    assert (event["loss"], event["nested"]) == (None, {"a": [None, 1.0]})


@pytest.mark.parametrize("field", ["v", "t", "run", "rank", "round", "event"])
def test_a_field_cannot_hide_a_common_key(tmp_path: Path, field: str) -> None:
    log = EventLog(tmp_path / "e", "r", 0, FakeClock())
    with pytest.raises(ValueError, match=f"field named {field}"):
        log.emit("stage", fields={field: 1})
    log.close()
    assert (tmp_path / "e").read_bytes() == b""


def _write_many(path: Path, rank: int) -> None:
    log = EventLog(path, "r", rank, SystemClock())
    for number in range(200):
        log.emit("stage", round=number, fields={"filler": "x" * (rank * 997 + number)})
    log.close()


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path / "e", rank)) for rank in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read(tmp_path / "e")
    assert sorted((event["rank"], event["round"]) for event in events) == [(r, n) for r in range(3) for n in range(200)]
    assert all(len(event["filler"]) == event["rank"] * 997 + event["round"] for event in events)
