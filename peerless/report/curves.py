"""Loss and accuracy as pictures: per round, over time, and per US dollar, of one run or several side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from peerless.report import charts
from peerless.report.axes import Axis
from peerless.report.blocks import Block, Picture, Section, Words
from peerless.report.charts import Line
from peerless.report.reading import KeptRun
from peerless.report.story import Round, Story

_ROUND = Axis(label="rounds completed", whole=True)
_SECONDS = Axis(label="seconds since the start")
_USD = Axis(label="USD, at most")
_ACCURACY = Axis(label="validation accuracy", percent=True)

Across = Callable[[KeptRun, Round], float | None]
Up = Callable[[Round], float | None]


def section(runs: Sequence[KeptRun]) -> Section:
    """What was learned, and what it took."""
    blocks: list[Block] = []
    priced = any(run.story.usd() is not None for run in runs)
    ways: list[tuple[str, Axis, Across]] = [("per round", _ROUND, _round), ("over time", _SECONDS, _moment)]
    if priced:
        bills = {run.name: _spent(run.story) for run in runs}
        ways.append(("per US dollar", _USD, lambda run, row: bills[run.name].get(row.number)))
    for told, axis, across in ways:
        for picture in (_losses(runs, told, axis, across), _accuracies(runs, told, axis, across)):
            if picture is not None:
                blocks.append(picture)
    if not blocks:
        blocks.append(Words(text="No round was completed, so there is neither loss nor accuracy to show."))
    elif not any(row.validation_accuracy is not None for run in runs for row in run.story.series()):
        blocks.append(Words(text="No accuracy: nothing was validated yet, or the targets have none."))
    if not priced:
        blocks.append(
            Words(
                text="Nothing per US dollar: the events bring no bill, as the configuration of the run had no prices."
            )
        )
    return Section(name="learning", title="Loss and accuracy", blocks=tuple(blocks))


def _losses(runs: Sequence[KeptRun], told: str, x: Axis, across: Across) -> Picture | None:
    """Training and validation loss of one run; of several the validation loss, or the training loss if none has one."""
    y = Axis(label="loss")
    if len(runs) == 1:
        lines = [_line(runs[0], "training", across, _training), _line(runs[0], "validation", across, _validation)]
    else:
        validated = any(row.validation_loss is not None for run in runs for row in run.story.series())
        y = Axis(label="validation loss" if validated else "training loss")
        lines = [_line(run, run.name, across, _validation if validated else _training) for run in runs]
    return _picture(f"{'Loss' if len(runs) == 1 else y.label.capitalize()} {told}", runs, lines, x, y)


def _accuracies(runs: Sequence[KeptRun], told: str, x: Axis, across: Across) -> Picture | None:
    lines = [_line(run, run.name if len(runs) > 1 else "validation", across, _accuracy) for run in runs]
    if len(runs) == 1:
        lines = [Line(name=line.name, points=line.points, colour=1) for line in lines]
    return _picture(f"Validation accuracy {told}", runs, lines, x, _ACCURACY)


def _picture(caption: str, runs: Sequence[KeptRun], lines: Sequence[Line], x: Axis, y: Axis) -> Picture | None:
    """None where there is no point."""
    places = list(enumerate(lines))
    shown = [
        Line(name=line.name, points=line.points, colour=place if line.colour is None else line.colour)
        for place, line in places
        if any(math.isfinite(point[1]) for point in line.points)
    ]
    if not shown:
        return None
    last = [f"{line.name} ends at {line.points[-1][1]:.4g}" for line in shown]
    return Picture(caption=caption, svg=charts.lines(caption, "; ".join(last), shown, x=x, y=y))


def _line(run: KeptRun, name: str, across: Across, up: Up) -> Line:
    points = []
    for row in run.story.series():
        value, place = up(row), across(run, row)
        if value is not None and place is not None:
            points.append((place, value))
    return Line(name=name, points=points)


def _round(run: KeptRun, row: Round) -> float:
    """Rounds completed before: a round measures the weights that it starts from."""
    return float(row.number)


def _moment(run: KeptRun, row: Round) -> float:
    return run.story.seconds(row.t)


def _spent(story: Story) -> dict[int, float]:
    """By round, what all peers' bills were at its end, as `Story.usd`, in one pass."""
    most: dict[tuple[str, int], float] = {}
    spent: dict[int, float] = {}
    for number in sorted({*story.rounds, *(round for told in story.bills_told.values() for round in told)}):
        for key, told in story.bills_told.items():
            if number in told:
                most[key] = max(most.get(key, 0.0), told[number])
        if most:
            spent[number] = sum(most.values())
    return spent


def _training(row: Round) -> float | None:
    return row.loss


def _validation(row: Round) -> float | None:
    return row.validation_loss


def _accuracy(row: Round) -> float | None:
    return row.validation_accuracy
