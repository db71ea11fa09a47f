"""One connection to RabbitMQ from the first packet to the last; belongs to the thread that made it.

pika's asynchronous adapter, turned by hand: `turn` serves the connection once and gives control back. So heartbeats
leave and arrive while a message waits for its confirmation, which the blocking adapter does not do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.channel import Channel
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from peer_agent.exchange.connecting import CONNECT_TIMEOUT_SECONDS, FAULTS, PRECONDITION_FAILED
from peer_agent.exchange.inboxes import TO_OTHERS, Inboxes, to_one

#: Deliveries on their way and not acknowledged: 64 frames of 256 KiB are 16 MiB at most.
PREFETCH = 64
#: A broker that does not answer our goodbye within this is left without one.
CLOSE_SECONDS = 5.0
#: The same for a connection that is given up anyway.
ABANDON_SECONDS = 1.0
#: pika closes its sockets some turns after it has said that they are.
_LAST_TURNS = 5

CONTENT_TYPES = {"frame": "application/octet-stream"}
TRANSIENT, PERSISTENT = 1, 2


@dataclass
class Message:
    """One message on its way out."""

    kind: str
    body: bytes
    to: int | None = None
    """The one rank that it is for; None for all others."""
    copies: int = 1
    """How many peers it goes to."""
    settled: bool = False
    """The broker has confirmed it, or refused it for good, or it had to make room for later ones."""
    refusal: str = ""
    """Why the broker refused it; empty unless it did."""


@dataclass(frozen=True)
class Token:
    """Names a delivery to the broker; the tag means something on the connection that brought it only."""

    connection: int
    tag: int


@dataclass(frozen=True)
class Received:
    """One message from the inbox."""

    sender: int | None
    """Rank of the peer whose exchange it came through, as the broker says; None for one that came another way."""
    kind: str
    body: bytes
    token: Token


@dataclass(frozen=True)
class Pulse:
    """One heartbeat."""

    sender: int | None
    body: bytes
    connection: str
    """Which connection of the sender's it came from, as the sender says."""


class InboxGone(Exception):
    """The broker cancelled our consumer: the queue was deleted, or its node left."""


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """What the owner is told, on its own thread."""

    received: Callable[[Received], None]
    pulse: Callable[[Pulse], None]
    settled: Callable[[str], None]
    """The one message that was under way has been confirmed (empty), or refused for good, with the broker's reason."""


class _Connection(SelectConnection):  # type: ignore[misc]  # pika's types are not known
    def hang_up(self) -> None:
        """Without a goodbye, and whether or not anybody is still there."""
        self._adapter_disconnect_stream()


