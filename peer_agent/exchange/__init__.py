"""Messages and heartbeats between peers: over RabbitMQ, or through S3 alone. The only import of pika."""

from __future__ import annotations

from contract.clock import Clock
from contract.keys import Places
from contract.store import ObjectStore
from peer_agent.exchange.null import NullExchange, S3Pulses
from peer_agent.exchange.rabbitmq import HEARTBEAT_SECONDS, PATIENCE_SECONDS, RabbitMqExchange
from peer_agent.ports import Exchange

__all__ = ["NullExchange", "RabbitMqExchange", "S3Pulses", "open_exchange"]


def open_exchange(
    broker_url: str,
    *,
    run: str,
    rank: int,
    peers: int,
    clock: Clock,
    store: ObjectStore | None = None,
    places: Places | None = None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Exchange:
    """The exchange of one peer: over the broker at `broker_url` (`amqp://` or `amqps://`), or none for an empty URL.

    `peers` is the number that the run began with; a peer that joins it later has a higher `rank`. `store` and `places`
    carry the heartbeats where there is no broker; without them there are none. `patience_seconds` is the longest that
    a call waits for the broker's word. Returns once the peer can send and receive. Raises BrokerUnavailable naming host
    and port.
    """
    if broker_url:
        return RabbitMqExchange(
            broker_url,
            run=run,
            rank=rank,
            peers=peers,
            clock=clock,
            patience_seconds=patience_seconds,
            heartbeat_seconds=heartbeat_seconds,
        )
    if store is None or places is None:
        return NullExchange(clock)
    pulses = S3Pulses(store, places, rank=rank, peers=peers, clock=clock, heartbeat_seconds=heartbeat_seconds)
    return NullExchange(clock, pulses)
