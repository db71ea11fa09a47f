"""Messages between peers: RabbitMQ inboxes, or none where S3 alone carries the run. The only import of pika."""

from __future__ import annotations

from contract.clock import Clock
from peer_agent.exchange.null import NullExchange
from peer_agent.exchange.rabbitmq import RabbitMqExchange
from peer_agent.ports import Exchange

__all__ = ["NullExchange", "RabbitMqExchange", "open_exchange"]


def open_exchange(broker_url: str, *, run: str, rank: int, peers: int, clock: Clock) -> Exchange:
    """The exchange of one peer: over the broker at `broker_url` (`amqp://` or `amqps://`), or none for an empty URL.

    Returns once the peer can send and receive. Raises BrokerUnavailable naming host and port.
    """
    if not broker_url:
        return NullExchange(clock)
    return RabbitMqExchange(broker_url, run=run, rank=rank, peers=peers, clock=clock)
