"""Where numbers lie on a chart and how they are written: scales, ticks, labels, and how wide a text is about."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

#: Height of a chart's letters, in the units of its viewBox.
LETTER = 12.0
#: Mean width of a letter by its height, of the sans-serif letters that systems have.
_WIDTH = 0.56
_STEPS = (1.0, 2.0, 5.0, 10.0)
#: Suffixes of large numbers on an axis.
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows."""

    label: str
    """With the unit, for example `seconds`."""
    percent: bool = False
    """The values are fractions of one, written as percent, and never beyond 0 and 1."""
    whole: bool = False
    """The values are counts: no tick between two of them."""
    zero: bool = False
    """Begin at zero."""
    log: bool = False
    """Logarithmic, where all values are above zero; else linear."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places on an axis."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]
    """Values with their texts, in order."""

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    @property
    def widest(self) -> float:
        """Width of the widest tick's text."""
        return max(width(text) for _, text in self.ticks)


def scale(values: Iterable[float], axis: Axis, *, ticks: int, tight: bool = False) -> Scale:
    """A scale that has room for all `values`, of which those that are not finite don't count.

    About as many ticks as asked for, at 1, 2 or 5 times a power of ten. `tight` ends the axis at the outermost values
    instead of at ticks. Raises ValueError without a finite value.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise ValueError("a chart needs at least one finite number")
    low, high = min(finite), max(finite)
    if axis.log and low > 0:
        return _logarithmic(low, high, ticks)
    if axis.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: some room around it
        room = max(abs(high) * 0.1, 1.0 if axis.whole or not high else 0.0)
        low, high = (max(low - room, 0.0) if low >= 0 else low - room), high + room
    if axis.percent and min(finite) >= 0 and max(finite) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
        low = low if high > low else 0.0
    step = _step((high - low) / max(1, ticks))
    if axis.whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if tight:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    marks = [index * step for index in range(first, last + 1)] or [low]
    return Scale(low=low, high=high, log=False, ticks=tuple(zip(marks, _texts(marks, step, axis), strict=True)))


def number(value: float, *, percent: bool = False) -> str:
    """A figure as a person reads it: four significant digits, thousands apart, 12.3% for 0.123."""
    if not math.isfinite(value):
        return str(value)
    if percent:
        return f"{value * 100:.2f}".rstrip("0").rstrip(".") + "%"
    size = abs(value)
    if size >= 1_000 or value == int(value):
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.3g}"
    digits = max(0, 3 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def width(text: str, height: float = LETTER) -> float:
    """About how wide a text is; letters of East Asian scripts take the double."""
    letters = sum(2.0 if unicodedata.east_asian_width(letter) in "WF" else 1.0 for letter in text)
    return letters * height * _WIDTH


def shortened(text: str, room: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    if width(text) <= room:
        return text
    while text and width(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _step(least: float) -> float:
    """The first of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((power * step for step in _STEPS if power * step >= least * (1 - 1e-9)), power * 10)


def _texts(marks: list[float], step: float, axis: Axis) -> list[str]:
    """All with the same number of decimals."""
    if axis.percent:
        marks, step = [mark * 100 for mark in marks], step * 100
    largest = max(abs(mark) for mark in marks)
    unit, suffix = next(((unit, suffix) for unit, suffix in _LARGE if largest >= unit * 10 and unit > 1e3), (1.0, ""))
    if largest >= 1e5 and not suffix:
        unit, suffix = 1e3, "k"
    if 0 < largest < 1e-3:
        power = math.floor(math.log10(largest))
        return [f"{mark / 10**power:.3g}e{power}" if mark else "0" for mark in marks]
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    end = "%" if axis.percent else ""
    return [f"{mark / unit:,.{decimals}f}{suffix if mark else ''}{end}" for mark in marks]


def _logarithmic(low: float, high: float, ticks: int) -> Scale:
    """Ticks at powers of ten, or at 1, 2 and 5 times them where there is room."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first + 1) / max(1, ticks)))
    powers = [10.0**power for power in range(first, last + 1, every)]
    if (last - first + 1) * 3 <= ticks * 1.5:
        powers = [10.0**power * step for power in range(first, last + 1) for step in (1, 2, 5)]
    below = max((mark for mark in powers if mark <= low * (1 + 1e-9)), default=powers[0])
    above = min((mark for mark in powers if mark >= high * (1 - 1e-9)), default=10.0**last)
    if above <= below:
        above = min((mark for mark in powers if mark > below), default=below * 10)
    marks = [mark for mark in powers if below <= mark <= above]
    return Scale(low=below, high=above, log=True, ticks=tuple((mark, _power(mark)) for mark in marks))


def _power(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
