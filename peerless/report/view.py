"""The view of a run while it goes on, for a terminal: drawn anew a few times a second, from the peers' events alone.

`peerless train` and `peerless watch` show the same. What is shown is folded in `peerless/report/view_state.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from contract.clock import Clock, SystemClock
from peerless.report.progress import ROUND_EVENTS, FirstOfItsKind, describe
from peerless.report.view_state import State, bill, faults, figures, head, rejected, span

#: Pictures a second, lines that everything but the peers takes, and how many peers are shown in the lowest of windows.
_A_SECOND = 4
_OTHER_LINES = 14
_LEAST_PEERS = 3
#: Characters of a curve.
_CURVE = 40
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#"
_STYLES = {"training": "green", "failed": "red", "silent": "yellow", "excluded": "yellow", "finished": "dim"}


class View:
    """An `Observer` that draws on a terminal; notes scroll by above the picture."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self._state, self._clock = State(), clock or SystemClock()
        # What is drawn, a thread draws. It holds the display's lock while it takes this one, so nothing is printed, for
        # which the display's is taken, by whoever holds this one.
        self._lock = threading.Lock()
        self._rejected = FirstOfItsKind()
        self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=_A_SECOND)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def picture(self) -> RenderableType:
        """How the run stands now."""
        with self._lock:
            return drawn(self._state, self._clock.now())

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def training(self, peers: int, rounds: int) -> None:
        with self._lock:
            self._state.begin(peers, rounds or None)
        self._live.start()  # not before: what it draws would run over a question and its answer

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in what came before somebody watched; nothing of it is told."""
        for event in events:
            if self._add(event):
                self._rejected.is_new(event)

    def ended(self) -> None:
        """Nobody works on the run any more."""
        with self._lock:
            self._state.over = True

    def event(self, event: Mapping[str, Any]) -> None:
        in_picture = event.get("event") in (*ROUND_EVENTS, "validated", "finished")
        if not self._add(event) or in_picture or not self._rejected.is_new(event):
            return
        if (line := describe(event, self._state.rounds_limit or 0)) is not None:
            self.note(line)

    def _add(self, event: Mapping[str, Any]) -> bool:
        with self._lock:
            return self._state.add(event)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A picture that fits the window that it is shown in; it keeps no hold of the state that it was made from."""

    head: str
    done: int
    limit: int | None
    seconds: float
    peers: tuple[tuple[str, ...], ...]
    curves: tuple[tuple[str, str, tuple[float, ...]], ...]
    figures: tuple[tuple[str, str], ...]
    """Name and text."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        most = max(_LEAST_PEERS, (options.height or console.height) - _OTHER_LINES)
        most = most if console.is_terminal else len(self.peers)  # a pipe has no height
        yield from (self._head(console), *_peers(self.peers, most), *_curves(self.curves, options))
        if self.figures:
            yield self._figures()

    def _head(self, console: Console) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        told = f"round {self.done} of {self.limit}" if self.limit else f"{self.done} rounds"
        # Without colours, what is to come looks like what is done.
        shows = self.limit and console.is_terminal
        bar = [ProgressBar(total=self.limit, completed=min(self.done, self.limit or 0), width=24)] if shows else []
        table.add_row(Text(self.head, style="bold"), *bar, Text(told), Text(span(self.seconds)))
        return table

    def _figures(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, text in self.figures:
            table.add_row(Text(name, style="bold"), Text(text))
        return table


def drawn(state: State, now: float) -> _Drawn:
    """How a run stands at `now` (seconds since the epoch)."""
    rows = {"bytes": figures(state), "bill": bill(state), "rejected": rejected(state), "faults": faults(state)}
    return _Drawn(
        head=head(state),
        done=state.rounds_done,
        limit=state.rounds_limit,
        seconds=state.seconds(now),
        peers=tuple(state.peer_rows(now)),
        curves=tuple(state.curves()),
        figures=tuple((name, text) for name, text in rows.items() if text),
    )


def _peers(rows: tuple[tuple[str, ...], ...], most: int) -> list[RenderableType]:
    """The peers' table; of many those first that do not simply train."""
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("peer", "state", "round", "stage", "loss", "in", "out"):
        table.add_column(name, justify="right" if name in ("peer", "round", "loss", "in", "out") else "left")
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: row[1] == "training")[: most - 1]
    for row in shown:
        table.add_row(row[0], Text(row[1], style=_STYLES.get(row[1].split(":")[0], "")), *row[2:])
    left = len(rows) - len(shown)
    return [table, *([Text(f"and {left} more", style="dim")] if left else [])]


def _curves(curves: tuple[tuple[str, str, tuple[float, ...]], ...], options: ConsoleOptions) -> list[RenderableType]:
    if not curves:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, told, values in curves:
        table.add_row(Text(name, style="bold"), Text(told), Text(sparkline(values, _CURVE, options.ascii_only)))
    return [table]


def sparkline(values: Iterable[float], width: int, ascii_only: bool = False) -> str:
    """Values as characters of rising height, at most `width` of them; of more each character shows a mean.

    The lowest value has the lowest character, the highest the highest; values that are all alike lie in the middle.
    """
    given = list(values)
    count = min(len(given), width)
    means = []
    for index in range(count):
        part = given[index * len(given) // count : (index + 1) * len(given) // count]
        means.append(sum(part) / len(part))
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    low, high = min(means, default=0.0), max(means, default=0.0)
    if low == high:
        return blocks[len(blocks) // 2] * count
    return "".join(blocks[round((value - low) / (high - low) * (len(blocks) - 1))] for value in means)
