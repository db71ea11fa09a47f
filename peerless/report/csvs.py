"""The figures of a report as CSV files, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from peerless.report.faults import faults
from peerless.report.reading import KeptRun

#: What makes a spreadsheet take a text for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")

#: Of a stage: `began` and `ended` in seconds since the run's start.
_STAGE = ("stage", "began", "ended", "seconds", "cpu_percent", "rss_bytes", "bytes_in", "bytes_out")


def csv_files(runs: Sequence[KeptRun]) -> dict[str, str]:
    """By file name: summary, rounds, stages, faults."""
    return {
        "summary.csv": _written(("run", "figure", "value"), _summary(runs)),
        "rounds.csv": _written(
            ("run", "round", "seconds", "contributors", "loss", "validation_loss", "validation_accuracy", "usd"),
            _rounds(runs),
        ),
        "stages.csv": _written(("run", "rank", "round", *_STAGE), _stages(runs)),
        "faults.csv": _written(("run", "seconds", "first_round", "last_round", "times", "what", "done"), _faults(runs)),
    }


def _summary(runs: Sequence[KeptRun]) -> Iterable[Sequence[Any]]:
    """Nested figures under names with dots."""
    for run in runs:
        waiting = [(name, value) for name, value in reversed(run.summary.items())]
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, dict):
                waiting += [(f"{name}.{key}", each) for key, each in reversed(value.items())]
            elif not isinstance(value, list):
                yield run.name, name, value


def _rounds(runs: Sequence[KeptRun]) -> Iterable[Sequence[Any]]:
    for run in runs:
        for row in run.story.series():
            ranks = sorted({rank for each in row.contributors.values() for rank in each})
            seconds, usd = run.story.seconds(row.t), run.story.usd(row.number)
            losses = (row.loss, row.validation_loss, row.validation_accuracy)
            yield run.name, row.number, round(seconds, 3), " ".join(map(str, ranks)), *losses, usd


def _stages(runs: Sequence[KeptRun]) -> Iterable[Sequence[Any]]:
    for run in runs:
        story = run.story
        for span in sorted((each for spans in story.spans.values() for each in spans), key=lambda each: each.ended):
            began, ended = (round(story.seconds(moment), 6) for moment in (span.began, span.ended))
            figures = (round(span.seconds, 6), span.cpu_percent, span.rss_bytes, span.bytes_in, span.bytes_out)
            yield run.name, span.rank, span.round, span.stage, began, ended, *figures


def _faults(runs: Sequence[KeptRun]) -> Iterable[Sequence[Any]]:
    for run in runs:
        for each in faults(run.story):
            seconds = round(run.story.seconds(each.t), 3)
            yield run.name, seconds, each.first, each.last, each.times, each.what, each.done


def _written(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """Numbers as they are, nothing for nothing; a text that a spreadsheet would run gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return str(value).lower() if isinstance(value, bool) else value
