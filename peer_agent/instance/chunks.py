"""A peer's events on their way to S3, in chunks that the user's side reads as they come."""

from __future__ import annotations

from collections import deque

from contract.clock import Clock
from contract.keys import Places
from contract.store import ObjectStore

#: Between two chunks, in seconds: so old is what the user sees, and so much a killed instance loses at most.
CHUNK_SECONDS = 5.0
#: A chunk holds no more, in bytes, unless one line alone does.
CHUNK_BYTES = 1 << 20


class Chunks:
    """Collects lines and creates an object for those of the last few seconds. What could not be uploaded stays."""

    def __init__(self, store: ObjectStore, places: Places, rank: int, clock: Clock) -> None:
        self._store, self._places, self._rank, self._clock = store, places, rank, clock
        self._lines: deque[bytes] = deque()
        self._tried = clock.monotonic()
        self._last = -1  # milliseconds in the last key

    def add(self, lines: list[bytes]) -> None:
        """Take in whole lines of events."""
        self._lines += lines

    @property
    def waiting(self) -> bool:
        """Whether there are lines that S3 does not have yet."""
        return bool(self._lines)

    def upload_when_due(self) -> None:
        """Upload what there is, if the last try was a while ago. Raises StoreUnavailable, PermanentError."""
        if self._lines and self._clock.monotonic() - self._tried >= CHUNK_SECONDS:
            self.upload()

    def upload(self) -> None:
        """Upload all there is. Raises StoreUnavailable, PermanentError; a later call takes up the rest."""
        self._tried = self._clock.monotonic()
        while self._lines:
            chunk, size = [self._lines[0]], len(self._lines[0])
            for line in list(self._lines)[1:]:
                if size + len(line) > CHUNK_BYTES:
                    break
                chunk.append(line)
                size += len(line)
            self._create(b"".join(chunk))
            for _ in chunk:
                self._lines.popleft()

    def _create(self, body: bytes) -> None:
        """Keys rise; where one is taken (by an earlier instance of this rank) the next one is free."""
        moment = max(self._last + 1, int(self._clock.now() * 1_000))
        while self._store.create(self._places.events(self._rank, moment), body) is None:
            moment += 1
        self._last = moment
