"""Where the processes of a measurement wait for each other, and by whose clock they are timed.

A process says that it has arrived at a meeting and waits; when all have, they are let go at once. So a round begins for
all peers in the same moment, and ends when the last of them arrives at the next meeting. The monotonic clock is the
machine's, the same in all its processes; a Unix socket reaches into network namespaces too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from contract.clock import Clock, SystemClock

_GO = b"go\n"


@dataclass
class Gathering:
    """One meeting. Times are in monotonic seconds."""

    arrived: dict[int, float] = field(default_factory=dict)
    """When each rank had done what came before."""
    counts: dict[int, dict[str, float]] = field(default_factory=dict)
    """What each rank had counted by then."""
    released: float | None = None
    """When all were let go; None before that."""


class Meeting:
    """The side that lets go: a thread per process, as a context manager."""

    def __init__(self, path: Path, peers: int, clock: Clock | None = None) -> None:
        """Listens at `path`, which must not exist. Raises OSError."""
        self.path, self._peers, self._clock = path, peers, clock or SystemClock()
        self.gatherings: dict[int, Gathering] = {}
        """By number, from 0."""
        self._lock = threading.Lock()
        self._waiting: dict[int, list[socket.socket]] = {}
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(peers)
        threading.Thread(target=self._accept, name="meeting", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nobody is let go any more; whoever waits gets an error."""
        with self._lock:
            for connection in (self._listener, *self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def seconds(self, first: int = 0, step: int = 1) -> list[float]:
        """How long it took from being let go at a meeting to the last arrival at the next one.

        For the meetings `first`, `first + step`, … that have a next one at which all arrived.
        """
        found = []
        for number in range(first, len(self.gatherings) - 1, step):
            begin, after = self.gatherings[number].released, self.gatherings[number + 1]
            if begin is not None and after.released is not None:
                found.append(max(after.arrived.values()) - begin)
        return found

    def counted(self, first: int = 0, step: int = 1) -> dict[str, float]:
        """How much further the counts are at the next meeting, on average over the ranks and over the same meetings."""
        grown: dict[str, list[float]] = {}
        for number in range(first, len(self.gatherings) - 1, step):
            begin, after = self.gatherings[number], self.gatherings[number + 1]
            if begin.released is not None and after.released is not None:
                for rank, counts in begin.counts.items():
                    for name, value in counts.items():
                        grown.setdefault(name, []).append(after.counts[rank][name] - value)
        return {name: sum(values) / len(values) for name, values in grown.items()}

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), name="meeting peer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                self._arrive(connection, said["rank"], said["meeting"], said["at"], said["counts"])

    def _arrive(self, connection: socket.socket, rank: int, number: int, at: float, counts: dict[str, float]) -> None:
        with self._lock:
            gathering = self.gatherings.setdefault(number, Gathering())
            gathering.arrived[rank], gathering.counts[rank] = at, counts
            waiting = self._waiting.setdefault(number, [])
            waiting.append(connection)
            if len(waiting) == self._peers:
                gathering.released = self._clock.monotonic()
                for each in waiting:
                    each.sendall(_GO)


def cpu_seconds() -> float:
    """What this process has used of the processors since its start, for its counts."""
    used = os.times()
    return used.user + used.system


class Attendance:
    """The side that arrives and waits: one process of `rank`."""

    def __init__(self, path: Path, rank: int, clock: Clock | None = None) -> None:
        """Raises OSError where nobody listens."""
        self._rank, self._clock = rank, clock or SystemClock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def meet(self, number: int, counts: Mapping[str, float] | None = None, at: float | None = None) -> None:
        """Arrive (at `at`, or now) at meeting `number`; returns when all have. Raises OSError when it is called off."""
        arrived = self._clock.monotonic() if at is None else at
        said = {"rank": self._rank, "meeting": number, "at": arrived, "counts": dict(counts or {})}
        self._socket.sendall(json.dumps(said).encode() + b"\n")
        if self._socket.recv(len(_GO), socket.MSG_WAITALL) != _GO:
            raise ConnectionAbortedError(f"meeting {number} was called off")

    def close(self) -> None:
        self._socket.close()
