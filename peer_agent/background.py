"""Long computations beside the loop that answers messages."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Finished:
    """The outcome of a job: `value`, or the `error` that it raised; `then` is what its starter wants done with it."""

    then: Callable[[Any], Any]
    value: Any = None
    error: BaseException | None = None


class Background(Protocol):
    """Runs jobs; their outcomes are handed out one by one, to the thread that asks."""

    @property
    def busy(self) -> bool:
        """Whether an outcome is still to come."""

    def start(self, job: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        """Run `job` soon."""

    def finished(self, timeout_seconds: float) -> list[Finished]:
        """What has come to an end; waits for at least one, up to the timeout."""


class Threads:
    """A daemon thread per job, so that a process that must end at once does not wait for a computation."""

    def __init__(self, torch_threads: int) -> None:
        """`torch_threads` are pinned in each job, as in the process."""
        self._torch_threads = torch_threads
        self._outcomes: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._running = 0

    @property
    def busy(self) -> bool:
        return self._running > 0

    def start(self, job: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        def work() -> None:
            try:
                torch.set_num_threads(self._torch_threads)
                outcome = Finished(then, value=job())
            except BaseException as error:  # handed on to the loop, which raises it
                outcome = Finished(then, error=error)
            self._outcomes.put(outcome)

        self._running += 1
        threading.Thread(target=work, name="peerless-job", daemon=True).start()

    def finished(self, timeout_seconds: float) -> list[Finished]:
        found: list[Finished] = []
        try:
            if self._running:
                found.append(self._outcomes.get(timeout=timeout_seconds))
            while len(found) < self._running:
                found.append(self._outcomes.get_nowait())
        except queue.Empty:
            pass
        self._running -= len(found)
        return found
