"""The memory of a function, held to as on Lambda: a process that takes more is killed.

Lambda's sandbox ends the process at the limit itself; here its resident set is looked at, so that one may be somewhat
above it for a moment. Pages that processes share count for each of them, as each sandbox has its own.
"""

from __future__ import annotations

import contextlib
import threading

import psutil

#: Between two looks, in seconds. A look takes some 20 microseconds.
LOOK_SECONDS = 0.05
MB = 2**20  # Lambda's own


class MemoryLimit:
    """Watches one process from `watch` to `stop`."""

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._ended = threading.Event()
        self.exceeded_mb: int | None = None
        """Resident set, in MB, for which the process was killed."""

    def watch(self, pid: int) -> None:
        """Look at the process from now on."""
        threading.Thread(target=self._watch, args=(pid,), name=f"memory-{pid}", daemon=True).start()

    def stop(self) -> None:
        """The process has ended."""
        self._ended.set()

    def _watch(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):  # it has just ended
            process = psutil.Process(pid)
            while not self._ended.wait(LOOK_SECONDS):
                resident_mb = process.memory_info().rss // MB
                if resident_mb > self._memory_mb:
                    self.exceeded_mb = resident_mb
                    process.kill()
                    return
