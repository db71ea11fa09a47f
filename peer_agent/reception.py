"""The stage `receive` of a round: what a peer waits for others, and the bytes that come meanwhile."""

from __future__ import annotations

from contextlib import ExitStack

from peer_agent.ports import Metrics, StageRecord


class Reception:
    """The stage `receive`: from the own contribution's departure to the commit, and from the update to the barrier."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open = ExitStack()
        self._stage: StageRecord | None = None
        self._early_bytes = 0  # of frames that came while no stage was open

    def begin(self, round: int) -> None:
        """From here on this peer waits for others."""
        self.end()
        self._stage = self._open.enter_context(self._metrics.stage("receive", round))
        self._stage.bytes_in += self._early_bytes
        self._early_bytes = 0

    def received(self, bytes_in: int) -> None:
        """Count what came, whether or not anyone was waiting for it."""
        if self._stage is None:
            self._early_bytes += bytes_in
        else:
            self._stage.bytes_in += bytes_in

    def end(self) -> None:
        """The wait is over, if there was one."""
        self._open.close()
        self._stage = None
