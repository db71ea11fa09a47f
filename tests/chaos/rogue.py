"""A stranger who has a peer's account on the broker: he can send whatever he likes through that peer's exchange."""

from __future__ import annotations

from typing import Self

import pika

from contract import keys
from peer_agent.exchange.inboxes import TO_OTHERS


class Rogue:
    """Speaks through the exchange of `rank`; a context manager."""

    def __init__(self, broker_url: str, run: str, rank: int) -> None:
        self._exchange = keys.peer_exchange(run, rank)
        self._connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, kind: str, body: bytes) -> None:
        """To all other peers; returns once the broker has it."""
        self._channel.basic_publish(self._exchange, TO_OTHERS, body, pika.BasicProperties(type=kind))
