"""`peerless report` through the command's own entry point: what it writes where, and mistakes in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peerless.cli import main
from tests.fakes.kept_runs import made_run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs in runs/, and one elsewhere under the name of the first."""
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs" / "first", rounds=3)
    made_run(tmp_path / "runs" / "second", rounds=3, mode="async")
    made_run(tmp_path / "elsewhere" / "first", rounds=3)
    return tmp_path


def report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["peerless", "report", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_report_lies_in_the_folder_of_its_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(monkeypatch, "first") == 0
    assert capsys.readouterr().out.strip() == "runs/first/report.html"
    assert "<h1>first</h1>" in (place / "runs/first/report.html").read_text()


def test_runs_side_by_side_lie_here_and_those_of_one_name_have_their_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report(monkeypatch, "runs/first", "second", "elsewhere/first") == 0
    html = (place / "report-first-second-first.html").read_text()
    assert "3 runs side by side" in html
    assert "runs/first, runs/second, elsewhere/first" in html


def test_out_and_csv_say_where(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report(monkeypatch, "first", "--out", "new/page.html", "--csv", "new/csv") == 0
    assert (place / "new/page.html").is_file()
    names = sorted(path.name for path in (place / "new/csv").iterdir())
    assert names == ["faults.csv", "rounds.csv", "stages.csv", "summary.csv"]
    assert not (place / "runs/first/report.html").exists()


def test_what_is_damaged_is_noted_and_the_rest_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (place / "runs/first/events.jsonl").open("a") as file:
        file.write('{"half": ')
    assert report(monkeypatch, "first") == 0
    assert "events.jsonl, line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["third"], "third: there is no run of that name"),
        (["elsewhere"], "elsewhere: there is no run of that name"),
        (["first", "runs/first"], "the same run is named twice"),
        (["first", "--out", "runs"], "runs is a folder; name a file"),
        (["first", "--out", "runs/first/config.toml/x.html"], "cannot be written"),
        (["first", "--csv", "runs/first/config.toml"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    assert report(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
