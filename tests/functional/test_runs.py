"""`peerless runs`: what is told of each folder, whole or damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError
from peerless.cli import main
from peerless.launch import parts
from peerless.launch.run_folder import RunFolder
from peerless.launch.runs import open_run, row_of, runs_in
from tests.fakes.run_folders import START, begun, ended, event, write_events

COMMITS = [
    event("peer_started", 0, None, 0.0, pid=1, mode="sync"),
    event("commit", 0, 0, 3.0, contributors=[0, 1], loss=1.0, final=False),
    event("commit", 0, 1, 4.0, contributors=[0, 1], loss=0.5, validation_loss=0.4, validation_accuracy=0.75),
    event("bill", 0, 1, 4.0, usd=0.01, limit_usd=None),
    event("bill", 1, 1, 4.0, usd=0.02, limit_usd=None),
]


def test_a_run_that_has_ended_is_told_by_its_summary(tmp_path: Path) -> None:
    cost = {"total": 0.125, "parts": {"lambda": 0.125}, "as_if_on_aws": True}
    row = row_of(ended(tmp_path / "first", changes={"cost": cost, "joined": {"2": 40}}))
    assert (row.name, row.started, row.model, row.peers, row.joined) == ("first", START, "package.of.mine:Net", 2, 1)
    assert (row.state, row.detail, row.rounds) == ("finished", "epoch_limit", 12)
    assert (row.accuracy, row.accuracy_of, row.usd, row.as_if_on_aws) == (0.9375, "test", 0.125, True)


@pytest.mark.parametrize(
    ("changes", "state", "detail"),
    [
        ({"reason": "failed", "error": "peer 1: too hot"}, "failed", "peer 1: too hot"),
        ({"reason": "interrupted", "resume": "peerless train --resume x"}, "interrupted", "peerless train --resume x"),
        ({"reason": "early_stopping", "estimated_usd": 0.5}, "finished", "early_stopping"),
    ],
)
def test_how_a_run_ended_is_told(tmp_path: Path, changes: dict[str, object], state: str, detail: str) -> None:
    row = row_of(ended(tmp_path / "first", changes=changes))
    assert (row.state, row.detail, row.usd) == (state, detail, changes.get("estimated_usd"))


def test_a_run_that_somebody_works_on_is_running_whatever_its_summary_says(tmp_path: Path) -> None:
    folder = begun(tmp_path / "first", *COMMITS)
    folder.write_summary({"reason": "interrupted", "rounds": 1})  # of the part before this one
    with parts.held(folder):
        row = row_of(folder)
    assert (row.state, row.rounds, row.accuracy, row.accuracy_of) == ("running", 2, 0.75, "validation")
    assert row.usd == pytest.approx(0.03)
    assert row_of(folder).state == "interrupted"


def test_a_run_without_process_and_summary_was_killed_unless_it_is_on_aws(tmp_path: Path) -> None:
    killed = row_of(begun(tmp_path / "killed", *COMMITS))
    assert (killed.state, killed.detail, killed.rounds) == ("killed", None, 2)
    resumable = begun(tmp_path / "resumable", *COMMITS)
    resumable.parts.touch()
    assert row_of(resumable).detail == f"peerless train --local --resume {resumable.path}"
    instance = event("instance_started", 0, None, attempt=1)
    let_go = row_of(begun(tmp_path / "let-go", instance, *COMMITS, aws={"name": "lab"}))
    assert (let_go.state, let_go.detail) == ("elsewhere", "`peerless attach --name lab` follows it")


def test_who_joined_is_counted_and_a_line_that_is_none_is_passed_over(tmp_path: Path) -> None:
    folder = begun(tmp_path / "first", *COMMITS)
    with open(folder.events, "a") as file:
        file.write('{"v":1,"t":17\n[1, 2]\n{"event":"commit"}\n\n')
    write_events(folder, event("member_claimed", 2, None, 5.0, incarnation=1))
    write_events(folder, event("commit", 2, 2, 6.0, contributors=[0, 1, 2], loss=0.25))
    write_events(folder, event("commit", 2, 3, 6.0, contributors=[], loss=None, final=True))
    row = row_of(folder)
    assert (row.joined, row.rounds) == (1, 3)


def _damage(folder: RunFolder, name: str, content: str | None) -> None:
    path = folder.path / name
    path.unlink() if content is None else path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.toml", None, "there is no such configuration file"),
        ("config.toml", "peers = [", "not valid TOML"),
        ("config.toml", "pears = 3", "unknown key pears"),
        ("summary.json", '{"reason": ', "is not the summary of a run"),
        ("summary.json", "[]", "is not the summary of a run"),
        ("summary.json", '{"reason": 3}', "is not the summary of a run"),
    ],
)
def test_a_damaged_folder_says_so_and_the_others_are_listed(
    tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    _damage(ended(tmp_path / "damaged"), name, content)
    ended(tmp_path / "whole")
    (tmp_path / "something-else").mkdir()
    (tmp_path / "a-file").touch()
    rows = {row.name: row for row in runs_in(tmp_path)}
    assert rows.keys() == {"damaged", "whole"}
    assert rows["damaged"].state == "damaged"
    assert told in str(rows["damaged"].detail)
    assert rows["whole"].state == "finished"


def test_the_newest_comes_first_and_a_runs_own_folder_is_that_run(tmp_path: Path) -> None:
    for name, later in (("a", 5.0), ("b", 20.0), ("c", 10.0)):
        begun(tmp_path / name, event("peer_started", t=later, mode="sync"))
    assert [row.name for row in runs_in(tmp_path)] == ["b", "c", "a"]
    assert [row.name for row in runs_in(tmp_path / "c")] == ["c"]


def test_a_name_that_no_run_has_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    assert open_run(str(ended(tmp_path / "first").path), tmp_path, "peerless watch").path == tmp_path / "first"
    for number in range(6):
        begun(tmp_path / f"run-{number}", event("peer_started", t=number + 1.0, mode="sync"))
    with pytest.raises(ConfigError, match=r"^peerless watch absent: .*run-5, run-4, .*, run-1 and 2 more"):
        open_run("absent", tmp_path, "peerless watch")
    with pytest.raises(ConfigError, match="there are no runs in"):
        open_run("absent", tmp_path / "nowhere", "peerless watch")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["peerless", *arguments])
    with pytest.raises(SystemExit) as ended_with:
        main()
    return int(ended_with.value.code or 0)


def test_the_command_prints_lines_that_are_not_broken_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "runs") == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    error = "peer 1: " + "it was much too hot " * 20
    ended(Path("runs/first"), changes={"reason": "failed", "error": error.strip()})
    assert command(monkeypatch, "runs") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("first")]
    assert len(told) == 1
    assert told[0].rstrip().endswith(error.strip())
    assert " failed " in told[0]
    assert "2026-11-22 08:39" in told[0]
    assert command(monkeypatch, "runs", "runs", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["name"], row["state"], row["detail"]) == ("first", "failed", error.strip())
    assert command(monkeypatch, "runs", "absent") == 2
    assert capsys.readouterr().err.startswith("peerless: absent: there is no such folder")
