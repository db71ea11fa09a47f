"""A table or figure as it is handed over: rows that say where they come from, and their three written forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from contract.errors import UserError

Value = float | int | str | None


class Origin(StrEnum):
    """Where a row's figures come from; every row has one."""

    PAPER = "paper"
    """Printed in the paper, typed in."""
    MEASURED = "measured"
    """Measured here, by this run of the command."""
    COMPUTED = "computed"
    """Worked out from the paper's figures by its formulas, or from the price book."""
    DERIVED = "derived"
    """What a model gives that was fitted to the paper's figures (peerless/reproduce/workload.py)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    origin: Origin
    name: str
    values: tuple[Value, ...]
    """One per column; None where there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns, of which each says its unit."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"{self.title}, {row.name}: {len(row.values)} values for {len(self.columns)} columns")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one `peerless reproduce` gives."""

    name: str
    """table1 … figure6; also the name of the written files."""
    title: str
    scale: str
    machine: str
    """Processor and cores of what was measured, and what else wanted them."""
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    """What differs from the paper, and why."""
    charts: Mapping[str, str] = field(default_factory=dict)
    """SVG by file name."""
    runs: tuple[str, ...] = ()
    """Identifiers of the runs that were made for it."""


def check_folder(folder: Path) -> None:
    """Make the folder. Raises UserError where it cannot be, or is not empty, so that no two results mix."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: the folder of the result exists and is not empty; name another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder of the result cannot be created ({error.strerror})") from error


def write(result: Result, folder: Path) -> list[Path]:
    """Write NAME.md, NAME.json, NAME.csv and the charts; gives their paths. Raises UserError."""
    contents = {
        f"{result.name}.md": markdown(result),
        f"{result.name}.json": json.dumps({**asdict(result), "charts": sorted(result.charts)}, indent=2) + "\n",
        f"{result.name}.csv": table_csv(result),
        **result.charts,
    }
    try:
        for name, text in contents.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: the result cannot be written ({error.strerror}); name another with --out"
        ) from error
    return [folder / name for name in contents]


def markdown(result: Result) -> str:
    """The result for people: each table with the origin of every row, then the charts and what differs."""
    lines = [
        f"# {result.title}",
        "",
        f"`peerless reproduce {result.name} --scale {result.scale}`, on {result.machine}.",
    ]
    for table in result.tables:
        lines += ["", f"## {table.title}", ""]
        lines.append(_line(["", "origin", *table.columns]))
        lines.append(_line(["---", "---", *("---:" for _ in table.columns)]))
        lines += [_line([row.name, row.origin.value, *map(text_of, row.values)]) for row in table.rows]
        if table.note:
            lines += ["", table.note]
    for name in result.charts:
        lines += ["", f"![{name.removesuffix('.svg')}]({name})"]
    if result.notes:
        lines += ["", "## What differs, and why", "", *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def table_csv(result: Result) -> str:
    """One line per value: table, row, origin, column, value; an empty value is one that there isn't."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("table", "row", "origin", "column", "value"))
    for table in result.tables:
        for row in table.rows:
            for column, value in zip(table.columns, row.values, strict=True):
                rows.writerow((table.title, row.name, row.origin.value, column, "" if value is None else value))
    return text.getvalue()


def text_of(value: Value) -> str:
    """A value for people: five significant digits at most, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
