"""A clock that moves only when it is told to."""

from __future__ import annotations

import threading


class FakeClock:
    """Virtual time in seconds: `sleep` returns at once and moves `now` and `monotonic` on. Thread-safe.

    `slept` lists what was asked of `sleep`; `use_cpu` moves CPU time (and the clock) on, as computing would.
    """

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._started = now
        self._elapsed = 0.0
        self._cpu = 0.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._started + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def cpu(self) -> float:
        return self._cpu

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self._elapsed += max(0.0, seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass without anybody having asked for it."""
        with self._lock:
            self._elapsed += seconds

    def use_cpu(self, seconds: float) -> None:
        """Let time pass that this process spends computing."""
        with self._lock:
            self._elapsed += seconds
            self._cpu += seconds
