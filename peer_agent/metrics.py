"""What each stage of a round costs: the figures of the paper's Table I, measured as the paper did.

Stages may nest and overlap in several threads. Seconds and bytes belong to a stage alone; CPU and memory are the whole
process's while the stage ran, so that stages which overlap share them. A peak counts for every stage that was open when
it came.

Tracing Python's memory makes each request to S3 cost about three times the CPU. Rounds are alike, so each kind of stage
is traced in its first runs only; later events repeat the largest peak that was traced for their kind.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import psutil

from contract.clock import Clock
from contract.events import STAGES, EventLog

#: The resident set is looked at so often while a stage is open, beside each begin and end, in seconds.
SAMPLE_SECONDS = 0.1
#: Runs of each kind of stage whose Python memory is traced.
TRACED_RUNS = 3
#: Stages that come seldom: they turn tracing on for themselves, and see what is allocated from their begin on.
SELDOM = frozenset({"convergence"})


@dataclass(eq=False)
class Stage:
    """One stage while it runs; whoever moves bytes adds them here."""

    bytes_in: int = 0
    bytes_out: int = 0
    peak_bytes: int = 0
    """Most Python memory traced at once (NumPy's included, torch's not)."""
    rss_bytes: int = 0
    """Largest resident set seen."""
    traced: bool = True
    """Whether this run's Python memory is traced."""


@dataclass
class _Total:
    runs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    peak_rss_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class StageMetrics:
    """Measures stages, emits a `stage` event at the end of each, and adds them up. Thread-safe.

    It traces Python's memory (tracemalloc, one frame per block: the cheapest) from its start until each stage of a
    round has run TRACED_RUNS times, unless somebody else traces already. `resident` gives the resident set in bytes.
    """

    def __init__(self, events: EventLog, clock: Clock, resident: Callable[[], int] | None = None) -> None:
        self._events, self._clock = events, clock
        self._resident = resident or _resident
        self._lock = threading.Lock()
        self._open: set[Stage] = set()
        self._totals = {name: _Total() for name in STAGES}
        self._foreign = tracemalloc.is_tracing()
        self._settle_tracing()
        self._closed = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="peerless-memory", daemon=True)
        self._sampler.start()

    @contextmanager
    def stage(self, name: str, round: int) -> Iterator[Stage]:
        """Measure what happens inside, also when it raises. Raises ValueError for a name that is no stage."""
        if name not in STAGES:
            raise ValueError(f"{name!r} is no stage; stages are {', '.join(STAGES)}")
        total = self._totals[name]
        with self._lock:
            self._look()  # what came before belongs to those that are open already
            stage = Stage(traced=total.runs < TRACED_RUNS)
            self._open.add(stage)
            self._settle_tracing()
            self._look()
        begun, cpu_begun = self._clock.monotonic(), self._clock.cpu()
        try:
            yield stage
        finally:
            seconds = self._clock.monotonic() - begun
            cpu_seconds = self._clock.cpu() - cpu_begun
            with self._lock:
                self._look()
                self._open.remove(stage)
                self._add(total, stage, seconds, cpu_seconds)
                peak_bytes = stage.peak_bytes if stage.traced else total.peak_bytes
                self._settle_tracing()
            fields = {
                "stage": name,
                "seconds": seconds,
                "cpu_percent": _percent(cpu_seconds, seconds),
                "peak_bytes": peak_bytes,
                "rss_bytes": stage.rss_bytes,
                "bytes_in": stage.bytes_in,
                "bytes_out": stage.bytes_out,
            }
            self._events.emit("stage", round=round, fields=fields)

    def totals(self) -> dict[str, dict[str, float]]:
        """By stage: seconds, cpu_percent (of one core, over those seconds), peak_bytes, peak_rss_bytes, bytes_in,
        bytes_out."""
        with self._lock:
            return {
                name: {
                    "seconds": total.seconds,
                    "cpu_percent": _percent(total.cpu_seconds, total.seconds),
                    "peak_bytes": total.peak_bytes,
                    "peak_rss_bytes": total.peak_rss_bytes,
                    "bytes_in": total.bytes_in,
                    "bytes_out": total.bytes_out,
                }
                for name, total in self._totals.items()
                if total.runs
            }

    def close(self) -> None:
        """Stop looking and tracing."""
        self._closed.set()
        self._sampler.join()
        if not self._foreign:
            tracemalloc.stop()

    def _settle_tracing(self) -> None:
        """Trace while a stage of every round has runs to be traced, or one is open that has; the caller holds the
        lock."""
        if self._foreign:
            return
        early = any(total.runs < TRACED_RUNS for name, total in self._totals.items() if name not in SELDOM)
        wanted = early or any(stage.traced for stage in self._open)
        if wanted and not tracemalloc.is_tracing():
            tracemalloc.start(1)
        elif not wanted:
            tracemalloc.stop()

    def _look(self) -> None:
        """Give the memory peaks since the last look to all open stages; the caller holds the lock."""
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        resident = self._resident()
        for stage in self._open:
            if stage.traced:
                stage.peak_bytes = max(stage.peak_bytes, peak)
            stage.rss_bytes = max(stage.rss_bytes, resident)

    @staticmethod
    def _add(total: _Total, stage: Stage, seconds: float, cpu_seconds: float) -> None:
        total.runs += 1
        total.seconds += seconds
        total.cpu_seconds += cpu_seconds
        total.peak_bytes = max(total.peak_bytes, stage.peak_bytes)
        total.peak_rss_bytes = max(total.peak_rss_bytes, stage.rss_bytes)
        total.bytes_in += stage.bytes_in
        total.bytes_out += stage.bytes_out

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_SECONDS):
            with self._lock:
                if self._open:
                    self._look()


def _percent(cpu_seconds: float, seconds: float) -> float:
    return 100.0 * cpu_seconds / seconds if seconds > 0 else 0.0


@cache
def _this_process() -> psutil.Process:
    return psutil.Process()


def _resident() -> int:
    resident: int = _this_process().memory_info().rss
    return resident
