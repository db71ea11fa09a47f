"""Exchanges, queues and bindings of a run, as values: what every peer declares before it publishes its first message.

Each peer owns a fan-out exchange and an inbox; inbox i is bound to the exchange of every peer but i. A fan-out exchange
drops what no queue is bound for, so a peer that comes first declares the inboxes of those that are still to come.
docs/decisions/0004-inbox-queues.md says why the queues are as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contract import keys

#: Amazon MQ for RabbitMQ 4.2 refuses larger message bodies, in bytes; the local broker is set to the same limit.
MAX_MESSAGE_BYTES = 524_288

#: An inbox without a consumer goes after this: long enough for a peer to restart, and nothing stays on a shared broker.
INBOX_EXPIRES_MILLISECONDS = 600_000

#: A round brings about three messages per sender, so this is what an absent peer misses in some twenty rounds.
INBOX_MESSAGES_PER_SENDER = 64

#: Bound of the bodies in one inbox, in bytes: 256 frames that travel inline.
INBOX_BYTES = 67_108_864

Argument = str | int


@dataclass(frozen=True)
class Queue:
    """A durable queue and its arguments, which must be the same whoever declares it."""

    name: str
    arguments: Mapping[str, Argument]


@dataclass(frozen=True)
class Inboxes:
    """What one peer declares, in this order: exchanges (fan-out, durable, auto-delete), queues, bindings."""

    own_exchange: str
    own_inbox: str
    exchanges: tuple[str, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[tuple[str, str], ...]
    """(queue, exchange) pairs."""


def inboxes(run: str, rank: int, peers: int) -> Inboxes:
    """What peer `rank` of `peers` declares: everything that it publishes to and everything that it receives from.

    A peer alone has nobody to write to, and an exchange without bindings would never go away, so it declares none.
    """
    others = [other for other in range(peers) if other != rank]
    own_exchange, own_inbox = keys.peer_exchange(run, rank), keys.inbox(run, rank)
    arguments = _inbox_arguments(peers)
    outgoing = [(keys.inbox(run, other), own_exchange) for other in others]
    incoming = [(own_inbox, keys.peer_exchange(run, other)) for other in others]
    return Inboxes(
        own_exchange=own_exchange,
        own_inbox=own_inbox,
        exchanges=tuple(keys.peer_exchange(run, peer) for peer in range(peers)) if others else (),
        queues=tuple(Queue(keys.inbox(run, peer), arguments) for peer in range(peers)),
        bindings=tuple(outgoing + incoming),
    )


def _inbox_arguments(peers: int) -> dict[str, Argument]:
    return {
        "x-queue-type": "classic",
        "x-max-length": INBOX_MESSAGES_PER_SENDER * max(peers - 1, 1),
        "x-max-length-bytes": INBOX_BYTES,
        # The oldest goes first: a peer that is away must not stop the others, and what it missed lies in S3.
        "x-overflow": "drop-head",
        "x-expires": INBOX_EXPIRES_MILLISECONDS,
    }
