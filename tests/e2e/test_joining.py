"""`peerless join`: a peer with data of its own joins a local run, leaves it, dies in it, or is turned away."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from peerless.launch.follow import EventTail
from tests.e2e.conftest import Workplace, blobs
from tests.e2e.test_breaking import rounds_of, sentence, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: More than any of the three peers of the start has.
BROUGHT = 330


def own_data(place: Workplace) -> Path:
    x, y = blobs(BROUGHT, 7)
    np.savez(place.path / "own.npz", x=x, y=y)
    return place.path / "own.npz"


def join(place: Workplace, *arguments: str, run_dir: str = "run") -> subprocess.Popen[str]:
    """A peer that joins the run in `run_dir`."""
    command = place.command("join", run_dir, "--data", "own.npz", "--json", *arguments)
    return subprocess.Popen(
        command, cwd=place.path, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def events_of(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "events.jsonl").exists():
        return []
    lines = (folder / "events.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


class Commits:
    """What peer 0 tells of commits, read as it comes: a long run's events are many."""

    def __init__(self, folder: Path) -> None:
        self._tail, self._found = EventTail(folder / "events.jsonl"), list[dict[str, Any]]()

    def of(self, rank: int) -> list[int]:
        """The rounds in whose commits `rank` is listed."""
        new = (event for event in self._tail.new() if event["rank"] == 0)
        self._found += [event for event in new if event["event"] in ("commit", "member_dropped")]
        return [event["round"] for event in self._found if rank in event.get("contributors", ())]

    def drop(self, rank: int) -> bool:
        """Whether a commit has dropped `rank`."""
        self.of(rank)
        return any(event["event"] == "member_dropped" and event["member"] == rank for event in self._found)


def contributions(folder: Path, rank: int) -> list[int]:
    """The rounds in whose commits `rank` is listed."""
    return Commits(folder).of(rank)


def kill_all(process: subprocess.Popen[str]) -> None:
    """`kill -9` of a command and all that it has started: its peer first, which its guard would end in order."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in reversed(everyone):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


def test_a_peer_joins_and_ends_with_the_others(lonely_workplace: Workplace) -> None:
    place, folder = lonely_workplace, lonely_workplace.path / "run"
    own_data(place)
    run = start(place, "--set", "early_stopping.patience=0", "--set", "exchange.poll_seconds=0.5", epochs=45)
    guest = join(place)
    status, out, errors = ended(guest)
    assert status == 0, errors
    told = json.loads(out)
    assert (told["rank"], told["samples"], told["batches"], told["reason"]) == (3, BROUGHT, 9, "epoch_limit")
    assert ended(run)[0] == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"]) == ("epoch_limit", 135), "as long as it was planned"
    assert summary["joined"] == {"3": BROUGHT}
    assert (summary["peers_lost"], summary["left"]) == (0, [])
    assert set(summary["weights_sha256"].values()) == {told["weights_sha256"]}
    assert list(summary["weights_sha256"]) == ["0", "1", "2", "3"]
    with_it = contributions(folder, 3)
    assert len(with_it) > 10
    assert with_it == list(range(with_it[0], 135)), "in every round from its first one on"
    commits = [e for e in events_of(folder) if e["event"] == "commit" and e["rank"] == 0 and e["contributors"]]
    assert {e["samples"] for e in commits if 3 in e["contributors"]} > {e["samples"] + 80 for e in commits[:1]}
    joined = {e["member"] for e in events_of(folder) if e["event"] == "member_joined"}
    assert joined == {3}
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "events.jsonl", "model.safetensors", "summary.json", "logs"
    }  # fmt: skip


def test_one_leaves_and_one_is_killed_and_the_run_goes_on(workplace: Workplace) -> None:
    place, folder = workplace, workplace.path / "left"
    own_data(place)
    settings = ["early_stopping.patience=0", "compute.service=local", "membership.heartbeat_timeout_seconds=2"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    run = start(place, *arguments, epochs=5000, run_dir="left")
    guests = [join(place, run_dir="left") for _ in range(2)]
    try:
        commits = Commits(folder)
        wait_for(lambda: commits.of(3) and commits.of(4), "both to take part", 200)
        guests[0].terminate()
        status, out, errors = ended(guests[0])
        assert status == 0, errors
        left = json.loads(out)
        assert left["left"]
        assert left["reason"] == "left"
        kill_all(guests[1])
        other = 7 - left["rank"]
        wait_for(lambda: commits.drop(other), "the dead one to be dropped", 60)
        last = max(commits.of(0))
        wait_for(lambda: max(commits.of(0)) > last + 5, "five more rounds", 90)
        run.terminate()
        assert ended(run)[0] == 130
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["joined"] == {"3": BROUGHT, "4": BROUGHT}
        assert (summary["left"], summary["lost_ranks"]) == ([left["rank"]], [other])
        assert len(set(summary["weights_sha256"].values())) == 1
        assert summary["reason"] == "interrupted"
    finally:
        for process in (run, *guests):
            process.kill()


def test_a_run_that_was_joined_and_killed_goes_on_with_the_data_that_are_there(lonely_workplace: Workplace) -> None:
    place, folder = lonely_workplace, lonely_workplace.path / "run"
    own_data(place)
    run = start(place, "--set", "early_stopping.patience=0", "--set", "checkpoint.every_rounds=5")
    guest = join(place)
    commits = Commits(folder)
    wait_for(lambda: len(commits.of(3)) > 3, "the guest to take part", 200)
    for process in (run, guest):
        kill_all(process)
    before = len(contributions(folder, 3))
    epochs = rounds_of(folder) // 3 + 6
    done = place.peerless("train", "--local", "--json", "--resume", "run", "--set", f"epochs={epochs}", timeout=500)
    assert done.returncode == 0, done.stderr
    assert "peer 3, which had joined, goes on with its data" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rounds"], summary["parts"], summary["peers_lost"]) == (3 * epochs, 2, 0)
    assert summary["joined"] == {"3": BROUGHT}
    assert list(summary["weights_sha256"]) == ["0", "1", "2", "3"]
    assert len(set(summary["weights_sha256"].values())) == 1
    assert len(contributions(folder, 3)) > before + 5


def test_what_does_not_fit_is_told_before_anything_is_joined(workplace: Workplace) -> None:
    """To a run that is going on; what needs none is in tests/functional/test_join_refusals.py."""
    place, folder = workplace, workplace.path / "unfit"
    x, y = blobs(60, 7)
    np.savez(place.path / "wide.npz", x=np.repeat(x, 2, axis=2), y=y)
    own_data(place)
    settings = ("--set", "early_stopping.patience=0", "--set", "compute.service=local")
    run = start(place, *settings, epochs=5000, run_dir="unfit")
    try:
        for data, arguments, sentence_ in (
            ("wide.npz", [], "has samples of shape (1, 8, 16), and the run was started with (1, 8, 8)"),
            ("own.npz", ["--set", "data.image_size=4"], "whoever joins a run brings data and nothing else"),
        ):
            done = place.peerless("join", "unfit", "--data", data, *arguments)
            assert done.returncode == 2, (data, done.stderr)
            assert sentence_ in sentence(done)
        assert {event["rank"] for event in events_of(folder)} == {0, 1, 2}
    finally:
        run.terminate()
        ended(run)
