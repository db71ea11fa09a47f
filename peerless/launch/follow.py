"""Follow a run while it goes on: new events as they are written, and the peers' processes until the last has ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from contract.clock import Clock
from infra.local.processes import Child
from peerless.report.progress import Observer

#: Once a peer has failed, or after Ctrl-C, the others are asked to end together; whoever has not by then is killed.
END_SECONDS = 45.0
_POLL_SECONDS = 0.1


class EventTail:
    """Reads the lines that were added to events.jsonl since the last call; a half-written line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the events that have come since."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def follow(
    children: Sequence[Child], events: Path, observer: Observer, clock: Clock, each_time: Callable[[], None]
) -> str | None:
    """Pass events to the observer until every peer has ended; returns a sentence when one failed.

    `children` are the peers in rank order; `each_time` is called with every look, some ten times a second. The
    first Ctrl-C asks all peers to end together, a second one ends this at once (KeyboardInterrupt; the caller stops
    the processes).
    """
    tail, failures = EventTail(events), _Failures(children)
    ending = interrupted = False
    while True:
        try:
            running = [child for child in children if child.poll() is None]
            for event in tail.new():
                failures.saw(event)
                observer.event(event)
            each_time()
            if not running:
                return failures.sentence()
            if not ending and (interrupted or failures.any()):
                ending = True
                for child in running:
                    child.terminate()
            clock.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            observer.note("ending after this round; Ctrl-C again stops at once")


class _Failures:
    """Who failed first, and why."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._told: list[tuple[int, str]] = []

    def saw(self, event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            self._told.append((event["rank"], event["error"]))

    def any(self) -> bool:
        """Whether a peer said that it failed, or ended without success."""
        return bool(self._told) or any(child.poll() not in (None, 0) for child in self._children)

    def sentence(self) -> str | None:
        """The first failure that was told; else how the first process ended that did not succeed."""
        if self._told:
            rank, error = self._told[0]
            return f"peer {rank}: {error}"
        for rank, child in enumerate(self._children):
            if status := child.poll():
                how = f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
                said = child.log_tail()
                return f"peer {rank} {how}" + (f"; its log ends with: {said}" if said else "; its log is empty")
        return None
