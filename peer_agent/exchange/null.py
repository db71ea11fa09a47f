"""No broker: records are found by looking in S3, which is slower and otherwise equal."""

from __future__ import annotations

from contract.clock import Clock
from peer_agent.exchange.counts import Counts
from peer_agent.ports import Delivery, ExchangeCounts


class NullExchange:
    """Says nothing and hears nothing; `poll` only lets time pass."""

    def __init__(self, clock: Clock) -> None:
        self.counts: ExchangeCounts = Counts()
        self._clock = clock

    def publish(self, kind: str, body: bytes) -> None:
        """Nothing: whoever needs it finds it in S3."""

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        """No message, after `timeout_seconds`."""
        self._clock.sleep(timeout_seconds)
        return []

    def acknowledge(self, delivery: Delivery) -> None:
        """Nothing to acknowledge."""

    def close(self, *, retire: bool = False) -> None:
        """Nothing to close."""
