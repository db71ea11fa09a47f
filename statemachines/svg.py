"""A definition as an SVG picture: boxes from top to bottom, frames around what is inside, dashes to what is caught.

Every text has a length of its own (`textLength`), so that no font of any machine makes it wider than its box. Lengths
in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from statemachines.picture import State, parse

#: Width of a character and height of a line at the font's size: monospaced fonts are about 0.6 wide.
FONT, CHARACTER, LINE = 12, 7.2, 16
PADDING, GAP, MARGIN = 10, 28, 12
#: Space for the words beside a dashed arrow.
CAUGHT_LABEL = "fails for good"
CAUGHT_GAP = len(CAUGHT_LABEL) * CHARACTER + 2 * PADDING
END_RADIUS = 8

_STYLE = (
    "text{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;fill:#1f2933}"
    ".name{font-weight:bold}.box{fill:#fff;stroke:#334e68}.frame{fill:#f0f4f8;stroke:#829ab1}"
    ".caught{fill:#fff5f5;stroke:#ba2525}.arrow{stroke:#334e68;fill:none;marker-end:url(#head)}"
    ".dashed{stroke:#ba2525;stroke-dasharray:4 3}.end{fill:#334e68}"
)
_HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z" fill="#334e68"/></marker></defs>'
)


@dataclass(frozen=True)
class Size:
    width: float
    height: float


def svg(machine: Mapping[str, Any], batches: int | None = None) -> str:
    """The picture of a definition as one SVG document. `batches` is the count that a map is shown with."""
    states = parse(machine, batches)
    size = _chain_size(states)
    ends = 2 * END_RADIUS + GAP
    width, height = size.width + 2 * MARGIN, size.height + 2 * ends + 2 * MARGIN
    canvas = _Canvas()
    middle = MARGIN + _spine(states)
    canvas.dot(middle, MARGIN + END_RADIUS)
    canvas.arrow(middle, MARGIN + 2 * END_RADIUS, middle, MARGIN + ends)
    canvas.chain(states, MARGIN, MARGIN + ends)
    bottom = MARGIN + ends + size.height
    canvas.arrow(middle, bottom, middle, bottom + GAP)
    canvas.dot(middle, bottom + GAP + END_RADIUS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img"><style>{_STYLE}</style>{_HEAD}{"".join(canvas.parts)}</svg>\n'
    )


def _text_size(lines: tuple[str, ...]) -> Size:
    return Size(max(map(len, lines)) * CHARACTER, len(lines) * LINE)


def _box_size(state: State) -> Size:
    """Of a box or frame, without what is beside it."""
    text = _text_size((state.name, *state.lines))
    if not state.inner:
        return Size(text.width + 2 * PADDING, text.height + 2 * PADDING)
    inside = [_chain_size(machine) for machine in state.inner]
    if state.left_out:
        inside.append(_more_size(state))
    width = sum(size.width for size in inside) + GAP * (len(inside) - 1)
    height = text.height + PADDING + max(size.height for size in inside)
    return Size(max(text.width, width) + 2 * PADDING, height + 2 * PADDING)


def _more_size(state: State) -> Size:
    return _text_size((_more(state),))


def _more(state: State) -> str:
    return f"… {state.left_out:,} more …"


def _row_size(state: State) -> Size:
    """Of a state and the one that catches its failure, at its right."""
    size = _box_size(state)
    if state.caught is None:
        return size
    caught = _box_size(state.caught)
    return Size(size.width + CAUGHT_GAP + caught.width, max(size.height, caught.height))


def _chain_size(states: tuple[State, ...]) -> Size:
    rows = [_row_size(state) for state in states]
    spine = _spine(states)
    right = max(row.width - _box_size(state).width / 2 for row, state in zip(rows, states, strict=True))
    return Size(spine + right, sum(row.height for row in rows) + GAP * (len(rows) - 1))


def _spine(states: tuple[State, ...]) -> float:
    """Where, from the left, the line runs on which states follow one another."""
    return max(_box_size(state).width for state in states) / 2


class _Canvas:
    """SVG elements, in the order of painting."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def chain(self, states: tuple[State, ...], left: float, top: float) -> None:
        """States from top to bottom, with arrows in between."""
        middle = left + _spine(states)
        for position, state in enumerate(states):
            if position:
                self.arrow(middle, top - GAP, middle, top)
            self._row(state, middle - _box_size(state).width / 2, top)
            top += _row_size(state).height + GAP

    def arrow(self, x1: float, y1: float, x2: float, y2: float, kind: str = "arrow") -> None:
        self.parts.append(f'<path class="{kind}" d="M{x1:g} {y1:g} {x2:g} {y2:g}"/>')

    def dot(self, x: float, y: float) -> None:
        """Where a machine starts or ends."""
        self.parts.append(f'<circle class="end" cx="{x:g}" cy="{y:g}" r="{END_RADIUS}"/>')

    def _row(self, state: State, left: float, top: float) -> None:
        size = _box_size(state)
        self._box(state, left, top, "frame" if state.inner else "box")
        if state.caught is not None:
            y = top + _box_size(state.caught).height / 2
            beside = left + size.width + CAUGHT_GAP
            self.arrow(left + size.width, y, beside, y, "arrow dashed")
            self._text(CAUGHT_LABEL, left + size.width + PADDING, y - 4)
            self._box(state.caught, beside, top, "caught")

    def _box(self, state: State, left: float, top: float, kind: str) -> None:
        size = _box_size(state)
        self.parts.append(
            f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{size.width:g}" height="{size.height:g}" rx="4"/>'
        )
        y = top + PADDING
        for position, line in enumerate((state.name, *state.lines)):
            self._text(line, left + PADDING, y + LINE * position + FONT, "name" if position == 0 else "")
        x, y = left + PADDING, y + LINE * (1 + len(state.lines)) + PADDING
        for position, machine in enumerate(state.inner):
            if state.left_out and position == len(state.inner) - 1:
                self._text(_more(state), x, y + FONT)
                x += _more_size(state).width + GAP
            self.chain(machine, x, y)
            x += _chain_size(machine).width + GAP

    def _text(self, text: str, x: float, y: float, kind: str = "") -> None:
        name = f' class="{kind}"' if kind else ""
        length = len(text) * CHARACTER
        self.parts.append(
            f'<text{name} x="{x:g}" y="{y:g}" textLength="{length:g}" lengthAdjust="spacingAndGlyphs" '
            f'xml:space="preserve">{escape(text)}</text>'
        )
