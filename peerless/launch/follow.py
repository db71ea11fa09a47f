"""Follow a run while it goes on: new events as they are written, and the peers' processes until the last has ended."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from contract.clock import Clock
from infra.local.processes import Child
from peerless.report.progress import Observer

#: Once a peer has failed, or after Ctrl-C, the others are asked to end together; whoever has not by then is killed.
END_SECONDS = 45.0
#: How long peers may take to end when a server that they need has gone.
BROKEN_SECONDS = 3.0
#: How a peer ends that is asked to before it has joined the run.
_ENDED_EARLY = (128 + signal.SIGTERM, 130)
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
    children: Sequence[Child],
    events: Path,
    observer: Observer,
    clock: Clock,
    end_wanted: Callable[[], bool],
    look_around: Callable[[], str | None],
) -> str | None:
    """Pass events to the observer until every peer has ended; returns a sentence when one failed.

    `children` are the peers in rank order. Once `end_wanted` says so, or a peer has failed, all are asked to end
    together. `look_around` is called some ten times a second and may return a sentence: what the peers need has gone,
    so they get a few seconds and are then killed. A KeyboardInterrupt passes through; the caller stops the processes.
    """
    tail, failures = EventTail(events), _Failures(children)
    ending, broken, patience_ends = False, None, math.inf
    while True:
        running = [child for child in children if child.poll() is None]
        failures.look()
        for event in tail.new():
            failures.saw(event)
            observer.event(event)
        if not running:
            return broken or failures.sentence()
        if broken is None and (broken := look_around()):
            patience_ends = clock.monotonic() + BROKEN_SECONDS
        if not ending and (broken or failures.any() or end_wanted()):
            if not broken and not failures.any():
                observer.note("ending after this round; Ctrl-C again stops at once")
            ending = True
            for child in running:
                failures.asked_to_end(child)
                child.terminate()
        if clock.monotonic() > patience_ends:
            for child in running:
                child.kill()
        clock.sleep(_POLL_SECONDS)


def rounds_told(events: Path) -> int:
    """How many rounds the peers of a run have committed, as its events say."""
    commits = (event["round"] for event in EventTail(events).new() if event["event"] == "commit")
    return max(commits, default=-1) + 1


class _Failures:
    """Who failed first, and why."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._told: list[tuple[int, str]] = []
        self._asked: set[int] = set()
        self._ended: dict[int, int] = {}  # bad ends by rank, in the order of being noticed

    def saw(self, event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            self._told.append((event["rank"], event["error"]))

    def asked_to_end(self, child: Child) -> None:
        """From here on an end by SIGTERM is what was asked for: the peer had not begun yet."""
        self._asked.add(self._children.index(child))

    def look(self) -> None:
        """Note who has ended badly."""
        for rank, child in enumerate(self._children):
            status = child.poll()
            if status and not (rank in self._asked and status in _ENDED_EARLY):
                self._ended.setdefault(rank, status)

    def any(self) -> bool:
        """Whether a peer said that it failed, or ended without success."""
        return bool(self._told or self._ended)

    def sentence(self) -> str | None:
        """The first failure that was told; else how the first process ended that did not succeed."""
        if self._told:
            rank, error = self._told[0]
            return f"peer {rank}: {error}"
        for rank, status in self._ended.items():
            how = f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
            said = self._children[rank].log_tail()
            return f"peer {rank} {how}" + (f"; its log ends with: {said}" if said else "; its log is empty")
        return None
