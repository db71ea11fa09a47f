"""Charts as inline SVG text: lines, bars, scatter, timeline. Pure functions from numbers to text.

Colours come from CSS variables (`STYLE`), so that a page decides on them and light and dark need one picture. The
palette follows Okabe and Ito's (https://jfly.uni-koeln.de/color/), darkened or lightened until every colour has three
to one against the paper; and nothing is told by colour alone: lines differ in markers and dashes too, bars and
stretches of time stand under their names or have them as titles. Every picture has a title and a description for those
who don't see it. Names come from users: all text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from peerless.report.axes import LETTER, Axis, Scale, number, scale, shortened, width

#: The variables that the pictures use, light and dark, and how their text looks.
STYLE = """
:root { --paper:#ffffff; --ink:#1b1f24; --soft:#57606a; --grid:#d8dee4; --wait:#9aa4af;
  --c0:#0072b2; --c1:#c65300; --c2:#007a5a; --c3:#a63d92; --c4:#8a6a00; --c5:#4b3fb5; --c6:#b0243f; --c7:#5a5a5a; }
@media (prefers-color-scheme: dark) { :root { --paper:#14181d; --ink:#e8ebee; --soft:#a3adb8; --grid:#333b45;
  --wait:#6d7986; --c0:#5ab6ec; --c1:#f5924e; --c2:#2cc598; --c3:#e38bc8; --c4:#dcb93c; --c5:#aaa3ff; --c6:#ff8d9a;
  --c7:#c3c3c3; } }
@media print { :root { --paper:#ffffff; --ink:#000000; --soft:#444444; --grid:#cccccc; --wait:#9aa4af; --c0:#0072b2;
  --c1:#c65300; --c2:#007a5a; --c3:#a63d92; --c4:#8a6a00; --c5:#4b3fb5; --c6:#b0243f; --c7:#5a5a5a; } }
svg.chart text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink); }
svg.chart text.soft { fill: var(--soft); }
svg.chart .grid { stroke: var(--grid); stroke-width: 1; }
svg.chart .axis { stroke: var(--soft); stroke-width: 1; }
""".strip()
#: How many colours there are before they come again.
COLOURS = 8

_DASHES = ("", "7 3", "2 3", "9 3 2 3")
#: A line of more points is drawn without markers, and thinned.
_MARKED, _MOST_POINTS = 40, 400
_ROW, _BAR = 19.0, 16.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of points that belong together."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y; a point that is not finite breaks the line."""
    colour: int | None = None
    """Which of the palette; by default the series' place."""
    labels: Sequence[str] = ()
    """Texts beside the points, in a scatter; as many as points, or none. An empty one is none."""
    joined: bool = False
    """In a scatter: draw a line through the points, as for a frontier."""
    ranges: Sequence[tuple[float, float]] = ()
    """In a scatter: the lowest and highest y of each point, drawn as an error bar; as many as points, or none."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One value per group."""

    name: str
    values: Sequence[float | None]
    """None where there is no figure: nothing is drawn, and a dash stands for it."""
    colour: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """From when to when something lasted, on a timeline."""

    began: float
    ended: float
    kind: str
    title: str = ""
    """What one reads who points at it."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of a timeline."""

    name: str
    stretches: Sequence[Stretch]


def lines(
    title: str, desc: str, series: Sequence[Line], *, x: Axis, y: Axis, size: tuple[float, float] = (420, 260)
) -> str:
    """Lines over a common x. Raises ValueError without a finite point."""
    return _plane(title, desc, series, x, y, size, scattered=False)


def scatter(
    title: str, desc: str, series: Sequence[Line], *, x: Axis, y: Axis, size: tuple[float, float] = (420, 300)
) -> str:
    """Points, with labels, error bars and joined series where asked for. Raises ValueError without a finite point."""
    return _plane(title, desc, series, x, y, size, scattered=True)


def bars(
    title: str,
    desc: str,
    groups: Sequence[str],
    series: Sequence[Bars],
    *,
    axis: Axis,
    stacked: bool = False,
    wide: float = 420,
) -> str:
    """Horizontal bars: per group one for each series, or one of all series' parts where `stacked`.

    The names of groups stand above their bars, so that they may be long. Raises ValueError without a value.
    """
    table = [[each.values[index] for each in series] for index in range(len(groups))]
    totals = [sum(value for value in row if value is not None) for row in table]
    each = totals if stacked else [value for row in table for value in row if value is not None]
    if all(value is None for row in table for value in row):
        raise ValueError("a chart needs at least one finite number")
    keyed = [(one.name, _tone(one.colour, place)) for place, one in enumerate(series)]
    parts, top = _legend(keyed if len(series) > 1 else [], wide)
    beside = max(width(number(value, percent=axis.percent)) for value in [*each, 0.0]) + 8
    along = scale([*each, 0.0], Axis(**{**vars(axis), "zero": True}), ticks=4, tight=True)
    left, room = 2.0, wide - 4 - beside
    shown: list[str] = []
    y = top
    for group, row, total in zip(groups, table, totals, strict=True):
        if group:
            y += _ROW
            shown.append(_text(left, y - 5, shortened(group, wide - 4)))
        begin = 0.0
        for place, (one, value) in enumerate(zip(series, row, strict=True)):
            if value is not None and math.isfinite(value):
                at, long = left + along.place(begin) * room, abs(along.place(value) - along.place(0)) * room
                told = f"{group + ': ' if group else ''}{one.name} {number(value, percent=axis.percent)}"
                shown.append(_box(at, y, long, _BAR - 2, _tone(one.colour, place), told))
            if stacked:
                begin += value or 0.0
                continue
            end = left + along.place(value) * room if value is not None and math.isfinite(value) else left
            text = "–" if value is None else number(value, percent=axis.percent)
            shown.append(_text(end + 4, y + _BAR - 4, text, "soft"))
            y += _BAR
        if stacked:
            end = left + along.place(total) * room
            shown.append(_text(end + 4, y + _BAR - 4, number(total, percent=axis.percent), "soft"))
            y += _BAR
        y += 5
    parts += _x_axis(along, axis, left, left + room, top, y, wide)
    return _svg(title, desc, wide, y + 36, parts + shown)


def timeline(
    title: str,
    desc: str,
    lanes: Sequence[Lane],
    *,
    kinds: Mapping[str, str],
    x: Axis,
    marks: Sequence[tuple[float, str]] = (),
    wide: float = 900,
) -> str:
    """Lanes of stretches over a common time, with vertical marks across them.

    `kinds` gives each kind of stretch its colour: `c0` to `c7`, or `wait`. Raises ValueError without a stretch.
    """
    ends = [moment for lane in lanes for one in lane.stretches for moment in (one.began, one.ended)]
    along = scale(ends, x, ticks=max(3, int(wide / 110)), tight=True)
    parts, top = _legend([(kind, f"var(--{tone})") for kind, tone in kinds.items()], wide)
    top += _ROW if any(text for _, text in marks) else 0.0
    left = min(max((width(lane.name) for lane in lanes), default=0.0) + 8, wide / 3)
    right, height = wide - 8, 26.0
    bottom = top + height * len(lanes)

    def place(moment: float) -> float:
        return left + along.place(moment) * (right - left)

    parts += _x_axis(along, x, left, right, top, bottom, wide)
    for index, lane in enumerate(lanes):
        y = top + index * height
        parts.append(_text(left - 8, y + height / 2 + 4, shortened(lane.name, left - 8), anchor="end"))
        for one in lane.stretches:
            begin, end = place(one.began), place(one.ended)
            tone = f"var(--{kinds[one.kind]})"
            parts.append(_box(begin, y + 4, max(0.7, end - begin), height - 8, tone, one.title))
    free = left
    for moment, text in marks:
        at = place(moment)
        parts.append(f'<path class="axis" stroke-dasharray="3 3" d="M{_n(at)} {_n(top)}V{_n(bottom)}"/>')
        half = width(text) / 2
        if text and at - half >= free and at + half <= wide:
            parts.append(_text(at, top - 6, text, "soft", anchor="middle"))
            free = at + half + 6
    return _svg(title, desc, wide, bottom + 36, parts)


def standalone(svg: str) -> str:
    """A picture of this module as a file of its own, with its colours and its paper."""
    begin = svg.index(">") + 1
    return f'{svg[:begin]}<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>{svg[begin:]}\n'


# --------------------------------------------------------------------------------------------------------------- parts


def _plane(
    title: str, desc: str, series: Sequence[Line], x: Axis, y: Axis, size: tuple[float, float], *, scattered: bool
) -> str:
    """Lines and scatter share their axes."""
    wide, high = size
    finite = [point for one in series for point in one.points if all(map(math.isfinite, point))]
    across = scale((point[0] for point in finite), x, ticks=max(2, int(wide / 90)), tight=not scattered)
    heights = [point[1] for point in finite] + [end for one in series for pair in one.ranges for end in pair]
    up = scale(heights, y, ticks=max(2, int(high / 45)))
    tones = [_tone(one.colour, place) for place, one in enumerate(series)]
    parts, top = _legend(list(zip([one.name for one in series], tones, strict=True)) if len(series) > 1 else [], wide)
    top += _ROW
    left, right, bottom = up.widest + 8, wide - 10, max(top + 60, high - 36)
    parts.append(_text(0, top - 8, shortened(y.label, wide), "soft"))

    def at(value: float) -> float:
        return left + across.place(value) * (right - left)

    def on(value: float) -> float:
        return bottom - up.place(value) * (bottom - top)

    for value, text in up.ticks:
        parts.append(f'<path class="grid" d="M{_n(left)} {_n(on(value))}H{_n(right)}"/>')
        parts.append(_text(left - 6, on(value) + 4, text, "soft", anchor="end"))
    parts += _x_axis(across, x, left, right, None, bottom, wide)
    logs = (across.log, up.log)
    for place, (one, tone) in enumerate(zip(series, tones, strict=True)):
        runs = _runs(one.points, logs)
        if not scattered or one.joined:
            dash = _DASHES[place % len(_DASHES)]
            for run in runs:
                path = "L".join(f"{_n(at(a))} {_n(on(b))}" for a, b in _thinned(run))
                dashed = f' stroke-dasharray="{dash}"' if dash else ""
                parts.append(f'<path d="M{path}" fill="none" stroke="{tone}" stroke-width="2"{dashed}/>')
        for index, (low, high_end) in enumerate(one.ranges if scattered else ()):
            middle = at(one.points[index][0])
            parts.append(f'<path d="M{_n(middle)} {_n(on(low))}V{_n(on(high_end))}" stroke="{tone}" opacity="0.55"/>')
        known = [point for run in runs for point in run]
        if scattered or len(known) <= _MARKED:
            for a, b in known:
                told = f"{one.name}: {x.label} {number(a, percent=x.percent)}, {y.label} {number(b, percent=y.percent)}"
                parts.append(_marker(place, at(a), on(b), tone, told))
        for (a, b), text in zip(one.points, one.labels, strict=False):
            if text and math.isfinite(a) and math.isfinite(b):
                parts.append(_label(at(a), on(b), text, wide))
    return _svg(title, desc, wide, bottom + 36, parts)


def _x_axis(
    along: Scale, axis: Axis, left: float, right: float, top: float | None, bottom: float, wide: float
) -> list[str]:
    """Line, ticks and label; from `top` down also a grid."""
    parts = [f'<path class="axis" d="M{_n(left)} {_n(bottom)}H{_n(right)}"/>']
    free = -math.inf
    for value, text in along.ticks:
        x, half = left + along.place(value) * (right - left), width(text) / 2
        begin = bottom if top is None else top
        name = "axis" if top is None else "grid"
        parts.append(f'<path class="{name}" d="M{_n(x)} {_n(begin)}V{_n(bottom + 4)}"/>')
        middle = min(max(x, half), wide - half)
        if middle - half >= free:
            parts.append(_text(middle, bottom + 16, text, "soft", anchor="middle"))
            free = middle + half + 8
    parts.append(_text(right, bottom + 31, shortened(axis.label, right), "soft", anchor="end"))
    return parts


def _legend(keyed: Sequence[tuple[str, str]], wide: float) -> tuple[list[str], float]:
    """Names with their colours, in as many rows as they need, and the height of that."""
    parts: list[str] = []
    x, y = 0.0, 0.0
    for place, (name, tone) in enumerate(keyed):
        text = shortened(name, wide - 24)
        if x and x + 20 + width(text) > wide:
            x, y = 0.0, y + _ROW
        parts.append(_marker(place, x + 7, y + 8, tone, name, size=5.0))
        parts.append(_text(x + 17, y + 12, text))
        x += 20 + width(text) + 12
    return parts, y + _ROW if keyed else 0.0


def _marker(place: int, x: float, y: float, tone: str, told: str, size: float = 3.6) -> str:
    """Circle, square, diamond, triangle, by the series' place."""
    shape = place % 4
    named = f"<title>{escape(told)}</title>" if told else ""
    if shape == 0:
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}" fill="{tone}">{named}</circle>'
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        3: ((0, -1.2), (1.2, 1), (-1.2, 1)),
    }[shape]
    points = " ".join(f"{_n(x + a * size)},{_n(y + b * size)}" for a, b in corners)
    return f'<polygon points="{points}" fill="{tone}">{named}</polygon>'


def _label(x: float, y: float, text: str, wide: float) -> str:
    """Beside a point, on the side that has room."""
    on_the_left = x + 8 + width(text) > wide
    if on_the_left:
        return _text(x - 8, y - 5, shortened(text, x - 8), anchor="end")
    return _text(x + 8, y - 5, text)


def _runs(points: Sequence[tuple[float, float]], logs: tuple[bool, bool]) -> list[list[tuple[float, float]]]:
    """The points between those that cannot be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if all(math.isfinite(value) and (value > 0 or not log) for value, log in zip(point, logs, strict=True)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of many points, those that one sees: per piece of the line its first, lowest, highest and last."""
    if len(points) <= _MOST_POINTS:
        return points
    piece = math.ceil(len(points) / (_MOST_POINTS / 4))
    kept: list[tuple[float, float]] = []
    for begin in range(0, len(points), piece):
        part = points[begin : begin + piece]
        wanted = {0, len(part) - 1}
        wanted |= {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        kept += [part[index] for index in sorted(wanted)]
    return kept


def _tone(colour: int | None, place: int) -> str:
    return f"var(--c{(place if colour is None else colour) % COLOURS})"


def _box(x: float, y: float, wide: float, high: float, tone: str, told: str) -> str:
    named = f"<title>{escape(told)}</title>" if told else ""
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(wide)}" height="{_n(high)}" fill="{tone}">{named}</rect>'


def _text(x: float, y: float, text: str, name: str = "", anchor: str = "") -> str:
    extra = (f' class="{name}"' if name else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{_n(x)}" y="{_n(y)}"{extra}>{escape(text)}</text>'


def _svg(title: str, desc: str, wide: float, high: float, parts: Sequence[str]) -> str:
    head = f"<title>{escape(title)}</title><desc>{escape(desc)}</desc>"
    style = f"width:100%;max-width:{_n(wide * 1.35)}px;height:auto"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {_n(wide)} {_n(high)}" '
        f'style="{style}" font-size="{_n(LETTER)}">{head}{"".join(parts)}</svg>'
    )


def _n(value: float) -> str:
    """A place, to a tenth."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
