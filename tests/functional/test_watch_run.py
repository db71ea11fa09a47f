"""`peerless watch`: follows a folder that grows, ends with the run, and leaves no trace in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peerless.cli import main
from peerless.launch import parts
from peerless.launch.run_folder import RunFolder
from peerless.launch.watch import SUMMARY_SECONDS, watch
from tests.fakes.clock import FakeClock
from tests.fakes.run_folders import begun, ended, event, write_events


@dataclass
class Seen:
    """A watcher that keeps what it was told, in order."""

    told: list[str] = field(default_factory=list)

    def note(self, text: str) -> None: ...

    def training(self, peers: int, rounds: int) -> None:
        self.told.append(f"training {peers}")

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        self.told += [f"before: {item['event']}" for item in events]

    def event(self, event: Mapping[str, Any]) -> None:
        self.told.append(event["event"])

    def ended(self) -> None:
        self.told.append("ended")


class Script(FakeClock):
    """A clock whose sleeps are when things happen, one after the other."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        super().__init__()
        self._steps = list(steps)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self._steps:
            self._steps.pop(0)()


def half(folder: RunFolder, text: str) -> None:
    with open(folder.events, "a") as file:
        file.write(text)


def test_a_growing_file_is_followed_until_the_run_lets_go_of_it(tmp_path: Path) -> None:
    folder, run, seen = begun(tmp_path / "first", event("peer_started", round=None, mode="sync")), ExitStack(), Seen()
    run.enter_context(parts.held(folder))

    def end() -> None:
        write_events(folder, event("finished", reason="epoch_limit"))
        run.close()

    clock = Script(
        lambda: write_events(folder, event("round_started"), event("commit", contributors=[0])),
        lambda: half(folder, '{"event": "ha'),
        lambda: half(folder, 'lf"}\nno event at all\n17\n'),
        end,
        lambda: folder.write_summary({"reason": "epoch_limit"}),
    )
    assert watch(folder, 2, seen, clock)
    assert seen.told == [
        "before: peer_started", "training 2", "round_started", "commit", "half", "finished", "ended",
    ]  # fmt: skip
    assert folder.summary.exists(), "one that fails writes its summary after the last process"
    assert clock.monotonic() < SUMMARY_SECONDS


def test_a_run_that_was_killed_is_not_waited_for_long(tmp_path: Path) -> None:
    folder, run = begun(tmp_path / "first"), ExitStack()
    run.enter_context(parts.held(folder))
    clock = Script(run.close)
    assert watch(folder, 2, Seen(), clock)
    assert SUMMARY_SECONDS <= clock.monotonic() < SUMMARY_SECONDS + 1


def test_of_a_run_that_has_ended_only_the_past_is_told(tmp_path: Path) -> None:
    seen, clock = Seen(), FakeClock()
    assert not watch(ended(tmp_path / "first"), 2, seen, clock)
    assert seen.told == ["before: peer_started", "ended"]
    assert clock.slept == []


def test_watching_leaves_no_trace_and_the_run_can_be_taken_up_meanwhile(tmp_path: Path) -> None:
    folder, run = begun(tmp_path / "first"), ExitStack()
    run.enter_context(parts.held(folder))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(folder, 2, Seen(), Script(interrupt))
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    assert parts.is_going_on(folder)
    run.close()
    with parts.held(folder):  # raises where a watcher had kept a lock
        pass


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["peerless", "watch", *arguments])
    with pytest.raises(SystemExit) as ended_with:
        main()
    return int(ended_with.value.code or 0)


def test_the_command_shows_how_a_run_ended_or_why_it_cannot_be_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    ended(runs / "whole")
    assert command(monkeypatch, "whole") == 0
    told = capsys.readouterr()
    assert "  gone  " in told.out
    assert "93.75%" in told.out
    assert told.err == ""

    commit = event("commit", contributors=[0], loss=0.5, t=3.0)
    killed = begun(runs / "killed", event("peer_started", round=None, mode="sync", rounds_limit=7), commit)
    killed.parts.touch()
    assert command(monkeypatch, str(killed.path)) == 0
    told = capsys.readouterr()
    assert "round 1 of 7" in told.out
    assert "the run was killed" in told.err
    assert "peerless train --local --resume runs/killed" in told.err

    begun(runs / "away", event("instance_started", round=None, attempt=1))
    assert command(monkeypatch, "away") == 2
    assert "`peerless attach --name peerless` follows it" in capsys.readouterr().err

    ended(runs / "older").write_summary({"reason": "epoch_limit"})
    assert command(monkeypatch, "older") == 1
    assert "is not whole, or of another version" in capsys.readouterr().err

    assert command(monkeypatch, "whoel") == 2
    assert "there are" in capsys.readouterr().err


def test_ctrl_c_lets_go_of_the_run_and_says_how_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peerless.launch.watch.watch", pressed)
    begun(Path("runs/first"), event("peer_started", round=None, mode="sync"))
    assert command(monkeypatch, "first") == 0
    assert "`peerless watch first` follows it again" in capsys.readouterr().err
