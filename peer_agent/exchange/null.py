"""No broker: records are found by looking in S3, which is slower and otherwise equal, and heartbeats lie there too.

A heartbeat is one object per rank, which its owner writes again and again. Bodies repeat, so each time it begins with a
line that is new: whoever finds another line than the last time has heard the sender, and whoever finds the first one of
all has heard nothing yet, for it may be years old. docs/decisions/0004-inbox-queues.md says what this costs.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque

from contract.clock import Clock
from contract.errors import BrokerUnavailable, PeerlessError
from contract.keys import Places
from contract.store import ObjectStore
from peer_agent.exchange.counts import Counts
from peer_agent.liveness import watched
from peer_agent.ports import Beat, Delivery, ExchangeCounts

HEARTBEAT_SECONDS = 1.0
#: S3 counts as out of reach when it has answered nothing for so many heartbeats.
AWAY_HEARTBEATS = 3.0
MOST_BEATS = 4_096
STOP_TIMEOUT_SECONDS = 10.0


class S3Pulses:
    """Heartbeats through S3, step by step. `turn` belongs to one thread; the rest may be called from any."""

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        *,
        rank: int,
        peers: int,
        clock: Clock,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._store, self._places, self._clock = store, places, clock
        self._rank, self._ranks = rank, {*range(peers), rank}
        self._every = heartbeat_seconds
        self._name, self._number = secrets.token_hex(6), 0
        self._body: bytes | None = None
        self._put_at = self._looked_at = float("-inf")
        self._lines: dict[int, bytes] = {}
        self._beats: deque[Beat] = deque(maxlen=MOST_BEATS)
        self._answered_at = self._up_since = clock.monotonic()

    @property
    def away_seconds(self) -> float:
        """How long S3 has not answered; 0 while it does, and before anything has been asked."""
        gap = self._clock.monotonic() - self._answered_at
        return gap if self._body is not None and gap > AWAY_HEARTBEATS * self._every else 0.0

    @property
    def up_since(self) -> float | None:
        """Since when it has answered, in monotonic seconds; None while it does not."""
        since = self._up_since
        return None if self.away_seconds else since

    def say(self, body: bytes) -> None:
        """From now on write this; at once where it is new."""
        if self._body is None:
            self._answered_at = self._up_since = self._clock.monotonic()
        self._body, self._put_at = body, float("-inf")

    def watch(self, rank: int) -> None:
        """One more rank belongs to the run."""
        self._ranks = {*self._ranks, rank}

    def take(self) -> list[Beat]:
        """What has been found since the last call."""
        found: list[Beat] = []
        while self._beats:
            found.append(self._beats.popleft())
        return found

    def turn(self) -> float:
        """Write and look where it is time to; gives the seconds until the next time."""
        self._write_if_due()
        now = self._clock.monotonic()
        if now - self._looked_at >= self._every:
            self._looked_at = now
            for rank in watched(self._rank, self._ranks):
                self._look_at(rank)
                self._write_if_due()  # a slow S3 must not make this peer look dead as well
        due = min(self._put_at, self._looked_at) + self._every
        return max(0.0, due - self._clock.monotonic())

    def _write_if_due(self) -> None:
        now, body = self._clock.monotonic(), self._body
        if body is None or now - self._put_at < self._every:
            return
        self._put_at = now
        self._number += 1
        try:
            self._store.put(self._places.alive(self._rank), b"%s %d\n" % (self._name.encode(), self._number) + body)
        except PeerlessError:
            return  # away_seconds tells; the next turn tries again
        self._answered()

    def _look_at(self, rank: int) -> None:
        try:
            found = self._store.find(self._places.alive(rank))
        except PeerlessError:
            return
        self._answered()
        if found is None:
            self._lines.setdefault(rank, b"")
            return
        line, _, body = found[0].partition(b"\n")
        last = self._lines.get(rank)
        self._lines[rank] = line
        if last is not None and line != last:
            self._beats.append(Beat(rank, body, self._clock.monotonic()))

    def _answered(self) -> None:
        now = self._clock.monotonic()
        if now - self._answered_at > AWAY_HEARTBEATS * self._every:
            self._up_since = now
        self._answered_at = now


class NullExchange:
    """Says nothing and hears nothing but heartbeats; `poll` only lets time pass. Without `pulses` not even those."""

    def __init__(self, clock: Clock, pulses: S3Pulses | None = None) -> None:
        self.counts: ExchangeCounts = Counts()
        self._clock, self._pulses = clock, pulses
        self._since = clock.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="heartbeats", daemon=True)

    @property
    def away_seconds(self) -> float:
        """How long S3 has not answered; 0 while it does."""
        return 0.0 if self._pulses is None else self._pulses.away_seconds

    @property
    def up_since(self) -> float | None:
        """Since when S3 has answered, in monotonic seconds; None while it does not."""
        return self._since if self._pulses is None else self._pulses.up_since

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        """Nothing: whoever needs it finds it in S3. Raises BrokerUnavailable once closed."""
        self._check()

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        """No message, after `timeout_seconds`. Raises BrokerUnavailable once closed."""
        self._check()
        self._clock.sleep(timeout_seconds)
        return []

    def acknowledge(self, delivery: Delivery) -> None:
        """Nothing to acknowledge."""

    def beat(self, body: bytes) -> None:
        """Leave this in S3 every `heartbeat_seconds` until the next call or `close`, by a thread of its own."""
        if self._pulses is None or self._closed.is_set():
            return
        self._pulses.say(body)
        self._begin()

    def beats(self) -> list[Beat]:
        """Whose heartbeats have changed since the last call. The first call for one, or for `beat`, begins to look."""
        if self._pulses is None or self._closed.is_set():
            return []
        self._begin()
        return self._pulses.take()

    def admit(self, rank: int) -> None:
        """Look for the heartbeats of a peer that joined after the start too, where it is this peer's turn."""
        if self._pulses is not None:
            self._pulses.watch(rank)

    def close(self, *, retire: bool = False) -> None:
        """Stop writing and looking."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_SECONDS)

    def _begin(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()

    def _serve(self) -> None:
        assert self._pulses is not None
        while not self._closed.wait(self._pulses.turn()):
            pass

    def _check(self) -> None:
        if self._closed.is_set():
            raise BrokerUnavailable("this exchange is closed")
