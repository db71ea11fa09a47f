"""The planner's output for people: every mark in its place, and nothing that breaks where there is little to show."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from peerless.planner.assumptions import assumptions
from peerless.planner.choice import Marks
from peerless.planner.picture import HEIGHT, WIDTH, described, labels, scatter, shown, table
from peerless.planner.planning import configured_plan, planned
from tests.fakes.planning import calibration, job


def marks(fastest: int, cheapest: int, knee: int, chosen: int | None) -> Marks:
    return Marks(fastest=fastest, cheapest=cheapest, knee=knee, chosen=chosen, why="why")


def test_marks_that_coincide_stand_together() -> None:
    assert labels(marks(0, 3, 2, 2), 4) == {0: "fastest", 2: "knee, taken", 3: "cheapest"}
    assert labels(marks(0, 0, 0, None), 1) == {0: "fastest, knee, cheapest"}


def test_points_lie_where_time_and_money_put_them() -> None:
    found = planned(job(), calibration(), assumptions())
    first = found.frontier[0]
    # In logarithms the middle one is in the middle.
    three = [dataclasses.replace(first, seconds=seconds, usd=usd) for seconds, usd in ((1, 100), (10, 10), (100, 1))]
    lines = scatter(three, marks(0, 2, 1, 0), three[1]).splitlines()
    rows = [line[14:] for line in lines[:HEIGHT]]
    assert rows[0] == "T"  # the fastest, which is taken, in the upper left corner
    assert rows[-1] == " " * (WIDTH - 1) + "C"
    assert [(row.index("K"), at) for at, row in enumerate(rows) if "K" in row] == [(30, 5)]
    assert lines[0].startswith("     100 USD")
    assert lines[HEIGHT - 1].startswith("       1 USD")
    one = scatter(three[:1], marks(0, 0, 0, 0), three[0]).splitlines()
    assert one[HEIGHT - 1][14:] == "T"


def test_a_plan_in_a_line() -> None:
    configured = configured_plan(job(), calibration())
    assert described(configured, None) == "Lambda 1,769 MB x 1 inline, 4 t4g.medium, qsgd4, all_gather, mq.m7g.medium"
    other = dataclasses.replace(configured, service="local", instance_type="c7g.large", codec="none")
    assert described(other, configured) == "instances, 4 c7g.large, none"
    assert described(dataclasses.replace(configured, express=True), configured).startswith(
        "Lambda 1,769 MB x 1 Express"
    )


def test_everything_fits_a_terminal_of_a_hundred_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for deadline in (None, 1.0):
        found = planned(job(), calibration(), assumptions(), deadline=deadline)
        console.print(shown(found.frontier, found.marks, found.configured, found.verdict, found.changes))
    text = console.export_text()
    assert "Taken: none, no plan keeps these limits" in text
    assert "It sets compute" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    console.print(table(found.frontier, found.marks, found.configured))
    assert "as configured" in console.export_text()
