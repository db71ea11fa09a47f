"""What a peer's account on the broker must not be able to do."""

from __future__ import annotations

from collections.abc import Callable

from pika.adapters.blocking_connection import BlockingChannel

from contract import keys
from peer_agent.exchange.inboxes import TO_OTHERS

ACCESS_REFUSED = 403
#: What peer 0's account must not do, with the names of a run.
ATTEMPTS: dict[str, Callable[[BlockingChannel, str], object]] = {
    "read": lambda channel, run: channel.basic_get(keys.inbox(run, 1)),
    "consume": lambda channel, run: next(channel.consume(keys.inbox(run, 1))),
    "purge": lambda channel, run: channel.queue_purge(keys.inbox(run, 1)),
    "delete": lambda channel, run: channel.queue_delete(keys.inbox(run, 1)),
    "declare": lambda channel, run: channel.queue_declare(keys.inbox(run, 2), durable=True),
    "bind": lambda channel, run: channel.queue_bind(keys.inbox(run, 1), keys.peer_exchange(run, 0), TO_OTHERS),
    "unbind": lambda channel, run: channel.queue_unbind(keys.inbox(run, 1), keys.peer_exchange(run, 0), TO_OTHERS),
    "publish as the other": lambda channel, run: channel.basic_publish(keys.peer_exchange(run, 1), TO_OTHERS, b"!"),
    "beat as the other": lambda channel, run: channel.basic_publish(keys.pulse_exchange(run, 1), TO_OTHERS, b"!"),
    "declare a queue for the other's heartbeats": lambda channel, run: channel.queue_declare(
        keys.pulses(run, 1, "c0ffee"), exclusive=True
    ),
    "publish into the inbox": lambda channel, run: channel.basic_publish("", keys.inbox(run, 1), b"!"),
    "publish into its own inbox": lambda channel, run: channel.basic_publish("", keys.inbox(run, 0), b"!"),
    "feed the other's exchange": lambda channel, run: channel.exchange_bind(
        keys.peer_exchange(run, 1), keys.peer_exchange(run, 0), TO_OTHERS
    ),
    "declare other queues": lambda channel, run: channel.queue_declare("anything"),
    "declare other exchanges": lambda channel, run: channel.exchange_declare("anything"),
}
