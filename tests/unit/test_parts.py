"""What a run's folder says of an unfinished run, and the sentences for what cannot be taken up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError
from peerless.launch import parts as parts_of
from peerless.launch.parts import Parts
from peerless.launch.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """An interrupted run's."""
    made = RunFolder.create(tmp_path / "runs" / "mnist-1")
    made.config.write_text("")
    summary(made, "interrupted")
    Parts(runs=("mnist-1",), run_bucket="runs").write(made)
    return made


def summary(folder: RunFolder, reason: Any) -> None:
    folder.write_summary({"reason": reason})


def test_a_run_is_found_by_its_name_and_by_its_folder(folder: RunFolder, tmp_path: Path) -> None:
    assert parts_of.find("mnist-1", tmp_path / "runs").path == folder.path
    assert parts_of.find(str(folder.path), tmp_path / "elsewhere").path == folder.path
    for wrong in ("mnist-2", str(tmp_path)):
        with pytest.raises(ConfigError, match="there is no run of that name"):
            parts_of.find(wrong, tmp_path / "runs")


def test_internal_names_count_on(folder: RunFolder) -> None:
    parts = parts_of.read(folder)
    assert parts.next().runs == ("mnist-1", "mnist-1-r2")
    assert parts.next().next().runs[-1] == "mnist-1-r3"
    assert parts.next().next().run == "mnist-1"


def test_a_run_that_was_killed_has_no_summary_and_can_be_taken_up(folder: RunFolder) -> None:
    folder.summary.unlink()
    assert parts_of.read(folder).runs == ("mnist-1",)
    summary(folder, "failed")
    assert parts_of.read(folder).runs == ("mnist-1",)


@pytest.mark.parametrize("reason", ["epoch_limit", "early_stopping", "max_usd"])
def test_a_finished_run_cannot(folder: RunFolder, reason: str) -> None:
    summary(folder, reason)
    with pytest.raises(ConfigError, match=rf"is finished \({reason}\); there is nothing to resume"):
        parts_of.read(folder)


def test_one_that_left_nothing_or_is_of_an_older_version_cannot(folder: RunFolder) -> None:
    value = json.loads(folder.parts.read_text())
    folder.parts.write_text(json.dumps({**value, "version": 2}))
    with pytest.raises(ConfigError, match="cannot be resumed: record of an unfinished run has version 2"):
        parts_of.read(folder)
    folder.parts.unlink()
    with pytest.raises(ConfigError, match="ended before its first round was completed, or it is of an older version"):
        parts_of.read(folder)


def test_two_do_not_work_on_one_run(folder: RunFolder) -> None:
    with parts_of.held(folder), pytest.raises(ConfigError, match="is going on"), parts_of.held(folder):
        pass
    with parts_of.held(folder):
        pass


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'{"a": 1}\n{"b"', b'{"a": 1}\n'), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a"', b""), (b"", b"")],
)
def test_what_a_killed_peer_left_half_written_goes(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(before)
    parts_of.drop_torn_line(path)
    assert path.read_bytes() == after
