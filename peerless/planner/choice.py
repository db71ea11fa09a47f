"""Which plan of a frontier to take: the cheapest, the fastest, the knee, and the one that limits leave."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from contract.errors import UserError
from peerless.planner.model import Prediction

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\Z")


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Positions in a frontier."""

    fastest: int
    cheapest: int
    knee: int
    chosen: int | None
    """The one to take: within the limits, where there are some, else the knee. None where no plan is within them."""
    why: str


def seconds_of(text: str) -> float:
    """A duration such as 90, 90s, 15m, 2h or 1.5d, in seconds. Raises UserError."""
    match = _DURATION.match(text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise UserError(f"--deadline {text}: write seconds, or a number with s, m, h or d, for example 2h")
    return float(match[1]) * _UNITS[match[2]]


def choose(plans: Sequence[Prediction], *, deadline: float | None = None, budget: float | None = None) -> Marks:
    """Of a frontier, the fastest first. `deadline` in seconds, `budget` in US dollars, both to the end.

    Within a deadline the cheapest is taken; within a budget alone, the fastest. A limit counts as kept where the
    prediction keeps it; how likely that is, the band tells.
    """
    if not plans:
        raise ValueError("there is no plan to choose from")
    fastest, cheapest, at = 0, len(plans) - 1, knee([(plan.seconds, plan.usd) for plan in plans])
    within = [
        index
        for index, plan in enumerate(plans)
        if (deadline is None or plan.seconds <= deadline) and (budget is None or plan.usd <= budget)
    ]
    if deadline is None and budget is None:
        chosen, why = at, "the knee: beyond it, a little time costs much money, and the other way round"
    elif not within:
        chosen, why = None, "no plan keeps these limits"
    elif deadline is not None:
        chosen, why = within[-1], "the cheapest within the deadline" + ("" if budget is None else " and the budget")
    else:
        chosen, why = within[0], "the fastest within the budget"
    return Marks(fastest=fastest, cheapest=cheapest, knee=at, chosen=chosen, why=why)


def knee(points: Sequence[tuple[float, float]]) -> int:
    """Position of the point (seconds, USD) that is furthest below the line between both ends, in logarithms: there a
    further percent of time costs as many percent of money as over the whole frontier.

    Where none is below, and of one or two points, the cheapest. After Satopaa et al., Finding a "Kneedle" in a Haystack
    (2011).
    """
    if len(points) < 3:
        return len(points) - 1
    logs = [(math.log(seconds), math.log(usd)) for seconds, usd in points]
    (x0, y0), (x1, y1) = logs[0], logs[-1]

    def below(point: tuple[float, float]) -> float:
        x, y = point
        return (x1 - x0) * (y0 - y) + (x - x0) * (y1 - y0)

    return max(reversed(range(len(logs))), key=lambda index: below(logs[index]))
