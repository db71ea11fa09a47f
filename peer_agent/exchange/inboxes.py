"""Exchanges, queues and bindings of one peer, as values: what it declares before it claims its rank.

Each peer owns two exchanges and two queues: one pair for what must not be lost, its inbox bound to the exchange of
every peer but itself, and one for heartbeats. A peer touches nobody else's queues, because its account on the broker
may not. An exchange drops what no queue is bound for: whatever was published before a peer's inbox stood, that peer
finds in S3, where it looks once it holds its rank.
docs/decisions/0004-inbox-queues.md says why all of this is as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract import keys
from peer_agent.liveness import watched

#: Amazon MQ for RabbitMQ 4.2 refuses larger message bodies, in bytes; the local broker is set to the same limit.
MAX_MESSAGE_BYTES = 524_288

#: An inbox without a consumer goes after this: long enough for a peer to restart, and nothing stays on a shared broker.
INBOX_EXPIRES_MILLISECONDS = 600_000

#: A round brings about three messages per sender, so this is what an absent peer misses in some twenty rounds.
INBOX_MESSAGES_PER_SENDER = 64

#: Bound of the bodies in one inbox, in bytes: 256 frames that travel inline.
INBOX_BYTES = 67_108_864

#: A heartbeat that could not be delivered for so long says nothing any more.
PULSE_TTL_MILLISECONDS = 5_000

#: Undelivered heartbeats per sender; the newest win.
PULSES_PER_SENDER = 4

#: Routing key of every message to all others, and of every heartbeat.
TO_OTHERS = "others"

#: A key that nothing is published with. The own inbox is bound to the own exchange under it, so that the exchange,
#: which is auto-delete, always has a binding to lose: it stays as long as its owner's inbox, and never for good.
ANCHOR = "anchor"

Argument = str | int


def to_one(rank: int) -> str:
    """Routing key of a message to one rank alone."""
    return f"rank.{rank}"


@dataclass(frozen=True)
class Queue:
    """A queue and its arguments, which must be the same whenever it is declared."""

    name: str
    arguments: Mapping[str, Argument]


@dataclass(frozen=True)
class Inboxes:
    """What one peer declares, in this order: exchanges (direct, auto-delete), its queues, and their bindings."""

    own_exchange: str
    own_pulse: str
    inbox: Queue
    """Durable."""
    pulses: Queue
    """Transient, exclusive to one connection, auto-delete."""
    senders: Mapping[str, int]
    """Rank by exchange (durable), of all peers. Only its owner can publish to an exchange, so this tells who sent."""
    bindings: tuple[tuple[str, str], ...]
    """(exchange, routing key) pairs to which the inbox is bound."""
    pulse_senders: Mapping[str, int]
    """Rank by exchange (transient) for heartbeats, of those that this peer watches, and its own: hearing its own
    heartbeats come back is how it knows that its connection carries any."""


def inboxes(run: str, rank: int, peers: int, connection: str = "0", later: Iterable[int] = ()) -> Inboxes:
    """What peer `rank` of a run that began with `peers` declares on `connection`, a name of its own.

    Its own queues, and every exchange that they are bound to, as those must exist. `later` are the ranks that joined
    after the start, as far as they are known. A peer alone has nobody to write to and declares no exchange.
    """
    ranks = sorted({*range(peers), *later, rank})
    together = len(ranks) > 1
    senders = {keys.peer_exchange(run, peer): peer for peer in ranks} if together else {}
    heard = (*watched(rank, ranks), rank) if together else ()
    bindings: list[tuple[str, str]] = []
    for exchange, sender in senders.items():
        bindings += [(exchange, key) for key in ([ANCHOR] if sender == rank else [TO_OTHERS, to_one(rank)])]
    return Inboxes(
        own_exchange=keys.peer_exchange(run, rank),
        own_pulse=keys.pulse_exchange(run, rank),
        inbox=Queue(keys.inbox(run, rank), _inbox_arguments(peers)),
        pulses=Queue(keys.pulses(run, rank, connection), _pulse_arguments(len(heard))),
        senders=senders,
        bindings=tuple(bindings),
        pulse_senders={keys.pulse_exchange(run, peer): peer for peer in sorted(heard)},
    )


def _inbox_arguments(peers: int) -> dict[str, Argument]:
    """By the number of peers at the start alone, so that they stay the same when others join."""
    return {
        "x-queue-type": "classic",
        "x-max-length": INBOX_MESSAGES_PER_SENDER * max(peers - 1, 1),
        "x-max-length-bytes": INBOX_BYTES,
        # The oldest goes first: a peer that is away must not stop the others, and what it missed lies in S3.
        "x-overflow": "drop-head",
        "x-expires": INBOX_EXPIRES_MILLISECONDS,
    }


def _pulse_arguments(senders: int) -> dict[str, Argument]:
    return {
        "x-queue-type": "classic",
        "x-max-length": PULSES_PER_SENDER * max(senders, 1),
        "x-overflow": "drop-head",
        "x-message-ttl": PULSE_TTL_MILLISECONDS,
    }
