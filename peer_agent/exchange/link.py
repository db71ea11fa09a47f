"""What keeps a peer connected to RabbitMQ, on a thread of its own.

pika's connection belongs to one thread. So this thread does nothing but serve the connection: heartbeats come and go
while the peer computes, and whoever wants to send puts a message into a list and wakes the thread up. Any trouble, a
closed channel as much as a cut cable, is treated alike: connect again, declare everything again, and send again what
was not confirmed.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from contract.clock import Clock
from peer_agent.exchange.connecting import FAULTS, cause, connection_parameters, is_refusal
from peer_agent.exchange.inboxes import inboxes
from peer_agent.exchange.session import Handlers, InboxGone, Message, Pulse, Received, Session, Token

#: Waits between attempts: doubled from the first to the longest, and spread over the ranks by half as much again.
FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 0.6
STOP_TIMEOUT_SECONDS = 10.0
#: So long a link that is told to stop goes on sending what is left.
FLUSH_SECONDS = 2.0

#: Messages, and bytes of their bodies, that wait for a broker that is away. The newest are worth most.
WAITING_MESSAGES = 256
WAITING_BYTES = 67_108_864

#: A connection on which no own heartbeat has come back for so many of their intervals carries nothing at the moment,
ECHO_INTERVALS = 2.5
#: and one that goes on like that for so long, over so many heartbeats, is given up.
DEAF_SECONDS, DEAF_BEATS = 15.0, 5


class _Deaf(Exception):
    """Our own heartbeats do not come back."""


class Link(threading.Thread):
    """Keeps connection, queues and consumers up until stopped. Everything public may be called from any thread."""

    def __init__(
        self,
        url: str,
        *,
        run: str,
        rank: int,
        peers: int,
        clock: Clock,
        heartbeat_seconds: float,
        changed: threading.Condition,
        on_received: Callable[[Received], None],
        on_pulse: Callable[[Pulse], None],
        on_sent: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`changed` is notified whenever the link goes up or down, a message is settled, or an admission is done.

        The functions are called on this thread. Raises BrokerUnavailable for a URL that names no broker.
        """
        super().__init__(name=f"rabbitmq peer {rank}", daemon=True)
        self._parameters = connection_parameters(url)
        self._parameters.client_properties = {"connection_name": f"peerless {run} peer {rank}"}
        self._run_name, self._rank, self._peers = run, rank, peers
        self._clock, self._changed, self._every = clock, changed, heartbeat_seconds
        self._on_sent, self._on_lost = on_sent, on_lost
        self._on_pulse = on_pulse
        self._handlers = Handlers(received=on_received, pulse=self._hear, settled=self._settle)
        self._outgoing: deque[Message] = deque()
        self._under_way: Message | None = None
        self._acknowledged: deque[Token] = deque()
        self._session: Session | None = None
        self._number, self._name = 0, ""
        self._stopping = threading.Event()
        self._retire = False
        # Ranks that joined after the start, and with how many of them everything has been declared.
        self._later: tuple[int, ...] = ()
        self._declared: tuple[int, ...] | None = None
        self._beat: bytes | None = None
        self._beat_timer: Any = None
        self._beat_changed = False
        self._turned_at = clock.monotonic()
        self._unanswered, self._unanswered_since = 0, 0.0
        self._away_since: float | None = clock.monotonic()
        self._up_since = 0.0
        self.up = False
        self.refused = False
        """The broker has turned us down, or we have stopped: waiting will not help."""
        self.cause = "no answer"

    # ----------------------------------------------------------------------------------- for the threads of others

    @property
    def address(self) -> str:
        """host:port, without credentials."""
        return f"{self._parameters.host}:{self._parameters.port}"

    def seconds_away(self) -> float:
        """For how long nothing could have been heard; 0 while the link carries what it should.

        There is no connection; or own heartbeats have stopped coming back; or this thread, and with it most likely the
        whole process, has stood still, and has not yet read what has come since.
        """
        now = self._clock.monotonic()
        away = self._away_since
        if away is None and self._unanswered and self._late(self._unanswered_since, now):
            away = self._unanswered_since
        if away is None and self._beat is not None and self._late(self._turned_at, now):
            away = self._turned_at
        return 0.0 if away is None else max(now - away, 1e-9)

    def up_since(self) -> float | None:
        """Since when it has carried what it should, in monotonic seconds; None while it does not."""
        since = self._up_since
        return None if self.seconds_away() else since

    def send(self, message: Message) -> None:
        """Publish `message` as soon as possible, after those that came before; the oldest make room for it."""
        with self._changed:
            self._outgoing.append(message)
            while len(self._outgoing) > WAITING_MESSAGES or self._waiting_bytes() > WAITING_BYTES:
                oldest = next((m for m in self._outgoing if m is not self._under_way), message)
                if oldest is message:
                    break
                self._outgoing.remove(oldest)
                oldest.settled = True
            self._changed.notify_all()
        self._wake()

    def acknowledge(self, token: object) -> None:
        """Acknowledge a delivery; does not wait."""
        if not isinstance(token, Token):
            raise TypeError(f"{token!r} is no delivery of this exchange")
        self._acknowledged.append(token)
        self._wake()

    def beat(self, body: bytes) -> None:
        """Send this heartbeat now and from now on."""
        with self._changed:
            if self._beat is None:
                self._turned_at = self._clock.monotonic()
            self._beat, self._beat_changed = body, True
        self._wake()

    def admit(self, rank: int) -> tuple[int, ...]:
        """Hear `rank` too, which joined after the start; gives all such ranks, for `has_admitted`."""
        with self._changed:
            if rank not in range(self._peers) and rank != self._rank:
                self._later = tuple(sorted({*self._later, rank}))
            later = self._later
        self._wake()
        return later

    def has_admitted(self, later: tuple[int, ...]) -> bool:
        """Whether the bindings for these ranks stand."""
        return self._declared is not None and set(later) <= set(self._declared)

    @property
    def others(self) -> int:
        """How many peers a message to all others goes to."""
        return len({*range(self._peers), *self._later} - {self._rank})

    def stop(self, *, retire: bool) -> None:
        """Send and acknowledge what is left, and leave; `retire` removes the own inbox. Returns once gone."""
        self._retire = retire
        self._stopping.set()
        self._wake()
        if self.is_alive():
            self.join(STOP_TIMEOUT_SECONDS)

    def _wake(self) -> None:
        session = self._session
        if session is not None:
            session.wake()

    def _waiting_bytes(self) -> int:
        return sum(len(message.body) for message in self._outgoing)

    def _late(self, since: float, now: float) -> bool:
        return now - since > ECHO_INTERVALS * self._every

    # -------------------------------------------------------------------------------------------- the thread's own

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
            except (*FAULTS, InboxGone, _Deaf) as error:
                was_up = self._mark_down(error)
                # A broker that has once let us in and now does not may be in the middle of a restart.
                if self._number == 0 and is_refusal(error):
                    return
            else:
                return
            # Spread over the ranks, so that all peers of a run don't come back in the same instant.
            stagger = 1.0 + (self._rank % 16) / 32
            doubled = FIRST_WAIT_SECONDS if was_up else 2 * wait_seconds
            wait_seconds = min(max(doubled, FIRST_WAIT_SECONDS), LONGEST_WAIT_SECONDS) * stagger

    def _connect_and_serve(self) -> None:
        """Serve one connection until stopped. Raises what ends the connection."""
        self._name = secrets.token_hex(6)
        session = Session(
            self._parameters,
            self._handlers,
            number=self._number + 1,
            name=self._name,
            headers={"run": self._run_name, "rank": self._rank},
            priority=int(self._clock.now()),
            stopping=self._stopping.is_set,
        )
        try:
            self._session = session
            if not session.connect():
                return
            self._declare(session)
            consuming = threading.Event()
            session.consume(consuming.set)
            if not session.wait(consuming.is_set):
                return
            self._number += 1
            self._mark_up()
            self._serve(session)
            session.leave(retire=self._retire)
        finally:
            self.up, self._session, self._declared, self._under_way = False, None, None, None
            session.abandon()

    def _serve(self, session: Session) -> None:
        ends: float | None = None
        while True:
            self._acknowledge_all(session)
            if self._declared is not None and not self.has_admitted(self._later):
                self._declare(session)
            if self._under_way is None and self._outgoing and not session.blocked:
                self._publish_next(session)
            if self._beat_changed:
                self._send_beat(session)
            if self._stopping.is_set():
                now = self._clock.monotonic()
                if ends is None:
                    ends = now + FLUSH_SECONDS
                    session.later(FLUSH_SECONDS, lambda: None)
                if not self._outgoing or now >= ends:
                    return
            session.turn()

    def _declare(self, session: Session) -> None:
        later, self._declared = self._later, None

        def done() -> None:
            with self._changed:
                self._declared = later
                self._changed.notify_all()

        session.declare(inboxes(self._run_name, self._rank, self._peers, self._name, later), done)

    def _acknowledge_all(self, session: Session) -> None:
        while self._acknowledged:
            token = self._acknowledged.popleft()
            if token.connection == self._number:
                session.acknowledge(token.tag)

    def _publish_next(self, session: Session) -> None:
        """A message leaves the list once it is settled, so a lost connection loses none. One at a time: so the order
        holds across connections, and a refusal tells which one it is about."""
        with self._changed:
            self._under_way = self._outgoing[0]
        session.publish(self._under_way)

    def _settle(self, refusal: str) -> None:
        message = self._under_way
        if message is None:
            return
        if not refusal:
            self._on_sent(message)
        with self._changed:
            self._under_way = None
            self._outgoing.remove(message)
            message.settled, message.refusal = True, refusal
            self._changed.notify_all()

    def _send_beat(self, session: Session) -> None:
        """Send the heartbeat, and see to it that the next one follows."""
        with self._changed:
            body, self._beat_changed = self._beat, False
            now = self._clock.monotonic()
            if self._late(self._turned_at, now):
                self._up_since = now  # this process stood still; what was said meanwhile may be lost
            self._turned_at = now
        if self._beat_timer is not None:
            session.cancel(self._beat_timer)
        self._beat_timer = session.later(self._every, lambda: self._send_beat(session))
        if body is None or session.blocked or not self.others:
            return
        deaf = self._unanswered >= DEAF_BEATS and now - self._unanswered_since > DEAF_SECONDS
        if deaf:
            raise _Deaf(f"nothing comes back since {DEAF_SECONDS:g} s")
        if not self._unanswered:
            self._unanswered_since = now
        self._unanswered += 1
        session.beat(body)

    def _hear(self, pulse: Pulse) -> None:
        if pulse.sender != self._rank or pulse.connection != self._name:
            self._on_pulse(pulse)
            return
        now = self._clock.monotonic()
        if self._unanswered and self._late(self._unanswered_since, now):
            self._up_since = now
        self._unanswered = 0

    def _mark_up(self) -> None:
        with self._changed:
            self.up, self.cause = True, ""
            self._away_since, self._up_since = None, self._clock.monotonic()
            self._unanswered, self._turned_at = 0, self._up_since
            self._beat_timer, self._beat_changed = None, self._beat is not None
            self._changed.notify_all()

    def _mark_down(self, error: BaseException) -> bool:
        """Note why the connection went; whether there had been one."""
        with self._changed:
            was_up = self._away_since is None
            if was_up:
                # Nothing may have come through for a while already.
                self._away_since = self._clock.monotonic() - self.seconds_away()
            self.cause = cause(error)
            self._changed.notify_all()
        self._on_lost()
        return was_up
