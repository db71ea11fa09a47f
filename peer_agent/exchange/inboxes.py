"""Exchanges, queue and bindings of one peer, as values: what it declares before it claims its rank.

Each peer owns an exchange and an inbox; inbox i is bound to the exchange of every peer but i. A peer touches nobody
else's inbox, because its account on the broker may not. An exchange drops what no queue is bound for: whatever was
published before a peer's inbox stood, that peer finds in S3, where it looks once it holds its rank.
docs/decisions/0004-inbox-queues.md says why all of this is as it is.
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

#: Routing key of every message.
TO_OTHERS = "others"

#: A key that nothing is published with. The own inbox is bound to the own exchange under it, so that the exchange,
#: which is auto-delete, always has a binding to lose: it stays as long as its owner's inbox, and never for good.
ANCHOR = "anchor"

Argument = str | int


@dataclass(frozen=True)
class Queue:
    """A durable queue and its arguments, which must be the same whenever it is declared."""

    name: str
    arguments: Mapping[str, Argument]


@dataclass(frozen=True)
class Inboxes:
    """What one peer declares, in this order: exchanges (direct, durable, auto-delete), its inbox, and the bindings."""

    own_exchange: str
    inbox: Queue
    senders: Mapping[str, int]
    """Rank by exchange, of all peers. Only its owner can publish to an exchange, so this tells who sent a message."""
    bindings: tuple[tuple[str, str], ...]
    """(exchange, routing key) pairs to which the inbox is bound."""


def inboxes(run: str, rank: int, peers: int) -> Inboxes:
    """What peer `rank` of `peers` declares: its own inbox, and every exchange, as it must exist to be bound to.

    A peer alone has nobody to write to and declares no exchange.
    """
    senders = {keys.peer_exchange(run, peer): peer for peer in range(peers)} if peers > 1 else {}
    return Inboxes(
        own_exchange=keys.peer_exchange(run, rank),
        inbox=Queue(keys.inbox(run, rank), _inbox_arguments(peers)),
        senders=senders,
        bindings=tuple((exchange, ANCHOR if sender == rank else TO_OTHERS) for exchange, sender in senders.items()),
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
