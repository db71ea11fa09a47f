"""How a round's batches are divided into invocations: a fixed number each, or as many as are worth an invocation.

An invocation costs some fixed time and money whatever it computes: a state of the map, weights, a result that travels.
`auto` gives it about a second of work, as the workers of earlier rounds measured it (more where gradients are large and
workers few), and no more than keeps all workers busy. It decides once per round, before the round's execution starts.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections import deque
from collections.abc import Sequence

from contract.batches import BatchRef, Share, divide, share_count
from contract.computing import local_workers
from contract.runspec import RunSpec

#: What an invocation should compute for at least, in seconds.
WORTH_SECONDS = 1.0
#: Where batches wait for each other's workers anyway, larger shares cost no time: so many seconds of work for each byte
#: of a result, forty times what its way through a local S3 takes, within a limit.
LANE_SECONDS_PER_BYTE, LANE_SECONDS = 1 / 3e6, 12.0
#: Rounds whose measurements count.
ROUNDS = 5
#: Descriptions of so many batches (some 200 bytes each) fit the 256 KiB of one state's input with room to spare.
MOST_BATCHES = 500


class Division:
    """Divides round after round. Thread-safe, as two rounds may be computed at the same time."""

    def __init__(self, setting: int | str, *, lanes: int | None = None, result_bytes: int = 0) -> None:
        """`setting` is `compute.batches_per_worker`; `lanes` is the number of invocations that run at once, None where
        nothing limits it; `result_bytes` is the size of a gradient as it travels."""
        self._setting, self._lanes = setting, lanes
        self._worth = WORTH_SECONDS
        if lanes is not None:
            self._worth = max(WORTH_SECONDS, min(LANE_SECONDS, result_bytes * LANE_SECONDS_PER_BYTE))
        self._seconds: deque[float] = deque(maxlen=ROUNDS)
        self._lock = threading.Lock()

    def divide(self, batches: Sequence[BatchRef]) -> tuple[Share, ...]:
        """One share of consecutive batches per invocation."""
        return divide(batches, self._count(len(batches)))

    def measured(self, step_seconds: Sequence[float]) -> None:
        """What one batch took in the invocations of a round, in seconds."""
        with self._lock:
            if step_seconds:
                self._seconds.append(statistics.median(step_seconds))

    def _count(self, batches: int) -> int:
        if isinstance(self._setting, int):
            return share_count(batches, self._setting)
        with self._lock:
            seconds = statistics.median(self._seconds) if self._seconds else None
        if seconds is None:  # the first round: nothing is known yet
            return batches
        worth = MOST_BATCHES if seconds * MOST_BATCHES <= self._worth else math.ceil(self._worth / seconds)
        if self._lanes is None:
            return share_count(batches, worth)
        count = share_count(batches, min(worth, share_count(batches, self._lanes)))
        # Where lanes take several invocations each, all take as many.
        return min(batches, self._lanes * share_count(count, self._lanes)) if count > self._lanes else count


def lanes(spec: RunSpec, *, local: bool) -> int | None:
    """How many invocations of one peer can run at once; None where the service alone limits it.

    A `local` Lambda service has some processes for all peers together.
    """
    compute = spec.config.compute
    limits = [compute.concurrency] if compute.concurrency else []
    if local:
        limits.append(max(1, local_workers(compute, os.cpu_count() or 1) // len(spec.batches)))
    return min(limits, default=None)
