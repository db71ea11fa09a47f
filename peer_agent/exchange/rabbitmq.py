"""The exchange over RabbitMQ: what peers call, from any thread. `link.py` owns the connection.

A message is never lost between `publish` and an inbox that stands: it is persistent and confirmed, and what was not
confirmed when a connection broke is published again on the next one. So messages may come twice, never half.
"""

from __future__ import annotations

import threading
from collections import deque

from contract.clock import Clock
from contract.errors import BrokerUnavailable, PermanentError
from peer_agent.exchange.counts import Counts
from peer_agent.exchange.inboxes import MAX_MESSAGE_BYTES, inboxes
from peer_agent.exchange.link import HEARTBEAT_SECONDS, Link, Message, Received
from peer_agent.ports import Delivery, ExchangeCounts


class RabbitMqExchange:
    """One peer's place on the broker. Thread-safe.

    The constructor returns once connection and inboxes are there, after at most `start_patience_seconds`. Later a lost
    connection is mended in the background; calls report it only when it lasts longer than `patience_seconds`, and work
    again as soon as the broker does. Raises BrokerUnavailable, which names host and port and never the credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        run: str,
        rank: int,
        peers: int,
        clock: Clock,
        patience_seconds: float = 60.0,
        start_patience_seconds: float = 15.0,
        heartbeat_seconds: int = HEARTBEAT_SECONDS,
    ) -> None:
        self.counts: ExchangeCounts = Counts()
        self._others = peers - 1
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._changed = threading.Condition()
        self._received: deque[Received] = deque()
        self._link = Link(
            url,
            inboxes(run, rank, peers),
            run=run,
            rank=rank,
            clock=clock,
            heartbeat_seconds=heartbeat_seconds,
            blocked_seconds=patience_seconds,
            changed=self._changed,
            on_received=self._take,
            on_lost=self._forget,
        )
        self._link.start()
        with self._changed:
            self._changed.wait_for(lambda: self._link.up or self._link.refused, start_patience_seconds)
            up, cause = self._link.up, self._link.cause
        if not up:
            self._link.stop(retire=False)
            raise BrokerUnavailable(f"RabbitMQ at {self._link.address} cannot be reached: {cause}")

    def publish(self, kind: str, body: bytes) -> None:
        """Put a persistent message into every other peer's inbox; returns once the broker has confirmed it.

        A peer that has no inbox yet is not reached: it looks in S3 once it has. Raises BrokerUnavailable when the
        confirmation takes longer than the patience, PermanentError for a body that is larger than Amazon MQ, or the
        broker at hand, takes.
        """
        if len(body) > MAX_MESSAGE_BYTES:
            raise PermanentError(
                f"a {kind} message has {len(body):,} bytes, but Amazon MQ takes {MAX_MESSAGE_BYTES:,} at most; "
                "larger frames travel through S3 (exchange.inline_bytes)"
            )
        if not self._others:
            return
        message = Message(kind, body)
        self._link.send(message)
        with self._changed:
            self._changed.wait_for(lambda: message.settled or self._link.refused, self._patience_seconds)
            settled = message.settled
            message.abandoned = not settled
        if not settled:
            raise self._unavailable(f"did not confirm a {kind} message")
        if message.refusal:
            raise PermanentError(f"RabbitMQ at {self._link.address} refused a {kind} message: {message.refusal}")
        self.counts.messages_sent += self._others
        self.counts.bytes_sent += self._others * len(body)

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        """What has arrived; waits for at least one message, up to the timeout.

        Raises BrokerUnavailable when nothing has, and the broker has been away for longer than the patience.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._received or self._link.refused, max(timeout_seconds, 0.0))
            received = list(self._received)
            self._received.clear()
            away = self._link.refused or self._link.seconds_away() > self._patience_seconds
        if away and not received:
            raise self._unavailable("cannot be reached")
        for message in received:
            self.counts.messages_received += 1
            self.counts.bytes_received += len(message.body)
        return [Delivery(message.sender, message.kind, message.body, message.token) for message in received]

    def acknowledge(self, delivery: Delivery) -> None:
        """Let the broker forget a message. One of an earlier connection is ignored: the broker delivers it again."""
        self._link.acknowledge(delivery.token)

    def close(self, *, retire: bool = False) -> None:
        """Leave the broker; unacknowledged messages stay in the inbox for a successor, until the inbox expires.

        `retire` says that the run has ended: this peer's inbox goes at once, and with the last inbox the exchanges.
        """
        self._link.stop(retire=retire)

    def _take(self, message: Received) -> None:
        with self._changed:
            self._received.append(message)
            self._changed.notify_all()

    def _forget(self) -> None:
        # The broker delivers again what an earlier connection had not acknowledged.
        with self._changed:
            self._received.clear()

    def _unavailable(self, what: str) -> BrokerUnavailable:
        within = "" if self._link.refused else f" within {self._patience_seconds:g} s"
        cause = f": {self._link.cause}" if self._link.cause else ""
        return BrokerUnavailable(f"RabbitMQ at {self._link.address} {what}{within}{cause}")
