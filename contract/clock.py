"""Time as a port: the only module that imports `time`.

Everything that waits or measures takes a `Clock`, so that tests drive it without real sleeps.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code may ask of time. All values are in seconds."""

    def now(self) -> float:
        """Seconds since the epoch, for records that people read."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards, for durations and deadlines."""
        ...

    def cpu(self) -> float:
        """CPU seconds (user and system) that this process has used so far."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after `seconds`; at once for values that are not positive."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.perf_counter()

    def cpu(self) -> float:
        return time.process_time()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)
