"""One function of the local Lambda service: its queue of invocations, its workers and its counters.

Invocations wait in one queue and are taken in order; each worker has one at a time. All of a function's state changes
happen under one lock, whoever causes them: an invoker's thread, a worker's Runtime API, or a process that ended.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from contract.clock import Clock

#: Lambda's limit of synchronous requests and answers, in bytes.
PAYLOAD_LIMIT_BYTES = 6_291_556


@dataclass(frozen=True, kw_only=True)
class FunctionSpec:
    """What a function is made of."""

    name: str
    handler: str
    """`package.module.function`."""
    workers: int
    """Processes, hence invocations at once."""
    timeout_seconds: float
    """Time limit of one invocation."""
    memory_mb: int
    """A worker whose resident set is larger is killed, as on Lambda."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables on top of the service's own."""

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:us-east-1:000000000000:function:{self.name}"


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended: the handler's answer, or an error object as AWS writes it."""

    body: bytes
    error: str | None = None
    """The error's name, or None for success."""
    log: bytes = b""
    """The last 4 KiB that the worker wrote meanwhile."""
    log_path: str = ""
    """The file to which it wrote them; empty where no worker came to it."""


def failure(name: str, message: str) -> Outcome:
    """An outcome with AWS's error object."""
    return Outcome(json.dumps({"errorType": name, "errorMessage": message}).encode(), name)


class Invocation:
    """One call, from its arrival to its outcome."""

    def __init__(self, payload: bytes) -> None:
        self.id = str(uuid.uuid4())
        self.payload = payload
        self.taken = threading.Event()
        self.done = threading.Event()
        self.outcome: Outcome | None = None
        self.started = 0.0  # monotonic seconds, from when a worker took it


class Worker(Protocol):
    """What a function asks of a worker process."""

    @property
    def log_path(self) -> Path:
        """The file that its output goes to."""

    def start(self) -> None:
        """Launch the process; returns at once. `Function.exited` is called when it has ended."""

    def kill(self) -> None:
        """End the process now."""

    def join(self) -> None:
        """Wait until the process has ended."""

    def mark(self) -> None:
        """Remember where the log stands."""

    def tail(self) -> bytes:
        """At most the last 4 KiB of the log since `mark`."""


@dataclass
class Slot:
    """A worker as its function sees it."""

    worker: Worker
    ready: bool = False
    alive: bool = True
    served: int = 0
    current: Invocation | None = None
    init_error: Outcome | None = None
    created: float = 0.0


