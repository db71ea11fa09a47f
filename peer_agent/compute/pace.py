"""When to ask whether an execution has ended: seldom enough to be cheap, often enough to lose little."""

from __future__ import annotations

from collections.abc import Iterator


class Pace:
    """Waits in seconds between questions, tuned by how long the last executions took."""

    def __init__(self, shortest_seconds: float, share: float, longest_seconds: float = 2.0) -> None:
        """Of an execution's time, `share` is what may go by before its end is noticed, within the two limits."""
        self._shortest, self._share, self._longest = shortest_seconds, share, longest_seconds
        self._last: list[float] = []

    def waits(self) -> Iterator[float]:
        """Until just before the shorter of the last two would have ended; from there a share of the time so far."""
        elapsed = wait = max(self._shortest, 0.97 * min(self._last, default=0.0))
        while True:
            yield wait
            wait = min(max(self._shortest, elapsed * self._share), self._longest)
            elapsed += wait

    def ended(self, seconds: float) -> None:
        """An execution took so long."""
        self._last = [*self._last[-1:], seconds]
