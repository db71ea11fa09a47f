"""What the planner found: the frontier as a table, a scatter in characters and a picture; the verdict in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peerless.planner.choice import Marks
from peerless.planner.model import Prediction, band
from peerless.planner.plan import Plan
from peerless.planner.verdict import Verdict, span
from peerless.report import charts
from peerless.report.axes import Axis

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
    for name in ("", "a round", "USD", "to the end", "USD", "plan"):
        made.add_column(name, justify="left" if name in ("", "plan") else "right")
    named = labels(marks, len(found))
    every = math.ceil(len(found) / ROWS)
    for at, plan in enumerate(found):
        if at % every == 0 or at in named:
            made.add_row(named.get(at, ""), *_figures(plan), described(plan.plan, configured.plan))
    made.add_section()
    made.add_row("as configured", *_figures(configured), described(configured.plan, None))
    return made


def described(plan: Plan, configured: Plan | None) -> str:
    """A plan in a line: where gradients are computed, the machines, and what else differs from the configuration."""
    text = "instances"
    if plan.service == "lambda":
        mode = "Express" if plan.express else plan.state_machine.removesuffix("_map")
        text = f"Lambda {plan.memory_mb:,} MB x {plan.batches_per_worker} {mode}"
    parts = [text, f"{plan.peers} {plan.instance_type}"]
    for name in ("codec", "topology", "broker"):
        if configured is None or getattr(plan, name) != getattr(configured, name):
            parts.append(getattr(plan, name))
    return ", ".join(parts)


def scatter(found: Sequence[Prediction], marks: Marks, configured: Prediction) -> str:
    """Seconds to the end (across) against US dollars (up), both in logarithms, in characters.

    F, K, C, T: fastest, knee, cheapest, taken; the last of them where they coincide.
    """
    placed = [(plan, PLAN) for plan in found] + [(configured, CONFIGURED)]
    placed += [(found[marks.fastest], "F"), (found[marks.cheapest], "C"), (found[marks.knee], "K")]
    placed += [] if marks.chosen is None else [(found[marks.chosen], "T")]
    seconds, usd = ([plan.seconds for plan, _ in placed], [plan.usd for plan, _ in placed])
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for plan, sign in placed:
        row = HEIGHT - 1 - _place(plan.usd, usd, HEIGHT)
        grid[row][_place(plan.seconds, seconds, WIDTH)] = sign
    side = {0: f"{max(usd):.3g} USD", HEIGHT - 1: f"{min(usd):.3g} USD"}
    lines = [f"{side.get(row, ''):>12} ┤{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    lines.append(f"{'':12} └{'─' * WIDTH}")
    lines.append(f"{'':14}{span(min(seconds))}{span(max(seconds)):>{WIDTH - len(span(min(seconds)))}}")
    lines.append(f"{'':14}F fastest, K knee, C cheapest, T taken, {CONFIGURED} as configured")
    return "\n".join(lines)


def svg(found: Sequence[Prediction], marks: Marks, configured: Prediction) -> str:
    """The same as a picture that stands alone, with the bands of the cost. XML text."""
    named = labels(marks, len(found))
    frontier = charts.Line(
        name="no other plan is cheaper and faster",
        points=[(plan.seconds, plan.usd) for plan in found],
        labels=[named.get(at, "") for at in range(len(found))],
        joined=True,
        ranges=[_range(plan) for plan in found],
    )
    now = charts.Line(name="as configured", points=[(configured.seconds, configured.usd)], ranges=[_range(configured)])
    picture = charts.scatter(
        "Time and money of this run",
        f"{len(found)} plans from {span(found[0].seconds)} and {found[0].usd:.3g} USD to {span(found[-1].seconds)} and "
        f"{found[-1].usd:.3g} USD; as configured {span(configured.seconds)} and {configured.usd:.3g} USD.",
        [frontier, now],
        x=Axis(label="seconds to the end", log=True),
        y=Axis(label="USD to the end", log=True),
        size=(640, 420),
    )
    return picture.replace(">", f"><style>{charts.STYLE}</style>", 1)


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


def _figures(found: Prediction) -> tuple[str, ...]:
    return (
        f"{span(found.round_seconds)} ±{found.round_spread:.0%}",
        f"{found.round_usd:.2g}",
        span(found.seconds),
        f"{found.usd:.3g} ±{found.usd_spread:.0%}",
    )


def _both(found: Prediction) -> str:
    return f"{span(found.seconds)} ±{found.seconds_spread:.0%} and {found.usd:.3g} USD ±{found.usd_spread:.0%}"


def _range(found: Prediction) -> tuple[float, float]:
    """The band of the cost, one standard deviation to either side; above 0, as a logarithm asks for."""
    low, high = band(found.usd, found.usd_spread)
    return max(low, found.usd / 100), high


def _place(value: float, values: Sequence[float], size: int) -> int:
    """Where `value` lies between the least and the most of `values`, in logarithms: from 0 to size - 1."""
    low, high = math.log(min(values)), math.log(max(values))
    return 0 if high <= low else min(size - 1, round((math.log(value) - low) / (high - low) * (size - 1)))
