"""Following a run: events as they come, and what is said when a peer ends badly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peerless.launch.follow import BROKEN_SECONDS, EventTail, Told, follow
from tests.fakes.clock import FakeClock
from tests.fakes.crew import FakeChild, crew_of


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


def followed(
    children: list[FakeChild],
    path: Path,
    seen: Recorder | None = None,
    clock: FakeClock | None = None,
    wanted: Callable[[], bool] = bool,
    look: Callable[[], str | None] = look,
) -> str | None:
    """Follow peers that are not started again."""
    clock = clock or FakeClock()
    crew = crew_of([[child] for child in children], clock=clock)
    return follow(crew, EventTail(path), seen or Recorder(), clock, wanted, look)


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
    assert followed(children, path, seen) is None
    assert [event["event"] for event in seen.events] == ["round_started"]
    assert not any(child.terminated for child in children)


def test_the_first_failure_is_told_and_the_others_are_asked_to_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, {"event": "failed", "rank": 1, "error": "batch 3: too hot"})
    children = [FakeChild([None]), FakeChild([1])]
    assert followed(children, path) == "peer 1: batch 3: too hot"
    assert children[0].terminated


@pytest.mark.parametrize(
    ("status", "log", "sentence"),
    [
        (137, "", "peer 1 was killed by signal 9; its log is empty"),
        (1, "peerless: no broker", "peer 1 ended with status 1; its log ends with: peerless: no broker"),
    ],
)
def test_a_peer_that_cannot_tell_is_told_about(tmp_path: Path, status: int, log: str, sentence: str) -> None:
    children = [FakeChild([None, None, 137 if status > 128 else None]), FakeChild([None, status], log)]
    assert followed(children, tmp_path / "none") == sentence
    assert children[0].terminated == (status == 1), "the others can do without one that died"


def test_an_end_that_is_wanted_is_an_orderly_one(tmp_path: Path) -> None:
    children, seen = [FakeChild([None]), FakeChild([None])], Recorder()
    wishes = iter([False, True, True])
    ended = followed(children, tmp_path / "none", seen, wanted=lambda: next(wishes))
    assert ended is None
    assert all(child.terminated for child in children)
    assert seen.notes == ["ending after this round; Ctrl-C again stops at once"]


def test_peers_whose_server_is_gone_are_killed_after_a_few_seconds(tmp_path: Path) -> None:
    clock, stubborn, told = FakeClock(), FakeChild([None]), "MiniStack ended with status 137"
    stubborn.terminate = lambda: None  # type: ignore[method-assign]
    began = clock.monotonic()
    assert followed([stubborn], tmp_path / "none", clock=clock, look=lambda: told) == told
    assert stubborn.killed
    assert BROKEN_SECONDS <= clock.monotonic() - began < BROKEN_SECONDS + 1


@pytest.mark.parametrize("status", [143, 130])
def test_a_peer_that_ends_before_it_has_begun_because_it_was_asked_to_has_not_failed(
    tmp_path: Path, status: int
) -> None:
    early = FakeChild([None])
    early.terminate = lambda: early.statuses.__setitem__(0, status)  # type: ignore[method-assign]
    assert followed([early, FakeChild([None])], tmp_path / "none", wanted=lambda: True) is None


def test_an_interrupt_passes_through(tmp_path: Path) -> None:
    def at_once() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        followed([FakeChild([None])], tmp_path / "none", wanted=at_once)


def test_a_run_that_is_taken_up_again_does_not_hear_of_its_earlier_failure(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", Recorder()
    write(path, {"event": "failed", "rank": 1, "error": "batch 3: too hot"})
    tail = EventTail(path, from_now=True)
    write(path, {"event": "round_started", "rank": 0})
    clock = FakeClock()
    assert follow(crew_of([[FakeChild([None, 0])]], clock=clock), tail, seen, clock, bool, look) is None
    assert [event["event"] for event in seen.events] == ["round_started"]


def test_what_events_tell_beside_the_reports(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert Told.of(path) == Told()
    write(path, {"event": "commit", "round": 4, "rank": 0}, {"event": "commit", "round": 3, "rank": 1})
    write(path, {"event": "round_started", "round": 5, "rank": 0})
    write(path, *[{"event": "peer_restarted", "round": None, "rank": 1, "reason": "was killed by signal 9"}] * 2)
    write(path, *({"event": "instance_started", "rank": 2, "attempt": attempt} for attempt in (1, 2)))
    rejected = {"event": "frame_rejected", "round": 2, "sender": 3}
    write(path, *({**rejected, "rank": rank, "reason": "signature"} for rank in (0, 1)))
    write(path, {**rejected, "rank": 0, "reason": "stale"}, {**rejected, "rank": 0, "reason": "run", "sender": None})
    by_sender = {"3": {"signature": 2, "stale": 1}, "unknown": {"run": 1}}
    failed = [(1, 2, 3), (1, 2, 2), (1, 4, 1), (2, 2, 1)]
    write(path, *({"event": "batches_failed", "rank": rank, "round": t, "failed": n} for rank, t, n in failed))
    assert Told.of(path) == Told(
        rounds=5, restarts={1: 2, 2: 1}, rejected=by_sender, batches_failed={1: 2 + 1, 2: 1}
    ), "a round that was computed again counts once"
