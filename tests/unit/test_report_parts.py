"""What a report is made of: reading a damaged folder, who waited for whom, faults in sentences, CSV files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import UserError
from peerless.report import overview, sections
from peerless.report.csvs import csv_files
from peerless.report.document import page
from peerless.report.faults import faults
from peerless.report.reading import KeptRun, read_run
from peerless.report.story import Story
from peerless.report.waits import last_ready, waits
from tests.fakes.kept_runs import EVIL, made_run


def told(*events: dict[str, Any]) -> Story:
    story = Story()
    for event in events:
        story.add({"v": 1, "run": "toy", "t": 0.0, "round": 0, **event})
    return story


def stage(rank: int, name: str, end: float, seconds: float, round: int = 0) -> dict[str, Any]:
    return {"event": "stage", "rank": rank, "round": round, "t": end, "stage": name, "seconds": seconds}


def test_damaged_lines_are_told_by_number_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", rounds=5)
    whole = read_run(folder)
    lines = (folder / "events.jsonl").read_text().splitlines()
    damaged = [*lines[:4], lines[4][:30], '["no", "event"]', '{"event":"commit","rank":0,"t":1,"round":2}', *lines[5:]]
    (folder / "events.jsonl").write_text("\n".join(damaged) + "\n" + lines[0][:10])
    found = read_run(folder)
    numbers = [problem.partition(", line ")[2].partition(":")[0] for problem in found.problems]
    assert numbers == ["5", "6", "7", str(len(damaged) + 1)]
    assert [row.loss for row in found.story.series()] == [row.loss for row in whole.story.series()]


def test_of_many_damaged_lines_the_number_is_told(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", rounds=1)
    with (folder / "events.jsonl").open("a") as file:
        file.write("nonsense\n" * 40)
    problems = read_run(folder).problems
    assert len(problems) == 6
    assert "35 more lines" in problems[-1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "summary.json is no summary"),
        ("summary.json", None, "summary.json is not there"),
        ("config.toml", "peers = ", "config.toml is damaged"),
        ("events.jsonl", None, "events.jsonl is not there"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_rest_is_shown(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    folder = made_run(tmp_path / "run")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    (problem,) = read_run(folder).problems
    assert said in problem
    assert said in page([read_run(folder)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_accuracy", "high"),
        ("rounds", True),
        ("bytes_sent", [1, 2]),
        ("bytes_sent", {"x": 1}),
        ("restarts", {"0": "often"}),
        ("stages", {"compute": {"seconds": 1.0}}),
        ("stages", 3),
        ("cost", "much"),
        ("cost", {"total": 1.0, "parts": {"lambda": "free"}}),
        ("cost", {"total": 1.0, "parts": [1.0]}),
        ("rejected_by_sender", {"1": 4}),
        ("lost_ranks", 1),
        ("weights_sha256", ["ab"]),
    ],
)
def test_a_figure_of_another_form_is_left_out_and_told(tmp_path: Path, key: str, value: Any) -> None:
    folder = made_run(tmp_path / "run", rounds=2)
    summary = json.loads((folder / "summary.json").read_text()) | {key: value}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = read_run(folder)
    assert [problem.partition(": ")[2] for problem in run.problems] == [f"{key} has another form than it should"]
    assert "87.65%" in page([run]) or key == "test_accuracy"


def test_a_folder_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("peers = 3\n")
    with pytest.raises(UserError, match="nothing to report"):
        read_run(tmp_path)


def test_every_peer_waits_for_the_last_contribution() -> None:
    story = told(
        stage(0, "compute", 1.0, 1.0),
        stage(0, "send", 1.5, 0.5),
        stage(0, "receive", 5.5, 4.0),
        stage(1, "compute", 5.0, 5.0),
        stage(1, "send", 5.2, 0.2),
        stage(1, "receive", 5.5, 0.3),
        stage(0, "compute", 7.0, 1.0, round=1),
        stage(0, "send", 7.5, 0.5, round=1),
    )
    assert last_ready(story, 0) == 1
    assert last_ready(story, 1) is None  # of one contribution nobody can be the last
    first, second = waits(story)
    assert (first.seconds, first.for_whom, first.awaited, first.counted) == (4.0, 1, 0, 1)
    assert first.share == pytest.approx(4.0 / 7.0)
    assert (second.seconds, second.for_whom, second.awaited) == (pytest.approx(0.3), None, 1)


def test_what_comes_again_in_the_same_words_is_counted() -> None:
    again = [
        {"event": "aggregated", "rank": 0, "round": number, "aggregator": "krum", "left_out": [2], "clipped": []}
        for number in (3, 4, 7)
    ]
    (found,) = faults(told(*again))
    assert (found.first, found.last, found.times) == (3, 7, 3)
    assert found.what == "krum took nothing of peer 2"


@pytest.mark.parametrize(
    ("event", "what", "done"),
    [
        ({"event": "member_dropped", "member": 2, "reason": "silent"}, "peer 2 was dropped: silent", "went on without"),
        ({"event": "member_dropped", "member": 2, "reason": "left"}, "peer 2 left", "the others went on"),
        ({"event": "failed", "error": "no disk", "alone": True}, "peer 0 failed: no disk", "the others went on"),
        ({"event": "failed", "error": "no disk"}, "peer 0 failed: no disk", "the run ended"),
        ({"event": "instance_started", "attempt": 2}, "another instance (attempt 2)", "started again"),
        ({"event": "waiting", "for": [1, 3], "needed": 2}, "waiting for peer 1, 3", "waited for them"),
        ({"event": "caught_up", "replayed": 4, "base_weights": ""}, "came back", "replayed 4 rounds"),
        ({"event": "caught_up", "from": 3}, "came back", "weights of peer 3"),
        ({"event": "gradient_late", "kept": True, "samples": 4}, "after the commit", "sends it later"),
        ({"event": "weights_adopted"}, "differ from the recorded ones", "adopted"),
        ({"event": "shard_conflict", "shard": 1}, "averaged a shard otherwise", "counts"),
        ({"event": "residual_lost"}, "lost its error feedback", "from nothing"),
        ({"event": "lr_reduced", "lr": 0.125}, "stopped falling", "learning rate 0.125"),
    ],
)
def test_a_fault_says_what_happened_and_what_was_done(event: dict[str, Any], what: str, done: str) -> None:
    (found,) = faults(told({"rank": 0, **event}))
    assert what in found.what
    assert done in found.done


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_files_have_the_figures(tmp_path: Path) -> None:
    run = read_run(made_run(tmp_path / "run", peers=3, rounds=4))
    files = {name: rows_of(text) for name, text in csv_files([run]).items()}
    figures = {row["figure"]: row["value"] for row in files["summary.csv"]}
    assert float(figures["test_accuracy"]) == run.summary["test_accuracy"]
    assert float(figures["cost.parts.s3"]) == run.summary["cost"]["parts"]["s3"]
    assert [float(row["loss"]) for row in files["rounds.csv"]] == [each.loss for each in run.story.series()]
    assert [row["contributors"] for row in files["rounds.csv"]] == ["0 1 2"] * 4
    assert len(files["stages.csv"]) == 3 * 4 * 5
    assert sum(float(row["seconds"]) for row in files["stages.csv"]) == pytest.approx(3 * 4 * 2.8)
    assert "peer 1 was dropped: silent" in [row["what"] for row in files["faults.csv"]]


def test_a_spreadsheet_is_given_no_formula(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", rounds=1)
    summary = json.loads((folder / "summary.json").read_text()) | {"error": "=cmd|'/c calc'!A1", "test_loss": -2.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    figures = {row["figure"]: row["value"] for row in rows_of(csv_files([read_run(folder)])["summary.csv"])}
    assert figures["error"] == "'=cmd|'/c calc'!A1"
    assert figures["test_loss"] == "-2.5"


def test_what_runs_differ_in_is_shown(tmp_path: Path) -> None:
    runs = [read_run(made_run(tmp_path / mode, mode=mode, rounds=2)) for mode in ("sync", "async")]
    table = overview.configuration(runs).blocks[0]
    assert [row.cells for row in getattr(table, "rows")] == [("mode", "sync", "async")]  # noqa: B009


def test_a_summary_without_cost_and_events_without_bills_say_so(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", rounds=2)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "cost"}))
    events = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(line for line in events if '"bill"' not in line))
    run = read_run(folder)
    words = [getattr(block, "text", "") for block in sections.cost([run]).blocks]
    assert words == ["run: no cost by part, as its summary has none. By the peers' own count it was at most 0.04 USD."]
    assert "Nothing per US dollar" in page([run])


def test_a_page_escapes_what_a_run_says_and_loads_nothing(tmp_path: Path) -> None:
    evil = read_run(made_run(tmp_path / "evil", evil=True, rounds=3))
    named = KeptRun(**{**vars(evil), "name": EVIL})
    html = page([named, read_run(made_run(tmp_path / "other", rounds=3))])
    assert "<script" not in html
    assert "<img" not in html
    assert not [
        word
        for word in ("http://", "https://", "@import", "url(")
        if word in html.replace("http://www.w3.org/2000/svg", "")
    ]
