"""Sums of seconds that know how sure they are: each term has its spread and says where it is from."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["step", "compute", "exchange"]


@dataclass(frozen=True, kw_only=True)
class Term:
    """Seconds of a round, or US dollars."""

    name: str
    part: Part
    """`step`: the batches themselves; `compute`: what workers need beside them; `exchange`: all that comes after."""
    value: float
    spread: float
    """One standard deviation, relative."""
    source: str

    def times(self, factor: float, *, spread: float | None = None, source: str | None = None) -> Term:
        """The same, longer, and as sure unless said otherwise."""
        return dataclasses.replace(
            self,
            value=self.value * factor,
            spread=self.spread if spread is None else spread,
            source=self.source if source is None else source,
        )


def total(terms: Sequence[Term]) -> float:
    """Their sum."""
    return math.fsum(term.value for term in terms)


def spread(terms: Sequence[Term]) -> float:
    """One relative standard deviation of their sum, errors being independent; 0 for nothing."""
    whole = total(terms)
    return math.sqrt(math.fsum((term.value * term.spread) ** 2 for term in terms)) / whole if whole else 0.0


def least_sure(terms: Sequence[Term]) -> Term | None:
    """The term that the band comes from most; None where all are exact."""
    widest = max(terms, key=lambda term: term.value * term.spread, default=None)
    return widest if widest is not None and widest.spread else None


def deviation(times: Sequence[float]) -> float:
    """Relative standard deviation, from the median absolute one, so that a hiccup does not count; 0 for one time."""
    if len(times) < 2:
        return 0.0
    median = statistics.median(times)
    return 1.4826 * statistics.median(abs(each - median) for each in times) / median if median else 0.0
