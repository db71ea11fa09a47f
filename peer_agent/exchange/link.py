"""The one connection of a peer to RabbitMQ, on a thread of its own.

pika's connection belongs to one thread; only `add_callback_threadsafe` may be called from others. So this thread does
nothing but serve the connection: heartbeats go on while the peer computes, and whoever wants to send puts a message
into a list and wakes the thread up. Any trouble, a closed channel as much as a cut cable, is treated alike: connect
again, declare everything again, and send again what was not confirmed.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

from contract.clock import Clock
from contract.errors import BrokerUnavailable
from peer_agent.exchange.inboxes import TO_OTHERS, Inboxes

#: Amazon MQ's minimum; a connection that says nothing for twice as long is taken for dead.
HEARTBEAT_SECONDS = 60
#: Deliveries on their way and not acknowledged: 64 frames of 256 KiB are 16 MiB at most.
PREFETCH = 64
CONNECT_TIMEOUT_SECONDS = 10.0
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0
STOP_TIMEOUT_SECONDS = 10.0
#: How long the thread may sleep without being woken; a safety net, since every request wakes it.
IDLE_SECONDS = 5.0

CONTENT_TYPES = {"frame": "application/octet-stream"}
PERSISTENT = 2
PRECONDITION_FAILED = 406
#: Replies that the same request meets every time: access refused, inequivalent arguments, not allowed.
REFUSALS = frozenset({403, PRECONDITION_FAILED, 530})

# pika logs every lost connection with its traceback; what matters of it is in our own errors.
logging.getLogger("pika").setLevel(logging.CRITICAL)


@dataclass
class Message:
    """One message on its way out."""

    kind: str
    body: bytes
    settled: bool = False
    """The broker has confirmed it, or refused it for good."""
    refusal: str = ""
    """Why the broker refused it; empty unless it did."""
    abandoned: bool = False
    """Its sender has given up waiting; it needs no further attempt."""


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


class _InboxGone(Exception):
    """The broker cancelled our consumer: the inbox was deleted, or its node left."""


class Link(threading.Thread):
    """Keeps connection, inboxes and consumer up until stopped. Everything public may be called from any thread."""

    def __init__(
        self,
        url: str,
        inboxes: Inboxes,
        *,
        run: str,
        rank: int,
        clock: Clock,
        heartbeat_seconds: int,
        blocked_seconds: float,
        changed: threading.Condition,
        on_received: Callable[[Received], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`changed` is notified whenever the link goes up or down and whenever a message is settled.

        `on_received` and `on_lost` are called on this thread. Raises BrokerUnavailable for a URL that names no broker.
        """
        super().__init__(name=f"rabbitmq peer {rank}", daemon=True)
        self._parameters = connection_parameters(url)
        self._parameters.heartbeat = heartbeat_seconds
        self._parameters.blocked_connection_timeout = blocked_seconds
        self._parameters.client_properties = {"connection_name": f"peerless {run} peer {rank}"}
        self._inboxes, self._run_name, self._rank = inboxes, run, rank
        self._clock, self._changed = clock, changed
        self._on_received, self._on_lost = on_received, on_lost
        self._outgoing: deque[Message] = deque()
        self._acknowledged: deque[Token] = deque()
        self._connection: BlockingConnection | None = None
        self._number = 0
        self._away_since: float | None = clock.monotonic()
        self._stopping = threading.Event()
        self._retire = False
        self.up = False
        self.refused = False
        """The broker has turned us down, or we have stopped: waiting will not help."""
        self.cause = "no answer"

    @property
    def address(self) -> str:
        """host:port, without credentials."""
        return f"{self._parameters.host}:{self._parameters.port}"

    def seconds_away(self) -> float:
        """For how long there has been no connection; 0 while there is one."""
        since = self._away_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def send(self, message: Message) -> None:
        """Publish `message` as soon as possible, after those that came before."""
        self._outgoing.append(message)
        self._wake()

    def acknowledge(self, token: object) -> None:
        """Acknowledge a delivery; does not wait."""
        if not isinstance(token, Token):
            raise TypeError(f"{token!r} is no delivery of this exchange")
        self._acknowledged.append(token)
        self._wake()

    def stop(self, *, retire: bool) -> None:
        """Acknowledge what is to be acknowledged and leave; `retire` removes the own inbox. Returns once gone."""
        self._retire = retire
        self._stopping.set()
        self._wake()
        if self.is_alive():
            self.join(STOP_TIMEOUT_SECONDS)

    def run(self) -> None:
        """The thread: connect, serve, and after every loss connect again."""
        try:
            self._keep_up()
        finally:  # also for an error of our own, which threading reports: nobody may wait for a thread that is gone
            with self._changed:
                self.refused = True
                if self._stopping.is_set():
                    self.cause = "this exchange is closed"
                self._changed.notify_all()

    def _keep_up(self) -> None:
        """Returns when stopped, or when the broker turns us down."""
        wait_seconds = 0.0
        while not self._stopping.wait(wait_seconds):
            try:
                self._connect_and_serve()
            except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, _InboxGone) as error:
                was_up = self._mark_down(error)
                # A broker that has once let us in and now does not may be in the middle of a restart.
                if self._number == 0 and _is_refusal(error):
                    return
            else:
                return
            # Spread over the ranks, so that all peers of a run don't come back in the same instant.
            stagger = 1.0 + (self._rank % 16) / 32
            doubled = FIRST_WAIT_SECONDS if was_up else max(2 * wait_seconds, FIRST_WAIT_SECONDS)
            wait_seconds = min(doubled * stagger, LONGEST_WAIT_SECONDS)

    def _connect_and_serve(self) -> None:
        """Serve one connection until stopped. Raises what ends the connection."""
        connection = BlockingConnection(self._parameters)
        try:
            incoming, outgoing = self._open(connection)
            with self._changed:
                self._connection, self.up, self._away_since, self.cause = connection, True, None, ""
                self._changed.notify_all()
            while not self._stopping.is_set():
                self._acknowledge_all(incoming)
                self._publish_all(outgoing)
                connection.process_data_events(IDLE_SECONDS)
                if not incoming.consumer_tags and not self._stopping.is_set():
                    raise _InboxGone(f"the queue {self._inboxes.inbox.name} was deleted")
            self._acknowledge_all(incoming)
            if self._retire:
                # Exchanges go with the last inbox that is bound to them.
                outgoing.queue_delete(self._inboxes.inbox.name)
        finally:
            self.up, self._connection = False, None
            if connection.is_open:
                connection.close()

    def _open(self, connection: BlockingConnection) -> tuple[BlockingChannel, BlockingChannel]:
        """Declare everything and start consuming; a channel to receive on and one to publish on."""
        outgoing = connection.channel()
        inbox, senders = self._inboxes.inbox, self._inboxes.senders
        for exchange in senders:
            # Auto-delete: an exchange goes with the last inbox that is bound to it, so runs leave nothing behind.
            outgoing.exchange_declare(exchange, "direct", durable=True, auto_delete=True)
        outgoing.queue_declare(inbox.name, durable=True, arguments=dict(inbox.arguments))
        for exchange, key in self._inboxes.bindings:
            outgoing.queue_bind(inbox.name, exchange, key)
        outgoing.confirm_delivery()
        incoming = connection.channel()
        incoming.basic_qos(prefetch_count=PREFETCH)
        number = self._number + 1

        def receive(_: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
            token = Token(number, method.delivery_tag or 0)
            self._on_received(Received(senders.get(method.exchange or ""), properties.type or "", body, token))

        incoming.basic_consume(inbox.name, receive, auto_ack=False)
        self._number = number
        return incoming, outgoing

    def _acknowledge_all(self, channel: BlockingChannel) -> None:
        while self._acknowledged:
            token = self._acknowledged.popleft()
            if token.connection == self._number:
                channel.basic_ack(token.tag)

    def _publish_all(self, channel: BlockingChannel) -> None:
        """Publish in order. A message leaves the list once it is settled, so a lost connection loses none."""
        while self._outgoing:
            message = self._outgoing[0]
            try:
                if not message.abandoned:
                    self._publish(channel, message)
            except pika.exceptions.NackError:
                # An inbox is full, on a broker that then refuses (a cluster of Amazon MQ's does). Those that had room
                # have the message, and its owner finds in S3 what it missed: not a reason to hold the others up.
                pass
            except pika.exceptions.ChannelClosedByBroker as error:
                if error.reply_code == PRECONDITION_FAILED:  # larger than this broker's own limit
                    self._settle(message, refusal=error.reply_text)
                raise
            self._settle(message)

    def _publish(self, channel: BlockingChannel, message: Message) -> None:
        """Returns once the broker has confirmed the message, for all inboxes that are bound; that can be none yet."""
        properties = BasicProperties(
            content_type=CONTENT_TYPES.get(message.kind, "application/json"),
            delivery_mode=PERSISTENT,
            type=message.kind,
            app_id="peerless",
            headers={"run": self._run_name, "rank": self._rank},
        )
        channel.basic_publish(self._inboxes.own_exchange, TO_OTHERS, message.body, properties)

    def _settle(self, message: Message, refusal: str = "") -> None:
        with self._changed:
            self._outgoing.popleft()
            message.settled, message.refusal = True, refusal
            self._changed.notify_all()

    def _mark_down(self, error: BaseException) -> bool:
        """Note why the connection went; whether there had been one."""
        with self._changed:
            was_up = self._away_since is None
            if was_up:
                self._away_since = self._clock.monotonic()
            self.cause = _cause(error)
            self._changed.notify_all()
        self._on_lost()
        return was_up

    def _wake(self) -> None:
        connection = self._connection
        if connection is not None:
            try:
                connection.add_callback_threadsafe(_nothing)
            except pika.exceptions.ConnectionWrongStateError:
                return  # it has just gone; the next connection looks into the lists first


def _nothing() -> None:
    """Being called is all that is wanted: it ends the wait for data."""


def connection_parameters(url: str) -> pika.ConnectionParameters:
    """Server, account and virtual host of `url`; everything else is our own choice, whatever its query says.

    Certificates are verified against the system's authorities, or those in the file that SSL_CERT_FILE names. Raises
    BrokerUnavailable for a URL that names no server.
    """
    try:
        parameters = pika.URLParameters(urlsplit(url)._replace(query="", fragment="").geturl())
    except (ValueError, TypeError) as error:
        # pika's own message may quote the URL, and with it the password.
        raise BrokerUnavailable("PEERLESS_BROKER_URL is not of the form amqps://user:password@host:port") from error
    parameters.socket_timeout = CONNECT_TIMEOUT_SECONDS
    parameters.stack_timeout = 1.5 * CONNECT_TIMEOUT_SECONDS
    parameters.connection_attempts = 1
    if parameters.ssl_options is not None:
        parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(), parameters.host)
    return parameters


def _is_refusal(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.ProbableAccessDeniedError):
        return True
    closed = pika.exceptions.ConnectionClosedByBroker, pika.exceptions.ChannelClosedByBroker
    if isinstance(error, closed):
        return error.reply_code in REFUSALS
    return isinstance(_innermost(error), ssl.SSLCertVerificationError)


def _cause(error: BaseException) -> str:
    """One clause for the reader."""
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return "it refused user name or password"
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"it said {error.reply_code} {error.reply_text}"
    error = _innermost(error)
    if isinstance(error, ssl.SSLError):
        return f"the TLS connection failed ({error.reason or error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _innermost(error: BaseException) -> BaseException:
    """pika wraps the socket's own error once or twice, as `exception` or as the first argument."""
    while isinstance(error, pika.exceptions.AMQPConnectionError | AMQPConnectorException):
        inner = getattr(error, "exception", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
