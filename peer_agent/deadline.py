"""How long a round waits for slow peers, learnt from the rounds before. Pure; all times are monotonic seconds.

Median and median absolute deviation, because a single slow round (a cold start, an outage) must not move them as it
would a mean and a standard deviation.
"""

from __future__ import annotations

import statistics
from collections import deque

from contract.config import MembershipConfig

#: Rounds that are looked back on.
ROUNDS = 20
#: Fewer say nothing about the spread; until then the ceiling holds.
FEWEST_ROUNDS = 3


class Deadline:
    """The time limit of a round, and a clock for it that stands still while S3 or the broker cannot be reached."""

    def __init__(self, config: MembershipConfig) -> None:
        self._config = config
        self._rounds: deque[float] = deque(maxlen=ROUNDS)
        self._elapsed = 0.0
        self._running_since: float | None = None
        self._started = self._paused = False

    def add(self, seconds: float) -> None:
        """A round took so long, pauses left out. Raises ValueError for a negative number."""
        if seconds < 0:
            raise ValueError(f"a round cannot have taken {seconds} s")
        self._rounds.append(seconds)

    @property
    def seconds(self) -> float:
        """Median plus `deadline_deviations` median absolute deviations of the last 20 rounds, within floor and ceiling;
        the ceiling until three rounds are known."""
        config = self._config
        if len(self._rounds) < FEWEST_ROUNDS:
            return config.deadline_ceiling_seconds
        median = statistics.median(self._rounds)
        deviation = statistics.median(abs(seconds - median) for seconds in self._rounds)
        wanted = median + config.deadline_deviations * deviation
        return min(max(wanted, config.deadline_floor_seconds), config.deadline_ceiling_seconds)

    def start(self, now: float) -> None:
        """A round begins; a clock that is paused stays so."""
        self._elapsed, self._started = 0.0, True
        self._running_since = None if self._paused else now

    def pause(self, now: float) -> None:
        """The clock stands still from now on; pausing twice is pausing once."""
        self._elapsed, self._running_since, self._paused = self.elapsed(now), None, True

    def resume(self, now: float) -> None:
        """The clock goes on; nothing happens where it runs, or no round has begun."""
        self._paused = False
        if self._started and self._running_since is None:
            self._running_since = now

    def elapsed(self, now: float) -> float:
        """Seconds of the round so far, pauses left out."""
        running = 0.0 if self._running_since is None else max(0.0, now - self._running_since)
        return self._elapsed + running

    def due(self, now: float) -> bool:
        """Whether the round has used up its time."""
        return self._started and self.elapsed(now) >= self.seconds
