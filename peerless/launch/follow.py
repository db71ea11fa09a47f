"""Follow a run while it goes on: new events as they are written, and the peers' processes until the last has ended."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.clock import Clock
from peerless.launch.crew import Crew
from peerless.report.progress import Observer

#: Once a peer has failed, or after Ctrl-C, the others are asked to end together; whoever has not by then is killed.
END_SECONDS = 45.0
#: How long peers may take to end when a server that they need has gone.
BROKEN_SECONDS = 3.0
_POLL_SECONDS = 0.1


class EventTail:
    """Reads the lines that were added to events.jsonl since the last call; a half-written line waits for its end."""

    def __init__(self, path: Path, *, from_now: bool = False) -> None:
        """`from_now` leaves out what is there already, of a run that is taken up again."""
        self._path = path
        self._offset = path.stat().st_size if from_now and path.exists() else 0

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
    crew: Crew,
    tail: EventTail,
    observer: Observer,
    clock: Clock,
    end_wanted: Callable[[], bool],
    look_around: Callable[[], str | None],
) -> str | None:
    """Pass events to the observer until every peer has ended; returns a sentence when the run has failed.

    Peers that die are started again, as `Crew` says. Once `end_wanted` says so, or the run cannot end well any more,
    all are asked to end together. `look_around` is called some ten times a second and may return a sentence: what the
    peers need has gone for good, so they get a few seconds and are then killed. A KeyboardInterrupt passes through; the
    caller stops the processes.
    """
    ending, broken, patience_ends = False, None, math.inf
    while True:
        crew.look()
        over = crew.over  # before the events are read, of which an ended peer writes no more
        for event in tail.new():
            crew.saw(event)
            observer.event(event)
        if over:
            return broken or crew.sentence()
        if broken is None and (broken := look_around()):
            patience_ends = clock.monotonic() + BROKEN_SECONDS
        if not ending and (broken or crew.failed or end_wanted()):
            if not broken and not crew.failed:
                observer.note("ending after this round; Ctrl-C again stops at once")
            ending = True
            crew.end()
        if clock.monotonic() > patience_ends:
            crew.kill()
        clock.sleep(_POLL_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the events of a run say that no report does."""

    rounds: int = 0
    """Rounds that the peers have committed."""
    restarts: Mapping[int, int] = field(default_factory=dict)
    """How often each peer was started again, of those that were."""
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Messages that could not be used: by sender (a rank, or `unknown`), then by reason, over all receivers. A report
    has what its own process rejected; these include what processes did that died."""
    batches_failed: Mapping[int, int] = field(default_factory=dict)
    """How many batches each peer's rounds went on without, of those that did."""

    @classmethod
    def of(cls, events: Path) -> Told:
        """Reads the file whole."""
        rounds, restarts, rejected = 0, Counter[int](), dict[str, Counter[str]]()
        failed = dict[tuple[int, int], int]()  # by rank and round: whoever computes a round again tells of it again
        for event in EventTail(events).new():
            name, rank = event["event"], event["rank"]
            if name == "commit":
                rounds = max(rounds, event["round"] + 1)
            elif name == "peer_restarted" or (name == "instance_started" and event.get("attempt", 1) > 1):
                restarts[rank] += 1
            elif name == "frame_rejected":
                sender = "unknown" if event.get("sender") is None else str(event["sender"])
                rejected.setdefault(sender, Counter())[event["reason"]] += 1
            elif name == "batches_failed":
                failed[rank, event["round"]] = event["failed"]
        by_rank = Counter[int]()
        for (rank, _), count in failed.items():
            by_rank[rank] += count
        return cls(rounds=rounds, restarts=restarts, rejected=rejected, batches_failed=by_rank)
