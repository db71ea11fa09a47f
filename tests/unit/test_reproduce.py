"""The paper's tables and figures from given runs: which figure stands where, and how it is written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from contract.config import with_overrides
from contract.errors import RunFailed, UserError
from peerless.cli import main
from peerless.reproduce.experiment import Experiment, Outcome, Scale
from peerless.reproduce.experiments import EXPERIMENTS, named
from peerless.reproduce.figure6 import validations
from peerless.reproduce.result import Origin, Result, Row, Table, check_folder, markdown, text_of, write
from peerless.reproduce.runner import machine, reproduce
from tests.fakes.reproduced import outcome

SECONDS = {"compute": 4.0, "send": 0.5, "receive": 1.0, "update": 0.25, "convergence": 0.75}
EVERY = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))


def made_of(experiment: Experiment) -> Result:
    runs = {
        name: outcome(name, SECONDS, workers=3, accuracy=(0.1, 0.75, 0.5, 0.625))
        for name in experiment.trainings(Scale.SMALL)
    }
    return experiment.result(Scale.SMALL, runs, "2 cores of a test")


def row(table: Table, origin: Origin, name: str) -> tuple[Any, ...]:
    (found,) = (each.values for each in table.rows if each.origin is origin and each.name == name)
    return found


@EVERY
@pytest.mark.parametrize("scale", Scale)
def test_every_run_of_an_experiment_is_a_valid_configuration(experiment: Experiment, scale: Scale) -> None:
    for name, config in experiment.trainings(scale).items():
        made = with_overrides(config, (), name)
        assert made.early_stopping.patience == 0
        if scale is Scale.SMALL:
            assert made.data.train_samples >= made.peers * made.batch_size


@EVERY
def test_a_result_names_its_runs_and_marks_every_row(experiment: Experiment, tmp_path: Path) -> None:
    result = made_of(experiment)
    assert result.name == experiment.name
    assert set(result.runs) == set(experiment.trainings(Scale.SMALL))
    origins = {row.origin for table in result.tables for row in table.rows}
    assert Origin.MEASURED in origins
    text = markdown(result)
    for table in result.tables:
        for each in table.rows:
            assert f"| {each.name} | {each.origin.value} |" in text
    for path in write(result, tmp_path):
        assert path.stat().st_size > 100


def test_a_stage_takes_the_median_over_the_later_rounds_of_the_mean_over_peers() -> None:
    run = outcome("a", SECONDS)
    assert run.stage("compute") == pytest.approx((4.0 + 8.0) / 2)
    assert run.stage("send", "bytes_out") == 1_000_000
    with pytest.raises(RunFailed, match="no stage validate"):
        run.stage("validate")
    with pytest.raises(RunFailed, match="invocations"):
        run.worked("invocations")


def test_table_2_holds_formula_and_measurement() -> None:
    result = made_of(EXPERIMENTS["table2"])
    formula = result.tables[0]
    assert row(formula, Origin.PAPER, "cost per peer, USD") == (0.03567, 0.03069, 0.03451, 0.05435)
    cut = row(formula, Origin.COMPUTED, "the same, cut off after five decimals")
    assert cut == pytest.approx((0.03567, 0.03069, 0.03554, 0.05435))
    measured = result.tables[-1]
    assert measured.columns == ("batches of 128", "batches of 64")
    assert row(measured, Origin.MEASURED, "with workers: seconds") == pytest.approx((6.0, 6.0))
    assert row(measured, Origin.MEASURED, "of a peer: workers") == (3, 3)
    # Three workers of 1,769 MB and a t2.small for six seconds.
    usd = (3 * 1769 / 1024 * 0.0000133334 + 0.0230 / 3600) * 6
    assert row(measured, Origin.COMPUTED, "formula (1) with these seconds: USD") == pytest.approx((usd, usd))


def test_what_formula_1_leaves_out_adds_up() -> None:
    table = made_of(EXPERIMENTS["table2"]).tables[1]
    parts = [each.values for each in table.rows[:6]]
    sums = row(table, Origin.COMPUTED, "sum")
    assert sums == pytest.approx([sum(column) for column in zip(*parts, strict=True)])
    # Batches of 64: 235 tasks and the state that holds them.
    assert row(table, Origin.COMPUTED, "state transitions")[3] == pytest.approx(236 * 0.000025)


def test_table_1_divides_the_totals_by_the_epochs() -> None:
    table = made_of(EXPERIMENTS["table1"]).tables[0]
    assert table.title == "SqueezeNet 1.1 on MNIST"
    assert row(table, Origin.PAPER, "seconds per epoch") == (14.93, 0.084, 0.25, 0.18, 0.19)
    assert row(table, Origin.MEASURED, "seconds per epoch") == pytest.approx((4.0, 0.5, 1.0, 0.25, 0.75))
    shares = row(table, Origin.COMPUTED, "here: share of the epoch, %")
    assert sum(shares) == pytest.approx(100)


def test_figure_3_holds_the_two_values_that_the_text_gives() -> None:
    result = made_of(EXPERIMENTS["figure3"])
    reductions = result.tables[0]
    assert row(reductions, Origin.PAPER, "4 peers") == (97.34, None, None, None)
    assert row(reductions, Origin.PAPER, "8 peers") == (None, 92.04, None, None)
    assert row(reductions, Origin.DERIVED, "8 peers")[1] == pytest.approx(92.04, abs=0.2)
    assert [table.title.split()[0] for table in result.tables[1:]] == ["4", "8"]
    assert row(result.tables[1], Origin.MEASURED, "with workers") == pytest.approx((6.0, 6.0, 6.0))


def test_figure_4_adds_sending_and_receiving_up() -> None:
    table = made_of(EXPERIMENTS["figure4"]).tables[0]
    assert table.columns == ("2 peers", "4 peers", "8 peers")
    assert row(table, Origin.MEASURED, "communication: seconds") == pytest.approx((2.25, 2.25, 2.25))
    assert row(table, Origin.MEASURED, "sent and received: MB") == pytest.approx((6.0, 6.0, 6.0))


def test_figure_5_compares_codecs() -> None:
    result = made_of(EXPERIMENTS["figure5"])
    assert result.tables[0].columns == ("uncompressed", "QSGD, 8 bits", "QSGD, 4 bits")
    assert row(result.tables[0], Origin.MEASURED, "sent: MB") == pytest.approx((1.0, 1.0, 1.0))
    assert set(result.charts) == {"figure5-64.svg", "figure5-128.svg"}


def test_figure_6_finds_the_best_validation_and_the_largest_fall() -> None:
    (table,) = made_of(EXPERIMENTS["figure6"]).tables
    assert row(table, Origin.PAPER, "synchronous, MobileNet V3 Small")[:3] == (128, None, 84.3)
    found = row(table, Origin.MEASURED, "asynchronous")
    assert found == pytest.approx((3, 3, 75.0, 25.0, 50.0, 12.5))
    assert validations(outcome("a", SECONDS, accuracy=(0.5,))) == [(0.0, 0.0, 0.5)]
    run = outcome("a", SECONDS, accuracy=(0.5, 0.7))
    another = {"round": 1, "rank": 1, "t": 1_003.0, "event": "validated", "validation_accuracy": 0.9}
    both = Outcome(summary=run.summary, events=[*run.events, another])
    assert validations(both) == [(0.0, 0.0, 0.5), (1.0, 2.0, pytest.approx(0.8))]
    with pytest.raises(RunFailed, match="validated nothing"):
        validations(outcome("a", SECONDS))


def test_the_help_names_every_experiment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["peerless", "reproduce", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert all(name in told for name in EXPERIMENTS)


def test_the_three_forms_hold_the_same_figures(tmp_path: Path) -> None:
    table = Table(
        title="Times",
        columns=("seconds", "by | whom"),
        rows=(
            Row(origin=Origin.PAPER, name="theirs", values=(1 / 3, "them")),
            Row(origin=Origin.MEASURED, name="ours", values=(12, None)),
        ),
        note="A note.",
    )
    result = Result(
        name="t", title="T", scale="small", machine="m", tables=(table,), charts={"t.svg": "<svg/>"}, notes=("why",)
    )
    paths = {path.name: path for path in write(result, tmp_path)}
    assert set(paths) == {"t.md", "t.json", "t.csv", "t.svg"}
    text = paths["t.md"].read_text()
    assert "| theirs | paper | 0.33333 | them |" in text
    assert "| ours | measured | 12 | – |" in text
    assert "by \\| whom" in text
    assert "![t](t.svg)" in text
    with open(paths["t.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"table": "Times", "row": "theirs", "origin": "paper", "column": "seconds", "value": str(1 / 3)}
    assert rows[3]["value"] == ""
    told = json.loads(paths["t.json"].read_text())
    assert told["tables"][0]["rows"][0]["values"] == [1 / 3, "them"]
    assert told["tables"][0]["rows"][1]["origin"] == "measured"
    assert told["charts"] == ["t.svg"]


def test_a_row_must_fit_its_table() -> None:
    with pytest.raises(ValueError, match="2 values for 1 columns"):
        Table(title="T", columns=("a",), rows=(Row(origin=Origin.PAPER, name="r", values=(1, 2)),))


def test_values_for_people() -> None:
    assert [text_of(each) for each in (0.0355407, 41.2, 235, None, "arm64")] == [
        "0.035541",
        "41.2",
        "235",
        "–",
        "arm64",
    ]


def test_the_runner_trains_everything_in_folders_of_its_own(tmp_path: Path) -> None:
    seen: dict[Path, Mapping[str, Any]] = {}
    notes: list[str] = []

    def trainer(config: Mapping[str, Any], folder: Path) -> Outcome:
        seen[folder] = config
        return outcome(folder.name, SECONDS)

    experiment = EXPERIMENTS["table3"]
    result, written = reproduce(experiment, Scale.SMALL, tmp_path / "out", notes.append, trainer)
    assert seen == {
        tmp_path / "out" / "runs" / name: config for name, config in experiment.trainings(Scale.SMALL).items()
    }
    assert notes == ["table3: run 1 of 2, local-64", "table3: run 2 of 2, local-128"]
    assert json.loads((tmp_path / "out" / "table3.json").read_text())["runs"] == list(result.runs)
    assert all(path.parent == tmp_path / "out" for path in written)


def test_the_machine_is_told_with_what_else_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (7.25, 1.0, 1.0))
    assert machine().startswith("1 core of ")
    assert machine().endswith(", load average 7.2 before")


def test_an_interrupted_run_gives_no_result(tmp_path: Path) -> None:
    def trainer(config: Mapping[str, Any], folder: Path) -> Outcome:
        ended = outcome(folder.name, SECONDS)
        return Outcome(summary={**ended.summary, "reason": "interrupted"}, events=ended.events)

    with pytest.raises(KeyboardInterrupt, match="local-64"):
        reproduce(EXPERIMENTS["table3"], Scale.SMALL, tmp_path / "out", lambda _: None, trainer)
    assert not list((tmp_path / "out").glob("table3.*"))


def test_mistakes_are_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'table9' is none of table1"):
        named("table9")
    (tmp_path / "file").touch()
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="exists and is not empty"):
            check_folder(used)
    with pytest.raises(UserError, match="cannot be created"):
        check_folder(tmp_path / "file" / "below")
