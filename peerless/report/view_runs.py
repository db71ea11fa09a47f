"""The runs of a folder as a table for the terminal, or for a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from peerless.launch.runs import DAMAGED, FAILED, KILLED, RUNNING, RunRow

_STYLES = {RUNNING: "green", FAILED: "red", KILLED: "yellow", DAMAGED: "red"}


def runs_table(rows: Sequence[RunRow]) -> Table:
    """One row per run; times in UTC, costs in US dollars."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "started (UTC)", "model", "peers", "mode", "state"):
        table.add_column(name, overflow="fold")
    for name in ("rounds", "accuracy", "USD"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")  # last, because it may be a sentence
    for row in rows:
        table.add_row(
            Text(row.name),
            "" if row.started is None else f"{datetime.fromtimestamp(row.started, UTC):%Y-%m-%d %H:%M}",
            Text(row.model or ""),
            _peers(row),
            row.mode or "",
            Text(row.state, style=_STYLES.get(row.state, "")),
            "" if row.rounds is None else str(row.rounds),
            _accuracy(row),
            _cost(row),
            Text(row.detail or ""),
        )
    if any(row.as_if_on_aws for row in rows):
        table.caption, table.caption_justify = "* trained on this machine; so much would it have cost on AWS", "left"
    return table


def _peers(row: RunRow) -> str:
    if row.peers is None:
        return ""
    return f"{row.peers} + {row.joined}" if row.joined else str(row.peers)


def _accuracy(row: RunRow) -> str:
    if row.accuracy is None:
        return ""
    return f"{row.accuracy:.2%}" + (" (validation)" if row.accuracy_of == "validation" else "")


def _cost(row: RunRow) -> str:
    if row.usd is None:
        return ""
    return f"{row.usd:.4f}" + ("*" if row.as_if_on_aws else "")
