"""Figures that the planner takes for granted: named, dated, each with a spread, and each replaceable."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import UserError

_FILE = Path(__file__).with_name("assumptions.toml")
_LOCAL = Path(__file__).with_name("local.toml")
#: Where an assumption comes from that the user has replaced.
GIVEN = "given with --assume"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number in the unit that its name tells, one relative standard deviation, its date, and where it is from."""

    value: float
    spread: float
    date: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An EC2 instance type: its vCPUs, memory in GB, and the share of a vCPU that the price by the hour covers."""

    vcpus: int
    gb: float
    baseline: float


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """All figures by `section.name`, and the instance types that the planner knows."""

    figures: Mapping[str, Figure]
    instances: Mapping[str, Instance]

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def value(self, name: str) -> float:
        """The number alone."""
        return self.figures[name].value

    def replaced(self, given: Sequence[str]) -> Assumptions:
        """With the `NAME=VALUE` of `--assume`, which are taken as exact. Raises UserError."""
        figures = dict(self.figures)
        for text in given:
            name, equals, number = text.partition("=")
            if not equals or name not in figures:
                raise UserError(f"--assume {text}: write NAME=VALUE; there is {', '.join(figures)}")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--assume {text}: the value must be a number above 0")
            figures[name] = dataclasses.replace(figures[name], value=value, spread=0.0, source=GIVEN)
        return dataclasses.replace(self, figures=figures)


@functools.cache
def assumptions() -> Assumptions:
    """As the two files have them."""
    sections = {**tomllib.loads(_FILE.read_text(encoding="utf-8")), **tomllib.loads(_LOCAL.read_text(encoding="utf-8"))}
    instances = {name: Instance(**row) for name, row in sections.pop("instance").items()}
    figures = {f"{title}.{name}": Figure(**row) for title, rows in sections.items() for name, row in rows.items()}
    return Assumptions(figures=figures, instances=instances)
