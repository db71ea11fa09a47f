"""A RabbitMQ node of a test's own that can be killed and come back in place: same ports, same data."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from infra.local import rabbitmq
from infra.local.processes import Child, Starting, wait_until_ready

_READY_SECONDS = 90.0
_DIES_SECONDS = 20.0


class OwnBroker:
    """A context manager; `kill` is SIGKILL for the whole node, `revive` brings it back."""

    def __init__(self, folder: Path) -> None:
        environ = {**os.environ, "PEERLESS_BROKER_URL": ""}
        self._broker = rabbitmq.start(folder / "node", folder / "broker.log", Starting(), environ)
        assert self._broker.lasting, f"{self._broker.origin} forgets its queues"
        assert self._broker.child is not None
        self._child: Child = self._broker.child
        self.revivals = 0

    @property
    def url(self) -> str:
        return self._broker.url

    def __enter__(self) -> OwnBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def kill(self) -> None:
        """`kill -9`: nothing is flushed, nobody is told. Returns when it is gone."""
        os.killpg(self._child.pid, signal.SIGKILL)
        assert self._child.wait(_DIES_SECONDS) is not None, "the broker survives SIGKILL"

    def revive(self) -> None:
        """Start it again over its data; returns when it takes connections."""
        self._child = self._child.again()
        wait_until_ready(
            self._child,
            lambda: rabbitmq.answers(self._broker),
            starting=Starting(),
            timeout_seconds=_READY_SECONDS,
        )
        self.revivals += 1
