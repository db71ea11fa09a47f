"""Following a run: events as they come, and what is said when a peer ends badly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peerless.launch.follow import BROKEN_SECONDS, EventTail, follow, rounds_told
from tests.fakes.clock import FakeClock


@dataclass
class FakeChild:
    """A process that ends with the given statuses, one per look."""

    statuses: list[int | None]
    log: str = ""
    terminated: bool = False
    killed: bool = False

    def poll(self) -> int | None:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def terminate(self) -> None:
        self.terminated = True
        if self.statuses[0] is None:
            self.statuses = [0]

    def kill(self) -> None:
        self.killed, self.statuses = True, [137]

    def log_tail(self) -> str:
        return self.log


@dataclass
class Recorder:
    """An observer that keeps what it was told."""

    events: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def training(self, peers: int, rounds: int) -> None: ...

    def event(self, event: Any) -> None:
        self.events.append(event)


def look() -> str | None:
    """All servers live."""
    return None


def write(path: Path, *events: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert list(tail.new()) == []
    path.write_text('{"event": "a"}\n{"eve')
    assert [event["event"] for event in tail.new()] == ["a"]
    with open(path, "a") as file:
        file.write('nt": "b"}\n')
    assert [event["event"] for event in tail.new()] == ["b"]
    assert list(tail.new()) == []


def test_a_run_that_goes_well_has_no_failure(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", Recorder()
    write(path, {"event": "round_started", "rank": 0})
    children = [FakeChild([None, 0]), FakeChild([None, None, 0])]
    assert follow(children, path, seen, FakeClock(), bool, look) is None  # type: ignore[arg-type]
    assert [event["event"] for event in seen.events] == ["round_started"]
    assert not any(child.terminated for child in children)


def test_the_first_failure_is_told_and_the_others_are_asked_to_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, {"event": "failed", "rank": 1, "error": "batch 3: too hot"})
    children = [FakeChild([None]), FakeChild([1])]
    assert follow(children, path, Recorder(), FakeClock(), bool, look) == "peer 1: batch 3: too hot"  # type: ignore[arg-type]
    assert children[0].terminated


@pytest.mark.parametrize(
    ("status", "log", "sentence"),
    [
        (137, "", "peer 1 was killed by signal 9; its log is empty"),
        (1, "peerless: no broker", "peer 1 ended with status 1; its log ends with: peerless: no broker"),
    ],
)
def test_a_peer_that_cannot_tell_is_told_about(tmp_path: Path, status: int, log: str, sentence: str) -> None:
    children = [FakeChild([None]), FakeChild([None, status], log)]
    assert follow(children, tmp_path / "none", Recorder(), FakeClock(), bool, look) == sentence  # type: ignore[arg-type]
    assert children[0].terminated


def test_an_end_that_is_wanted_is_an_orderly_one(tmp_path: Path) -> None:
    children, seen = [FakeChild([None]), FakeChild([None])], Recorder()
    wishes = iter([False, True, True])
    ended = follow(children, tmp_path / "none", seen, FakeClock(), lambda: next(wishes), look)  # type: ignore[arg-type]
    assert ended is None
    assert all(child.terminated for child in children)
    assert seen.notes == ["ending after this round; Ctrl-C again stops at once"]


def test_peers_whose_server_is_gone_are_killed_after_a_few_seconds(tmp_path: Path) -> None:
    clock, stubborn, told = FakeClock(), FakeChild([None]), "MiniStack ended with status 137"
    stubborn.terminate = lambda: None  # type: ignore[method-assign]
    began = clock.monotonic()
    assert follow([stubborn], tmp_path / "none", Recorder(), clock, bool, lambda: told) == told  # type: ignore[list-item]
    assert stubborn.killed
    assert BROKEN_SECONDS <= clock.monotonic() - began < BROKEN_SECONDS + 1


@pytest.mark.parametrize("status", [143, 130])
def test_a_peer_that_ends_before_it_has_begun_because_it_was_asked_to_has_not_failed(
    tmp_path: Path, status: int
) -> None:
    early = FakeChild([None])
    early.terminate = lambda: early.statuses.__setitem__(0, status)  # type: ignore[method-assign]
    children = [early, FakeChild([None])]
    assert follow(children, tmp_path / "none", Recorder(), FakeClock(), lambda: True, look) is None  # type: ignore[arg-type]
    killed = [early, FakeChild([137])]
    early.statuses = [None]
    told = follow(killed, tmp_path / "none", Recorder(), FakeClock(), bool, look)  # type: ignore[arg-type]
    assert told == "peer 1 was killed by signal 9; its log is empty"


def test_an_interrupt_passes_through(tmp_path: Path) -> None:
    def at_once() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow([FakeChild([None])], tmp_path / "none", Recorder(), FakeClock(), at_once, look)  # type: ignore[list-item]


def test_the_rounds_that_events_tell_of(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert rounds_told(path) == 0
    write(path, {"event": "commit", "round": 4, "rank": 0}, {"event": "commit", "round": 3, "rank": 1})
    write(path, {"event": "round_started", "round": 5, "rank": 0})
    assert rounds_told(path) == 5