class Function:
    """Queue, workers and counters of one function."""

    def __init__(self, spec: FunctionSpec, make_worker: Callable[[Function], Worker], clock: Clock) -> None:
        self.spec = spec
        self._make_worker = make_worker
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Invocation] = deque()
        self._slots: dict[Worker, Slot] = {}
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def prewarm(self) -> None:
        """Start all workers at once; returns before they are ready."""
        with self._changed:
            self._fill()

    def invoke(self, payload: bytes) -> Outcome:
        """Wait for a worker and for its answer; errors of the function are outcomes too."""
        invocation = Invocation(payload)
        with self._changed:
            self._counts["invocations"] += 1
            if self._closed:
                return self._removed()
            self._waiting.append(invocation)
            self._fill()
            self._changed.notify()
        invocation.taken.wait()
        if not invocation.done.wait(self.spec.timeout_seconds):
            self._expire(invocation)
        invocation.done.wait()
        assert invocation.outcome is not None
        return invocation.outcome

    def next(self, worker: Worker) -> Invocation | None:
        """The next invocation for `worker`, which waits for it; None when the worker is of no use any more."""
        with self._changed:
            slot = self._slots.get(worker)
            if slot is not None and not slot.ready:
                slot.ready = True
                self._counts["init_ms"] += math.ceil((self._clock.monotonic() - slot.created) * 1000)
                self._changed.notify_all()
            while slot is not None and slot.alive and not self._closed and not self._waiting:
                self._changed.wait()
            if slot is None or not slot.alive or self._closed:
                return None
            invocation = self._waiting.popleft()
            self._counts["cold_starts"] += slot.served == 0
            slot.served += 1
            slot.current = invocation
            worker.mark()
            invocation.started = self._clock.monotonic()
            invocation.taken.set()
            return invocation

    def answer(self, worker: Worker, invocation_id: str, body: bytes, error: str | None) -> bool:
        """A worker's answer to its current invocation; False when it has no such invocation (any more)."""
        if len(body) > PAYLOAD_LIMIT_BYTES:
            outcome = failure(
                "Function.ResponseSizeTooLarge",
                f"Response payload size exceeded maximum allowed payload size ({PAYLOAD_LIMIT_BYTES} bytes).",
            )
        else:
            outcome = Outcome(body, error)
        with self._changed:
            slot = self._slots.get(worker)
            if slot is None or slot.current is None or slot.current.id != invocation_id:
                return False
            self._finish(slot, outcome)
            return True

    def init_failed(self, worker: Worker, body: bytes, error: str) -> None:
        """A worker could not load its handler; it will exit by itself."""
        with self._changed:
            slot = self._slots.get(worker)
            if slot is not None:
                slot.init_error = Outcome(body, error)

    def init_expired(self, worker: Worker, seconds: float) -> None:
        """A worker's time for loading its handler is over: end it unless it is ready."""
        with self._changed:
            slot = self._slots.get(worker)
            if slot is not None and not slot.ready:
                slot.init_error = failure("Sandbox.Timedout", f"Initialisation timed out after {seconds:.2f} seconds")
                worker.kill()

    def exited(self, worker: Worker, reason: str, exceeded_mb: int | None = None) -> None:
        """A worker's process ended; `reason` as AWS words it, for example `exit status 1`.

        `exceeded_mb` is what it had taken where it was killed for its memory. Lambda would say no more than that it was
        killed; here the error has a name of its own.
        """
        name = "Runtime.ExitError"
        if exceeded_mb is not None:
            name = "Runtime.OutOfMemory"
            reason += f" (out of memory: it took {exceeded_mb:,} MB of {self.spec.memory_mb:,} MB)"
        with self._changed:
            slot = self._slots.pop(worker, None)
            if slot is None:
                return
            slot.alive = False
            if slot.current is not None:
                message = f"RequestId: {slot.current.id} Error: Runtime exited with error: {reason}"
                self._finish(slot, failure(name, message))
            if slot.served:
                self._fill()
            elif not self._slots:
                # All workers failed to load the same code, so everyone who waits learns of it now; the next
                # invocation tries again.
                outcome = slot.init_error or failure(name, f"Runtime exited with error: {reason}")
                while self._waiting:
                    self._fail(self._waiting.popleft(), outcome)
            self._changed.notify_all()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Whether all workers are ready within the time; False at once when one of them ended while loading."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._slots) < self.spec.workers or all(s.ready for s in self._slots.values()),
                timeout_seconds,
            )
            return len(self._slots) == self.spec.workers and all(slot.ready for slot in self._slots.values())

    def describe(self) -> dict[str, Any]:
        """Specification and counters; times in milliseconds."""
        with self._changed:
            return {
                "name": self.spec.name,
                "arn": self.spec.arn,
                "handler": self.spec.handler,
                "workers": self.spec.workers,
                "workers_ready": sum(slot.ready for slot in self._slots.values()),
                "workers_busy": sum(slot.current is not None for slot in self._slots.values()),
                "waiting": len(self._waiting),
                "timeout_seconds": self.spec.timeout_seconds,
                "memory_mb": self.spec.memory_mb,
                "counters": {
                    name: self._counts[name]
                    for name in ("invocations", "billed_ms", "init_ms", "cold_starts", "workers_started")
                }
                | {"errors": sum(self._errors.values()), "errors_by_name": dict(self._errors)},
            }

    def close(self) -> None:
        """End all workers; invocations that wait or run fail. Returns when no process is left."""
        with self._changed:
            self._closed = True
            slots = list(self._slots.values())
            for slot in slots:
                if slot.current is not None:
                    self._finish(slot, self._removed())
            while self._waiting:
                self._fail(self._waiting.popleft(), self._removed())
            self._changed.notify_all()
        for slot in slots:
            slot.worker.kill()
        for slot in slots:
            slot.worker.join()

    def _fill(self) -> None:
        while not self._closed and len(self._slots) < self.spec.workers:
            worker = self._make_worker(self)
            self._slots[worker] = Slot(worker, created=self._clock.monotonic())
            self._counts["workers_started"] += 1
            worker.start()

    def _expire(self, invocation: Invocation) -> None:
        with self._changed:
            for slot in self._slots.values():
                if slot.current is invocation:
                    reason = f"Task timed out after {self.spec.timeout_seconds:.2f} seconds"
                    self._finish(slot, failure("Sandbox.Timedout", f"RequestId: {invocation.id} Error: {reason}"))
                    slot.worker.kill()
                    return

    def _finish(self, slot: Slot, outcome: Outcome) -> None:
        invocation, slot.current = slot.current, None
        assert invocation is not None
        self._counts["billed_ms"] += math.ceil((self._clock.monotonic() - invocation.started) * 1000)
        log_path = str(slot.worker.log_path)
        self._fail(invocation, Outcome(outcome.body, outcome.error, slot.worker.tail(), log_path))

    def _fail(self, invocation: Invocation, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._errors[outcome.error] += 1
        invocation.outcome = outcome
        invocation.taken.set()
        invocation.done.set()

    def _removed(self) -> Outcome:
        return failure("ResourceNotFoundException", f"Function not found: {self.spec.arn}")
