"""Looking at real processes from a test, and waiting for what they do."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from contract.clock import SystemClock


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return as soon as `condition()`; fails when the time is up."""
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < deadline, "it did not happen in time"
        clock.sleep(0.02)


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; a zombie has."""
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def mentioned(text: str) -> bool:
    """Whether any process has `text` in its command."""
    return any(text in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
