"""Follow a run from its bucket: the peers' events as they upload them, and the records that tell how it ends."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.clock import Clock
from contract.errors import TransientError
from contract.keys import Places
from contract.records import PeerReport
from contract.store import ObjectStore
from peerless.report.progress import Observer

#: Seconds from one look to the next, and the most requests a second: looking for 150 peers costs no more than for 4.
POLL_SECONDS = 3.0
_REQUESTS_A_SECOND = 2.0
_STEP_SECONDS = 0.2
#: How long the others may take to report once the run has ended for one of them, or once one has failed.
END_SECONDS = 180.0
FAILED_SECONDS = 60.0
#: How long the last events may take once all have reported.
LAST_SECONDS = 30.0
#: How long the first event may take: an instance starts, pulls an image of a gigabyte and starts its peer.
START_SECONDS = 20 * 60.0
#: How often the state of the instances is looked at while nothing has come from any.
_LOOK_SECONDS = 30.0

#: `keys_after(prefix, key)`: the keys under `prefix` that sort after `key` ("" for all).
KeysAfter = Callable[[str, str], list[str]]


_NOBODY_LEFT = "all instances were switched off before a peer had reported; `peerless logs` shows why"


class Detached(Exception):
    """The user has let go of a run, which goes on."""


@dataclass
class Watch:
    """What following needs to know of the world beside the bucket."""

    wants_out: Callable[[], bool]
    """Whether the user has pressed Ctrl-C."""
    trouble: Callable[[], list[str]] = list
    """Sentences about instances that do not come."""
    alive: Callable[[], bool] = lambda: True
    """Whether anything still works on the run: an instance is asked for."""
    _told: set[str] = field(default_factory=set)

    def news(self) -> list[str]:
        """Troubles that were not told yet."""
        new = [sentence for sentence in self.trouble() if sentence not in self._told]
        self._told.update(new)
        return new


class BucketEvents:
    """Reads the chunks of events that were added since the last look, appends them to a file and gives the events."""

    def __init__(self, store: ObjectStore, places: Places, peers: int, file: Path, keys_after: KeysAfter) -> None:
        self._store, self._places, self._file, self._keys_after = store, places, file, keys_after
        self._last = dict.fromkeys(range(peers), "")

    def new(self) -> list[dict[str, Any]]:
        """New events, those of each rank in order. A line that is none is passed over: a peer may die while writing."""
        found: list[tuple[float, bytes, dict[str, Any]]] = []
        for rank in self._last:
            for key in self._keys_after(self._places.events_of(rank).key, self._last[rank]):
                milliseconds = self._places.parse_events(rank, key)
                chunk = self._store.find(self._places.events(rank, milliseconds))
                self._last[rank] = key
                for line in (chunk[0] if chunk else b"").splitlines():
                    if (event := _event(line)) is not None:
                        found.append((event["t"], line, event))
        found.sort(key=lambda item: item[0])  # stable: what one peer wrote stays in its order
        if found:
            with open(self._file, "ab") as file:
                file.write(b"".join(line + b"\n" for _, line, _ in found))
        return [event for _, _, event in found]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(event, dict) and isinstance(event.get("t"), int | float) and "event" in event and "rank" in event
    return event if fits and "round" in event else None


class BucketRun:
    """A run that goes on elsewhere, as its bucket shows it."""

    def __init__(
        self, store: ObjectStore, places: Places, peers: int, file: Path, keys_after: KeysAfter, clock: Clock
    ) -> None:
        """`file` is the run folder's events.jsonl, to which events are appended."""
        self._store, self._places, self._peers = store, places, peers
        self._keys_after, self._clock = keys_after, clock
        self._events = BucketEvents(store, places, peers, file, keys_after)
        self._reports_prefix = places.report(0).key.rpartition("/")[0] + "/"
        self._failed: str | None = None
        self._reports: dict[int, PeerReport] = {}
        self._heard = False

    def follow(self, watch: Watch, observer: Observer) -> str | None:
        """Pass events to the observer until the run has ended; gives a sentence when it failed.

        It has ended when all peers have reported and brought their last events; some time after the first report,
        `stop.json` or a failure; or when no instance is left that could go on. Raises Detached when the user wants out.
        """
        poll = max(POLL_SECONDS, (self._peers + 2) / _REQUESTS_A_SECOND)
        began, looked, patience_ends = self._clock.monotonic(), -math.inf, math.inf
        unreachable = False
        while True:
            complete = len(self._reports) == self._peers
            due = complete or self._clock.monotonic() - looked >= _LOOK_SECONDS
            try:
                # Asked before the bucket: an instance that has gone had reported before.
                alive = watch.alive() if due else True
                self._look(observer)
            except TransientError as error:  # this machine sleeps, travels, loses its network; the run does not care
                if not unreachable:
                    observer.note(f"{error}; looking again, the run goes on")
                unreachable = True
                self._wait(poll, watch)
                continue
            unreachable, now = False, self._clock.monotonic()
            if due:
                looked = now
            if now >= patience_ends:
                return self._sentence()
            if not alive:
                return self._sentence() or (None if self._reports else _NOBODY_LEFT)
            patience_ends = min(patience_ends, now + self._patience())
            if not self._heard:
                self._tell_troubles(watch if due else None, observer)
                if now - began >= START_SECONDS:
                    return f"no peer has been heard of for {START_SECONDS / 60:.0f} minutes; `peerless logs` shows why"
            self._wait(poll, watch)

    def _tell_troubles(self, watch: Watch | None, observer: Observer) -> None:
        with contextlib.suppress(TransientError):
            for sentence in watch.news() if watch is not None else ():
                observer.note(sentence)

    def _look(self, observer: Observer) -> None:
        """Take in what is new in the bucket."""
        for event in self._events.new():
            self._heard = True
            if event["event"] == "failed" and self._failed is None:
                self._failed = f"peer {event['rank']}: {event.get('error', 'it gave no reason')}"
            observer.event(event)
        if len(self._reports) < self._peers:
            present = set(self._keys_after(self._reports_prefix, ""))
            for rank in set(range(self._peers)) - set(self._reports):
                place = self._places.report(rank)
                if place.key in present and (found := self._store.find(place)) is not None:
                    self._reports[rank] = PeerReport.from_json(found[0])
                    self._heard = True

    def _patience(self) -> float:
        """Seconds that the peers still get, now that the run has ended for one of them; infinite while it goes on."""
        if len(self._reports) == self._peers:
            return LAST_SECONDS  # instances switch themselves off once their last events are up
        if self._failed or any(report.error for report in self._reports.values()):
            return FAILED_SECONDS
        if self._reports or self._store.head(self._places.stop()) is not None:
            return END_SECONDS
        return math.inf

    def _sentence(self) -> str | None:
        told = next((f"peer {rank}: {r.error}" for rank, r in sorted(self._reports.items()) if r.error), None)
        return self._failed or told

    def _wait(self, seconds: float, watch: Watch) -> None:
        """In small steps, so that Ctrl-C is answered at once."""
        ends = self._clock.monotonic() + seconds
        while self._clock.monotonic() < ends:
            if watch.wants_out():
                raise Detached
            self._clock.sleep(_STEP_SECONDS)
