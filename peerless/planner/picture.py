"""What the planner found, for the terminal: the frontier as a table and as a scatter, and the verdict in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peerless.planner.choice import Marks
from peerless.planner.model import Prediction
from peerless.planner.verdict import Verdict, span

#: Size of the scatter in characters.
WIDTH, HEIGHT = 60, 12
#: Rows of the table at most; of a longer frontier every so many, and all that are marked.
ROWS = 14
CONFIGURED, PLAN = "○", "•"


def labels(marks: Marks, count: int) -> dict[int, str]:
    """By position in the frontier, what a plan is marked with."""
    named = {marks.fastest: ["fastest"]}
    named.setdefault(marks.knee, []).append("knee")
    named.setdefault(marks.cheapest, []).append("cheapest")
    if marks.chosen is not None:
        named.setdefault(marks.chosen, []).append("taken")
    return {at: ", ".join(names) for at, names in named.items() if at < count}


def table(found: Sequence[Prediction], marks: Marks, configured: Prediction) -> RenderableType:
    """The frontier, the fastest first, and the configuration as it is in the last row."""
    made = Table(title="time and money: plans that no other beats in both", title_justify="left")
    for name in ("", "s a round", "USD a round", "to the end", "USD", "gradients", "exchange", "machines"):
        made.add_column(name, justify="right" if name.startswith(("s ", "USD", "to ")) else "left")
    named = labels(marks, len(found))
    every = math.ceil(len(found) / ROWS)
    for at, plan in enumerate(found):
        if at % every == 0 or at in named:
            made.add_row(named.get(at, ""), *_cells(plan))
    made.add_section()
    made.add_row("as configured", *_cells(configured))
    return made


def scatter(found: Sequence[Prediction], marks: Marks, configured: Prediction) -> str:
    """Seconds to the end (across) against US dollars (up), both in logarithms, in characters.

    F, K, C, T: fastest, knee, cheapest, taken; the last of them where they coincide.
    """
    points = [(plan.seconds, plan.usd, PLAN) for plan in found]
    points.append((configured.seconds, configured.usd, CONFIGURED))
    lettered = [(marks.fastest, "F"), (marks.cheapest, "C"), (marks.knee, "K")]
    lettered += [] if marks.chosen is None else [(marks.chosen, "T")]
    points += [(found[at].seconds, found[at].usd, letter) for at, letter in lettered]
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for x, y, (_, _, sign) in zip(xs, ys, points, strict=True):
        row = HEIGHT - 1 - _place(y, min(ys), max(ys), HEIGHT)
        grid[row][_place(x, min(xs), max(xs), WIDTH)] = sign
    seconds, usd = (sorted(point[axis] for point in points) for axis in (0, 1))
    side = {0: f"{usd[-1]:.3g} USD", HEIGHT - 1: f"{usd[0]:.3g} USD"}
    lines = [f"{side.get(row, ''):>12} ┤{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    lines.append(f"{'':12} └{'─' * WIDTH}")
    lines.append(f"{'':14}{span(seconds[0])}{span(seconds[-1]):>{WIDTH - len(span(seconds[0]))}}")
    lines.append(f"{'':14}F fastest, K knee, C cheapest, T taken, {CONFIGURED} as configured")
    return "\n".join(lines)


def shown(
    found: Sequence[Prediction], marks: Marks, configured: Prediction, verdict: Verdict, changes: Mapping[str, Any]
) -> RenderableType:
    """All of it."""
    rows: list[RenderableType] = [table(found, marks, configured), Text(scatter(found, marks, configured)), Text()]
    rows += [Text(sentence) for sentence in verdict.sentences]
    plan = None if marks.chosen is None else found[marks.chosen]
    if plan is None:
        rows.append(Text(f"Taken: none, {marks.why}. The fastest takes {_both(found[marks.fastest])}, the cheapest "
                         f"{_both(found[marks.cheapest])}."))  # fmt: skip
    else:
        rows.append(Text(f"Taken: {marks.why}. {_both(plan)}; the band is one standard deviation, most of it from "
                         f"{plan.unsure}."))  # fmt: skip
        told = ", ".join(f"{key} = {value}" for key, value in changes.items())
        rows.append(Text(f"It sets {told}." if told else "It is what is configured."))
    return Group(*rows)


def _cells(found: Prediction) -> tuple[str, ...]:
    plan = found.plan
    if plan.service == "lambda":
        mode = "express" if plan.express else plan.state_machine.removesuffix("_map")
        gradients = f"Lambda {plan.memory_mb:,} MB, {plan.batches_per_worker} a worker, {mode}"
    else:
        gradients = "instances"
    return (
        f"{found.round_seconds:.3g} ±{found.round_spread:.0%}",
        f"{found.round_usd:.3g}",
        span(found.seconds),
        f"{found.usd:.3g} ±{found.usd_spread:.0%}",
        gradients,
        f"{plan.codec}, {plan.topology}",
        f"{plan.peers} x {plan.instance_type}, {plan.broker}",
    )


def _both(found: Prediction) -> str:
    return f"{span(found.seconds)} ±{found.seconds_spread:.0%} and {found.usd:.3g} USD ±{found.usd_spread:.0%}"


def _place(value: float, low: float, high: float, size: int) -> int:
    return 0 if high <= low else min(size - 1, round((value - low) / (high - low) * (size - 1)))
