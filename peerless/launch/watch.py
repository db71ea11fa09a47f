"""Watch a local run from outside: its events as they are written, until nobody works on it any more.

Nothing is written and nobody is asked, so the run does not know how many watch it, or when they leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from contract.clock import Clock
from peerless.launch.follow import EventTail
from peerless.launch.run_folder import RunFolder
from peerless.launch.runs import events_of, is_going_on
from peerless.report.progress import Observer

#: Seconds from one look to the next.
POLL_SECONDS = 0.2
#: How long the summary may take once the last process is gone: one that fails writes it at the very end.
SUMMARY_SECONDS = 2.0


class Watcher(Observer, Protocol):
    """An observer that may come late."""

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in what came before somebody watched."""
        ...

    def ended(self) -> None:
        """Nobody works on the run any more."""
        ...


def watch(folder: RunFolder, peers: int, watcher: Watcher, clock: Clock) -> bool:
    """Tell `watcher` of the run, which began with so many peers, to its end; gives whether it went on at all.

    A KeyboardInterrupt passes through, and the run goes on. Raises ConfigError where the folder cannot be read.
    """
    going_on = is_going_on(folder)  # before the events are read, of which an ended run writes no more
    tail = EventTail(folder.events)
    watcher.recall(events_of(tail))
    if not going_on:
        watcher.ended()
        return False
    watcher.training(peers, 0)
    while going_on:
        clock.sleep(POLL_SECONDS)
        going_on = is_going_on(folder)
        for event in events_of(tail):
            watcher.event(event)
    watcher.ended()
    ends = clock.monotonic() + SUMMARY_SECONDS
    while not folder.summary.exists() and clock.monotonic() < ends:
        clock.sleep(POLL_SECONDS)
    return True