class Session:
    """`connect`, `declare`, `consume`, then `turn` until the end; each raises what the connection ended with."""

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        handlers: Handlers,
        *,
        number: int,
        name: str,
        headers: Mapping[str, str | int],
        priority: int,
        stopping: Callable[[], bool],
    ) -> None:
        """`name` is this connection's own: own heartbeats are known by it when they come back. `headers` go with every
        message. Among several consumers of one inbox that with the highest `priority` gets the messages."""
        self.blocked = False
        """The broker takes nothing at the moment, being short of memory or disk."""
        self._parameters, self._handlers = parameters, handlers
        self._number, self._name, self._headers, self._priority = number, name, dict(headers), priority
        self._stopping = stopping
        self._fault: BaseException | None = None
        self._ending = False
        self._connection: Any = None
        self._receiving: Any = None
        self._publishing: Any = None
        self._inboxes: Inboxes | None = None
        self._loop = IOLoop()
        self._loop.activate_poller()

    def wake(self) -> None:
        """End the current turn; the one method for other threads."""
        self._loop.add_callback_threadsafe(_nothing)

    def later(self, seconds: float, call: Callable[[], None]) -> object:
        """Call back during a turn, once, after `seconds`, unless the end begins before; gives a handle for `cancel`."""
        return self._loop.call_later(seconds, lambda: None if self._ending else call())

    def cancel(self, timer: Any) -> None:
        """Do not call back."""
        self._loop.remove_timeout(timer)

    def turn(self) -> None:
        """Wait for something to happen, and handle it."""
        self._loop.poll()
        self._loop.process_timeouts()
        if self._fault is not None:
            raise self._fault

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Turn until `ready`; False when stopped first."""
        while not ready():
            if self._stopping():
                return False
            self.turn()
        return True

    def connect(self) -> bool:
        """Connect and open both channels; False when stopped meanwhile."""
        outcome: list[Any] = []
        _Connection.create_connection([self._parameters], outcome.append, self._loop)
        if not self.wait(lambda: bool(outcome)):
            # An attempt can be called off, but in the middle of its handshake pika fails at that.
            self._patiently(CONNECT_TIMEOUT_SECONDS, lambda: bool(outcome))
            if not outcome:
                return False
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        connection: _Connection = outcome[0]
        self._connection = connection
        connection.add_on_close_callback(lambda _, error: self._fail(error))
        connection.add_on_connection_blocked_callback(lambda *_: self._set_blocked(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._set_blocked(False))
        self._receiving, self._publishing = self._channel(self._fail), self._channel(self._refuse)
        if not self.wait(lambda: self._receiving.is_open and self._publishing.is_open):
            return False
        # One to publish what must be confirmed; heartbeats go out on the other.
        self._publishing.confirm_delivery(self._on_confirmed)
        self._receiving.add_on_cancel_callback(lambda _: self._fail(InboxGone("the broker took a queue away")))
        return True

    def declare(self, inboxes: Inboxes, done: Callable[[], None]) -> None:
        """Declare what `inboxes` has, and call `done` once all of it stands.

        Nothing waits for single answers; a refusal closes the channel and so ends the session.
        """
        channel, self._inboxes = self._receiving, inboxes
        for exchange in inboxes.senders:
            # Auto-delete: an exchange goes with the last queue that is bound to it, so runs leave nothing behind.
            channel.exchange_declare(exchange, "direct", durable=True, auto_delete=True)
        for exchange in inboxes.pulse_senders:
            channel.exchange_declare(exchange, "direct", durable=False, auto_delete=True)
        inbox, pulses = inboxes.inbox, inboxes.pulses
        channel.queue_declare(inbox.name, durable=True, arguments=dict(inbox.arguments))
        if not channel.consumer_tags:  # its arguments follow the number of senders at that time
            channel.queue_declare(
                pulses.name, durable=False, exclusive=True, auto_delete=True, arguments=dict(pulses.arguments)
            )
        for exchange, key in inboxes.bindings:
            channel.queue_bind(inbox.name, exchange, key)
        for exchange in inboxes.pulse_senders:
            channel.queue_bind(pulses.name, exchange, TO_OTHERS)
        channel.queue_declare(inbox.name, passive=True, callback=lambda _: done())

    def consume(self, done: Callable[[], None]) -> None:
        """Take what comes, after `declare` only; calls `done` once it does."""
        assert self._inboxes is not None
        self._receiving.basic_qos(prefetch_count=PREFETCH)
        self._receiving.basic_consume(
            self._inboxes.inbox.name,
            self._on_received,
            auto_ack=False,
            # A successor of this rank gets the messages, though the broker may not have noticed yet that its
            # predecessor is gone, or stands still.
            arguments={"x-priority": self._priority},
        )
        # A heartbeat has no effect that could be lost, and is worth nothing a second time: no acknowledgement, so that
        # neither prefetch nor a busy peer holds it up.
        self._receiving.basic_consume(
            self._inboxes.pulses.name, self._on_pulse, auto_ack=True, callback=lambda _: done()
        )

    def publish(self, message: Message) -> None:
        """Send a persistent message; `handlers.settled` follows. Only one may be under way."""
        assert self._inboxes is not None
        properties = BasicProperties(
            content_type=CONTENT_TYPES.get(message.kind, "application/json"),
            delivery_mode=PERSISTENT,
            type=message.kind,
            app_id="peerless",
            headers=self._headers,
        )
        key = TO_OTHERS if message.to is None else to_one(message.to)
        self._publishing.basic_publish(self._inboxes.own_exchange, key, message.body, properties)

    def beat(self, body: bytes) -> None:
        """Send a heartbeat, which may be lost."""
        assert self._inboxes is not None
        properties = BasicProperties(delivery_mode=TRANSIENT, type="beat", app_id="peerless", correlation_id=self._name)
        self._receiving.basic_publish(self._inboxes.own_pulse, TO_OTHERS, body, properties)

    def acknowledge(self, tag: int) -> None:
        """Let the broker forget a delivery of this connection."""
        self._receiving.basic_ack(tag)

    def leave(self, *, retire: bool) -> None:
        """Say goodbye; `retire` removes the inbox. The heartbeats' queue goes in any case."""
        self._ending = True
        if self._inboxes is not None:
            gone: list[Any] = []
            if retire:
                # Exchanges go with the last queue that is bound to them.
                self._receiving.queue_delete(self._inboxes.inbox.name, callback=lambda _: None)
            self._receiving.queue_delete(self._inboxes.pulses.name, callback=gone.append)
            self._patiently(CLOSE_SECONDS, lambda: bool(gone) or not self._receiving.is_open)
        self._close(CLOSE_SECONDS)

    def abandon(self) -> None:
        """Give everything back, whatever state the connection is in."""
        self._ending = True
        try:
            if self._connection is not None:
                with contextlib.suppress(*FAULTS):
                    self._close(ABANDON_SECONDS)
                    if not self._connection.is_closed:
                        self._connection.hang_up()
            for _ in range(_LAST_TURNS):
                self.wake()
                self._loop.poll()
                self._loop.process_timeouts()
        finally:
            self._loop.close()

    def _close(self, seconds: float) -> None:
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()
        self._patiently(seconds, lambda: self._connection.is_closed)

    def _patiently(self, seconds: float, done: Callable[[], bool]) -> None:
        """Turn until `done`, or the time is up."""
        late: list[bool] = []
        timer = self._loop.call_later(seconds, lambda: late.append(True))
        while not (done() or late):
            self._loop.poll()
            self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    def _channel(self, closed: Callable[[BaseException], None]) -> Channel:
        channel: Channel = self._connection.channel(on_open_callback=_nothing)
        channel.add_on_close_callback(lambda _, error: closed(error))
        return channel

    def _refuse(self, error: BaseException) -> None:
        """The publishing channel is closed."""
        if isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code == PRECONDITION_FAILED:
            self._handlers.settled(error.reply_text)  # the message is larger than this broker's own limit
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._fault = self._fault or error

    def _set_blocked(self, blocked: bool) -> None:
        self.blocked = blocked

    def _on_confirmed(self, _: Method[Any]) -> None:
        # A refusal too: an inbox is full, on a broker that then refuses (a cluster of Amazon MQ's does). Those that had
        # room have the message, and its owner finds in S3 what it missed: not a reason to hold the others up.
        self._handlers.settled("")

    def _on_received(self, _: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        assert self._inboxes is not None
        sender = self._inboxes.senders.get(method.exchange or "")
        token = Token(self._number, method.delivery_tag or 0)
        self._handlers.received(Received(sender, properties.type or "", body, token))

    def _on_pulse(self, _: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        assert self._inboxes is not None
        sender = self._inboxes.pulse_senders.get(method.exchange or "")
        self._handlers.pulse(Pulse(sender, body, properties.correlation_id or ""))


def _nothing(*_: object) -> None:
    """Being called is all that is wanted: it ends the wait for data."""
