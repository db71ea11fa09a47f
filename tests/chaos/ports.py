"""The peer's ports with faults in them: each is the real one, and tells the plan what is about to happen or has.

They stand between the peer and the outside, so they need to know nothing of how the peer works inside; what a port
learns to do later goes through untouched.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contract import wire
from contract.batches import BatchRef
from contract.clock import Clock
from contract.events import EventLog
from contract.keys import Place
from contract.store import Data
from peer_agent.ports import RoundGradient
from tests.chaos.faults import Fault, Plan, gradient_name

#: What a peer creates, by the form of its key: the name of its points, with the round and, where it is one's own, rank.
_CREATED = {
    "upload": re.compile(r".*/contributions/(?P<round>\d+)/(?P<rank>\d+)-\d+\Z"),
    "commit": re.compile(r".*/commits/(?P<round>\d+)\.json\Z"),
    "result": re.compile(r".*/results/(?P<round>\d+)\.json\Z"),
    "checkpoint": re.compile(r".*/checkpoints/(?P<round>\d+)\.json\Z"),
    "shard": re.compile(r".*/shards/(?P<round>\d+)/\d+\Z"),
}
_BATCH = re.compile(r".*/batches/\d+\.safetensors\Z")


class Injector:
    """Carries one process's part of a plan out; each fault once."""

    def __init__(self, plan: Plan, rank: int, folder: Path, events: EventLog, clock: Clock) -> None:
        self.plan, self.rank = plan, rank
        self.folder, self._events, self.clock = folder, events, clock
        self._due = [fault for fault in plan.faults if fault.rank == rank]
        self._lock = threading.Lock()

    def reach(self, at: str, round: int) -> None:
        """The process has come to `at` of `round`; whatever is planned for it happens now."""
        with self._lock:
            fault = next((fault for fault in self._due if (fault.at, fault.round) == (at, round)), None)
            if fault is None:
                return
            self._due.remove(fault)
        # Said first, since afterwards there may be nobody to say it.
        self._events.emit("chaos", round=round, fields={"at": at, "do": fault.do})
        self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        if fault.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.do == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.do == "wait":
            # Opening a pipe for reading returns when somebody opens it for writing.
            os.close(os.open(self.folder / fault.gate, os.O_RDONLY))
        else:
            raise RuntimeError(f"chaos {fault.at} of round {fault.round}")


class _Port:
    """What is not spoken of here is the real port's."""

    def __init__(self, inner: Any, injector: Injector) -> None:
        self._inner, self._injector = inner, injector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class ChaosStore(_Port):
    """An object store whose writes of records and contributions are points."""

    def __init__(self, inner: Any, injector: Injector) -> None:
        super().__init__(inner, injector)
        self._batches = 0
        self._lock = threading.Lock()
        self.computing: int | None = None
        """The round whose batches are being fetched."""

    def create(self, place: Place, data: Data) -> Any:
        name, round = self._point(place)
        if not name:
            return self._inner.create(place, data)
        self._injector.reach(f"before_{name}", round)
        created = self._inner.create(place, data)
        if created is not None:
            self._injector.reach(f"after_{name}", round)
        return created

    def find(self, place: Place, most: int | None = None) -> Any:
        self._look(place)
        return self._inner.find(place, most)

    def get(self, place: Place, most: int | None = None) -> bytes:
        self._look(place)
        data: bytes = self._inner.get(place, most)
        return data

    def get_range(self, place: Place, offset: int, length: int) -> bytes:
        self._look(place)
        data: bytes = self._inner.get_range(place, offset, length)
        return data

    def begin(self, round: int | None) -> None:
        """From here on batches are those of `round`."""
        with self._lock:
            self.computing, self._batches = round, 0

    def _look(self, place: Place) -> None:
        if not _BATCH.match(place.key):
            return
        with self._lock:
            self._batches += 1
            second = self._batches == 2
            round = self.computing
        if second and round is not None:
            self._injector.reach("during_map", round)

    def _point(self, place: Place) -> tuple[str, int]:
        for name, pattern in _CREATED.items():
            found = pattern.match(place.key)
            if found and ("rank" not in pattern.groupindex or int(found["rank"]) == self._injector.rank):
                return name, int(found["round"])
        return "", -1


class ChaosExchange(_Port):
    """An exchange whose announcements are points."""

    def publish(self, kind: str, body: bytes, *rest: Any, **named: Any) -> None:
        if kind == "hello":
            self._injector.reach("before_hello", 0)
        self._inner.publish(kind, body, *rest, **named)
        if kind == "frame":
            self._injector.reach("after_publish", wire.decode_header(body).round)


class ChaosMetrics(_Port):
    """Stages as points: the update is where weights change."""

    @contextmanager
    def stage(self, name: str, round: int) -> Iterator[Any]:
        if name == "update":
            self._injector.reach("before_update", round)
        with self._inner.stage(name, round) as record:
            yield record
        if name == "update":
            self._injector.reach("during_barrier", round)


class ChaosGradients(_Port):
    """A gradient service that can be struck, be slow, and lie."""

    def __init__(self, inner: Any, injector: Injector, store: ChaosStore) -> None:
        super().__init__(inner, injector)
        self._store = store

    def compute(self, *, round: int, batches: Sequence[BatchRef], **arguments: Any) -> RoundGradient:
        injector, clock = self._injector, self._injector.clock
        begun = clock.monotonic()
        injector.reach("before_compute", round)
        self._store.begin(round)
        try:
            found: RoundGradient = self._inner.compute(round=round, batches=batches, **arguments)
        finally:
            self._store.begin(None)
        clock.sleep(begun + injector.plan.pace_seconds - clock.monotonic())
        attack = injector.plan.attacks.get(injector.rank)
        if attack is not None:
            found = replace(found, gradient=attacked(attack, found.gradient, injector.rank, round))
        if injector.plan.keep_gradients:
            np.save(injector.folder / gradient_name(injector.rank, round), found.gradient)
        injector.reach("after_compute", round)
        return found


def attacked(attack: str, gradient: np.ndarray, rank: int, round: int) -> np.ndarray:
    """What a lying peer makes of its gradient (n,) float32: case 4 of issue 5."""
    if attack == "scaled":
        return np.asarray(gradient * np.float32(-10.0))
    if attack == "flipped":
        return -gradient
    noise = np.random.default_rng((rank, round)).standard_normal(gradient.shape, np.float32)
    return np.asarray(noise * np.float32(10.0 * np.linalg.norm(gradient) / np.sqrt(gradient.size)), np.float32)
