"""The exchange over RabbitMQ: what peers call, from any thread. `link.py` keeps the connection.

A message is never lost between `publish` and an inbox that stands: it is persistent and confirmed, and what was not
confirmed when a connection broke is published again on the next one. So messages may come twice, never half. While the
broker is away they wait, the newest of them; a peer that must not wait finds in S3 what they announce.
"""

from __future__ import annotations

import threading
from collections import deque

from contract.clock import Clock
from contract.errors import BrokerUnavailable, PermanentError
from peer_agent.exchange.counts import Counts
from peer_agent.exchange.inboxes import MAX_MESSAGE_BYTES
from peer_agent.exchange.link import Link
from peer_agent.exchange.session import Message, Pulse, Received
from peer_agent.ports import Beat, Delivery, ExchangeCounts

#: How long a call waits for the broker's word before it goes on without.
PATIENCE_SECONDS = 3.0
HEARTBEAT_SECONDS = 1.0
#: Heartbeats that nobody has asked for yet; the newest win.
MOST_BEATS = 4_096


class RabbitMqExchange:
    """One peer's place on the broker. Thread-safe.

    The constructor returns once connection and queues are there, after at most `start_patience_seconds`. Later a lost
    connection is mended in the background for as long as it takes; `away_seconds` tells, and no call waits for it.
    Raises BrokerUnavailable, which names host and port and never the credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        run: str,
        rank: int,
        peers: int,
        clock: Clock,
        patience_seconds: float = PATIENCE_SECONDS,
        start_patience_seconds: float = 15.0,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.counts: ExchangeCounts = Counts()
        self._rank, self._clock = rank, clock
        self._patience_seconds = patience_seconds
        self._changed = threading.Condition()
        self._received: deque[Received] = deque()
        self._beats: deque[Beat] = deque(maxlen=MOST_BEATS)
        self._link = Link(
            url,
            run=run,
            rank=rank,
            peers=peers,
            clock=clock,
            heartbeat_seconds=heartbeat_seconds,
            changed=self._changed,
            on_received=self._take,
            on_pulse=self._hear,
            on_sent=self._count,
            on_lost=self._forget,
        )
        self._link.start()
        with self._changed:
            self._changed.wait_for(lambda: self._link.up or self._link.refused, start_patience_seconds)
            up, cause = self._link.up, self._link.cause
        if not up:
            self._link.stop(retire=False)
            raise BrokerUnavailable(f"RabbitMQ at {self._link.address} cannot be reached: {cause}")

    @property
    def away_seconds(self) -> float:
        """How long nothing can have been heard; 0 while messages and heartbeats come through."""
        return self._link.seconds_away()

    @property
    def up_since(self) -> float | None:
        """Since when they have come through, in monotonic seconds; None while they do not."""
        return self._link.up_since()

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        """Put a persistent message into the inbox of every other peer, or of rank `to` alone.

        Returns once the broker has confirmed it; without its word after the patience, and at once while there is no
        connection. Then the message waits and is sent in its turn, unless 256 later ones, or 64 MiB of them, have taken
        its place. A peer that has no inbox yet is not reached: it looks in S3 once it has. Raises BrokerUnavailable
        once closed, PermanentError for a body that is larger than Amazon MQ, or the broker at hand, takes.
        """
        if len(body) > MAX_MESSAGE_BYTES:
            raise PermanentError(
                f"a {kind} message has {len(body):,} bytes, but Amazon MQ takes {MAX_MESSAGE_BYTES:,} at most; "
                "larger frames travel through S3 (exchange.inline_bytes)"
            )
        if to == self._rank:
            raise ValueError(f"rank {to} does not write to itself")
        if not self._link.others:
            return
        message = Message(kind, body, to, 1 if to is not None else self._link.others)
        self._link.send(message)
        with self._changed:
            self._changed.wait_for(
                lambda: message.settled or self._link.refused or not self._link.up, self._patience_seconds
            )
            closed = self._link.refused and not message.settled
        if closed:
            raise self._unavailable()
        if message.refusal:
            raise PermanentError(f"RabbitMQ at {self._link.address} refused a {kind} message: {message.refusal}")

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        """What has arrived; waits for at least one message, up to the timeout. Nothing does while the broker is away.

        Raises BrokerUnavailable once closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._received or self._link.refused, max(timeout_seconds, 0.0))
            received = list(self._received)
            self._received.clear()
            closed = self._link.refused
        if closed and not received:
            raise self._unavailable()
        for message in received:
            self.counts.messages_received += 1
            self.counts.bytes_received += len(message.body)
        return [Delivery(message.sender, message.kind, message.body, message.token) for message in received]

    def acknowledge(self, delivery: Delivery) -> None:
        """Let the broker forget a message. One of an earlier connection is ignored: the broker delivers it again."""
        self._link.acknowledge(delivery.token)

    def beat(self, body: bytes) -> None:
        """Send this heartbeat now, and every `heartbeat_seconds` until the next call or `close`, by the link's own
        thread. Those sent while the broker is away are lost."""
        self._link.beat(body)

    def beats(self) -> list[Beat]:
        """What has arrived since the last call, the newest 4,096. One of this very rank is another process's, which
        holds the rank too."""
        with self._changed:
            beats = list(self._beats)
            self._beats.clear()
        return beats

    def admit(self, rank: int) -> None:
        """Hear a peer that joined after the start; waits for the bindings as `publish` does for a confirmation."""
        later = self._link.admit(rank)
        with self._changed:
            self._changed.wait_for(
                lambda: self._link.has_admitted(later) or self._link.refused or not self._link.up,
                self._patience_seconds,
            )

    def close(self, *, retire: bool = False) -> None:
        """Leave the broker; unacknowledged messages stay in the inbox for a successor, until the inbox expires.

        `retire` says that the run has ended: this peer's inbox goes at once, and with the last inbox the exchanges.
        """
        self._link.stop(retire=retire)

    def _take(self, message: Received) -> None:
        with self._changed:
            self._received.append(message)
            self._changed.notify_all()

    def _hear(self, pulse: Pulse) -> None:
        beat = Beat(pulse.sender, pulse.body, self._clock.monotonic())
        with self._changed:
            self._beats.append(beat)

    def _count(self, message: Message) -> None:
        self.counts.messages_sent += message.copies
        self.counts.bytes_sent += message.copies * len(message.body)

    def _forget(self) -> None:
        # The broker delivers again what an earlier connection had not acknowledged.
        with self._changed:
            self._received.clear()

    def _unavailable(self) -> BrokerUnavailable:
        cause = f": {self._link.cause}" if self._link.cause else ""
        return BrokerUnavailable(f"RabbitMQ at {self._link.address} cannot be reached{cause}")
