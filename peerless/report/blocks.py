"""What a report is made of, before it is a page: sections of tables, pictures and words. Nothing here knows HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from peerless.report.axes import number

#: Stands where a run has no such figure.
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    cells: tuple[str, ...]
    key: str = ""
    """Name of the figure, for whoever looks for it in the page; empty where the row has none."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column names, the others tell."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    """All empty: none is shown."""
    rows: tuple[Row, ...]
    texts: bool = False
    """The cells are sentences, so they are aligned to the left and may take several lines."""

    @property
    def wide(self) -> bool:
        """Whether it needs the page's whole width."""
        return self.texts or len(self.head) > 4


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart."""

    kind: ClassVar[str] = "picture"
    caption: str
    svg: str
    narrow: str = ""
    """The same for a phone, where it needs another form; then `svg` is as wide as the page."""
    narrow_caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Words:
    """A sentence, for example why something is left out."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A text as it is, folded away."""

    kind: ClassVar[str] = "listing"
    caption: str
    text: str


Block = Table | Picture | Words | Listing


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    name: str
    """For links."""
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def rows(*lines: Sequence[str]) -> tuple[Row, ...]:
    """Rows without keys."""
    return tuple(Row(cells=tuple(line)) for line in lines)


def seconds(value: float | None) -> str:
    """12.3 s."""
    return NONE if value is None else f"{value:,.1f} s"


def megabytes(value: float | None) -> str:
    """1.23 MB, of a number of bytes."""
    return NONE if value is None else f"{value / 1e6:,.2f} MB"


def usd(value: float | None) -> str:
    """0.01234 USD, with four significant digits."""
    return NONE if value is None else f"{number(value)} USD"


def percent(value: float | None) -> str:
    """89.15%."""
    return NONE if value is None else f"{value:.2%}"


def plain(value: float | None) -> str:
    """A number with four significant digits."""
    return NONE if value is None else number(value)


def plural(count: int, one: str, many: str = "") -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
