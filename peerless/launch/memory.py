"""How much memory a run takes on this machine, over all its processes."""

from __future__ import annotations

import psutil

from contract.clock import Clock

_SAMPLE_SECONDS = 1.0


class MemoryMeter:
    """Adds up the resident sets of this process and all its descendants: servers, workers and peers.

    Pages that processes share count for each of them, so the figure is an upper bound. Servers that stay between runs
    are nobody's descendants, and are not in it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._next = clock.monotonic()
        self.peak_bytes = 0
        """Largest sum so far."""

    def sample(self) -> None:
        """Look, at most once a second."""
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + _SAMPLE_SECONDS
        processes = [self._process, *self._process.children(recursive=True)]
        self.peak_bytes = max(self.peak_bytes, sum(map(_resident, processes)))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0
