"""The price book: dated prices by region, with the user's own over them.

A file of prices (peerless/cost/prices.toml, or the one that `cost.prices` names) has sections `[REGION.SECTION]`, and
in them a row `NAME = { usd, date, sure, source }` per price. Every price keeps its date and source, whoever brought it.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from contract.errors import ConfigError

#: The region that Peerless's own prices are of.
HOME_REGION = "us-east-1"
#: Prices older than this are told.
OLD_DAYS = 365
#: Sections whose rows are types that AWS adds to; the other sections have fixed rows.
OPEN_SECTIONS = ("instance_hour", "broker_node_hour")
_OWN = Path(__file__).with_name("prices.toml")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]+\Z")
_DATE = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])(?:-([0-3][0-9]))?\Z")
#: How many prices a warning names.
_NAMED = 3

Sections = dict[str, dict[str, "Price"]]


@dataclass(frozen=True)
class Price:
    """US dollars for one unit, when that was true ("" where the source has no date), how sure (H, M, L), and whence.

    Raises ValueError for a figure, date or degree that cannot be.
    """

    usd: float
    date: str
    """`YYYY-MM-DD`, or `YYYY-MM`, which counts as the month's first day."""
    sure: str
    source: str

    def __post_init__(self) -> None:
        if isinstance(self.usd, bool) or not isinstance(self.usd, int | float):
            raise ValueError(f"usd = {self.usd!r} is not a number")
        if not (math.isfinite(self.usd) and self.usd >= 0):
            raise ValueError(f"usd = {self.usd} must be a number of US dollars, 0 or more")
        if not isinstance(self.date, str) or (self.date and _moment(self.date) is None):
            raise ValueError(f'date = {self.date!r} must be "YYYY-MM-DD", "YYYY-MM", or "" where the source has none')
        if self.sure not in ("H", "M", "L"):
            raise ValueError(f"sure = {self.sure!r} must be H, M or L")
        if not isinstance(self.source, str) or not self.source:
            raise ValueError("source must say where the price comes from")

    def is_old(self, now: float) -> bool:
        """Whether it bears a date, and that is more than a year before `now` (seconds since the epoch)."""
        moment = _moment(self.date) if self.date else None
        return moment is not None and datetime.fromtimestamp(now, UTC) - moment > timedelta(days=OLD_DAYS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Book(Mapping[str, Mapping[str, Price]]):
    """The prices of one region: by section, then by name."""

    region: str
    sections: Sections = field(repr=False)
    overridden: tuple[str, ...] = ()
    """What the user's own file says, as `section.name`, sorted."""
    stand_ins: tuple[str, ...] = ()
    """What is of HOME_REGION because nobody has told this region's price, likewise."""

    def __getitem__(self, section: str) -> Mapping[str, Price]:
        return self.sections[section]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)


class Reader:
    """Looks prices up and remembers which."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.used: dict[str, Price] = {}
        """By `section.name`."""

    def usd(self, section: str, name: str) -> float:
        """US dollars for one unit. Raises KeyError for a name that no book has."""
        price = self.book[section][name]
        self.used[f"{section}.{name}"] = price
        return price.usd

    def find(self, section: str, name: str) -> float | None:
        """The same; None where the book does not have it."""
        return self.usd(section, name) if name in self.book[section] else None

    def dates(self) -> tuple[str, str]:
        """The oldest and the newest date of what was used; "" where nothing bears one."""
        dated = sorted(price.date for price in self.used.values() if price.date)
        return (dated[0], dated[-1]) if dated else ("", "")

    def warnings(self, now: float) -> list[str]:
        """Sentences on prices that were used and are old, or another region's. `now` in seconds since the epoch."""
        old = sorted(name for name, price in self.used.items() if price.is_old(now))
        told = []
        if old:
            told.append(
                f"{len(old)} of {len(self.used)} prices are more than a year old ({_listed(old)}; the oldest is of "
                f"{self.dates()[0]}); name newer ones with cost.prices"
            )
        if strange := [name for name in self.book.stand_ins if name in self.used]:
            told.append(
                f"{len(strange)} of {len(self.used)} prices are those of {HOME_REGION}, because the price book has "
                f"none of {self.book.region} ({_listed(strange)}); they can differ by up to half, so name yours with "
                "cost.prices"
            )
        return told


@functools.cache
def _own() -> dict[str, Sections]:
    """Peerless's own prices by region."""
    return _read(_OWN, None)


def book(prices: str = "", region: str = HOME_REGION) -> Book:
    """The prices of `region`: Peerless's own, and over them those of the file `prices` ("": none).

    Raises ConfigError for a file that cannot be read, is malformed, or says nothing of the region.
    """
    own = _own()
    sections = {title: dict(rows) for title, rows in own[HOME_REGION].items()}
    told = _over(sections, own.get(region, {}))
    stand_ins = () if region == HOME_REGION else {f"{s}.{name}" for s, rows in sections.items() for name in rows} - told
    overridden: set[str] = set()
    if prices:
        theirs = _read(Path(prices), own[HOME_REGION])
        if region not in theirs:
            raise ConfigError(
                f"{prices}: it has prices of {', '.join(sorted(theirs)) or 'no region'}, but the run is billed with "
                f"those of {region}; add them, or set cost.region"
            )
        overridden = _over(sections, theirs[region])
    return Book(
        region=region,
        sections=sections,
        overridden=tuple(sorted(overridden)),
        stand_ins=tuple(sorted(set(stand_ins) - overridden)),
    )


def _over(sections: Sections, others: Mapping[str, Mapping[str, Price]]) -> set[str]:
    """Put `others` into `sections`; gives their names."""
    for title, rows in others.items():
        sections.setdefault(title, {}).update(rows)
    return {f"{title}.{name}" for title, rows in others.items() for name in rows}


def _read(path: Path, known: Mapping[str, Mapping[str, Price]] | None) -> dict[str, Sections]:
    """A file's prices by region. `known` are the sections and rows that there can be. Raises ConfigError."""
    try:
        regions: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the prices cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    made: dict[str, Sections] = {}
    for region, sections in regions.items():
        if not _REGION.match(region) or not isinstance(sections, dict):
            raise ConfigError(
                f"{path}: [{region}] is no region; sections are called [us-east-1.instance_hour] and so on"
            )
        for title, rows in sections.items():
            where = f"{path}: [{region}.{title}]"
            if known is not None and title not in known:
                raise ConfigError(f"{where} is none of {', '.join(known)}")
            if not isinstance(rows, dict):
                raise ConfigError(f"{where} is no section of prices")
            for name, row in rows.items():
                if known is not None and title not in OPEN_SECTIONS and name not in known[title]:
                    raise ConfigError(f"{where} has no price {name}{_suggestion(name, known[title])}")
                made.setdefault(region, {}).setdefault(title, {})[name] = _price(row, f"{where} {name}")
    return made


def _price(row: Any, where: str) -> Price:
    if not isinstance(row, dict) or set(row) != {"usd", "date", "sure", "source"}:
        raise ConfigError(f"{where}: a price needs usd, date, sure and source, and nothing else")
    try:
        return Price(**row)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _suggestion(name: str, names: Mapping[str, Price]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(names)}"


def _moment(date: str) -> datetime | None:
    """The day at which a date begins, UTC; None for what is none."""
    found = _DATE.match(date)
    if found is None:
        return None
    try:
        return datetime(int(found[1]), int(found[2]), int(found[3] or 1), tzinfo=UTC)
    except ValueError:
        return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
