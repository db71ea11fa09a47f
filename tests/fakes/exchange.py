"""A broker in memory; passes the same contract tests as RabbitMQ (tests/fakes/exchange_contract.py).

Heartbeats need no thread here: whoever asks for them gets those that have come due by the clock since it last asked. So
they work with a clock that moves only when told to.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass, field

from contract.clock import Clock, SystemClock
from contract.errors import BrokerUnavailable, PermanentError
from contract.keys import Places
from contract.store import ObjectStore
from peer_agent.exchange.counts import Counts
from peer_agent.exchange.inboxes import INBOX_MESSAGES_PER_SENDER, MAX_MESSAGE_BYTES
from peer_agent.exchange.null import NullExchange, S3Pulses
from peer_agent.liveness import watched
from peer_agent.ports import Beat, Delivery, ExchangeCounts


@dataclass(frozen=True)
class _Stored:
    number: int
    sender: int
    kind: str
    body: bytes


@dataclass
class _Pulse:
    """What one exchange says, when it said so last, and how often it has."""

    body: bytes
    said_at: float
    number: int


@dataclass
class _Waiting:
    """A message that found the broker unreachable."""

    exchange: MemoryExchange
    kind: str
    body: bytes
    to: int | None
    bound: set[int] = field(default_factory=set)


class MemoryBroker:
    """The inboxes of one run. Thread-safe.

    While `reachable` is False messages wait, nothing arrives, and no peer can join. `silence` stops the heartbeats of a
    rank, as its death does; `revive` lets them go on.
    """

    def __init__(self, peers: int, clock: Clock | None = None, heartbeat_seconds: float = 1.0) -> None:
        self.changed = threading.Condition()
        self.clock: Clock = clock or SystemClock()
        self.heartbeat_seconds = heartbeat_seconds
        self.peers = peers
        self.inboxes: dict[int, deque[_Stored]] = {}
        """By rank, of the peers that have joined and not retired."""
        self.pulses: dict[MemoryExchange, _Pulse] = {}
        self.away_since: float | None = None
        self.up_since = self.clock.monotonic()
        self._bound: dict[int, set[int]] = {}
        self._silenced: set[int] = set()
        self._waiting: deque[_Waiting] = deque()
        self._numbers = itertools.count()

    @property
    def reachable(self) -> bool:
        return self.away_since is None

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        with self.changed:
            if reachable == self.reachable:
                return
            now = self.clock.monotonic()
            self.away_since, self.up_since = (None, now) if reachable else (now, self.up_since)
            while reachable and self._waiting:
                waiting = self._waiting.popleft()
                waiting.exchange.count(self._put(waiting), waiting.body)
            self.changed.notify_all()

    def join(self, rank: int) -> MemoryExchange:
        """The exchange of one peer; a successor of the same rank finds what its predecessor left unacknowledged."""
        if not self.reachable:
            raise BrokerUnavailable("RabbitMQ at memory:0 cannot be reached: it was told not to answer")
        with self.changed:
            most = INBOX_MESSAGES_PER_SENDER * max(self.peers - 1, 1)
            self.inboxes.setdefault(rank, deque(maxlen=most))
            self._bound.setdefault(rank, set()).update(range(self.peers))
        return MemoryExchange(self, rank)

    def admit(self, rank: int, newcomer: int) -> None:
        """Bind the inbox of `rank` to what `newcomer` says."""
        with self.changed:
            self._bound[rank].add(newcomer)

    def known(self, rank: int) -> set[int]:
        """The ranks that `rank` knows of."""
        return self._bound.get(rank, set()) | {rank}

    def put(self, exchange: MemoryExchange, kind: str, body: bytes, to: int | None) -> None:
        """Give a copy to every inbox that is bound to the sender's, or to one; later, while nobody can be reached."""
        with self.changed:
            waiting = _Waiting(exchange, kind, body, to)
            if self.reachable:
                exchange.count(self._put(waiting), body)
            else:
                self._waiting.append(waiting)

    def silence(self, rank: int) -> None:
        """No heartbeat of this rank from now on."""
        self._silenced.add(rank)

    def revive(self, rank: int) -> None:
        """It beats again."""
        self._silenced.discard(rank)

    def beat(self, exchange: MemoryExchange, body: bytes) -> None:
        """Say this from now on."""
        with self.changed:
            said = self.pulses.get(exchange)
            self.pulses[exchange] = _Pulse(body, self.clock.monotonic(), said.number + 1 if said else 1)

    def said(self) -> dict[MemoryExchange, _Pulse]:
        """What each says, and how often by now."""
        now = self.clock.monotonic()
        with self.changed:
            for exchange, pulse in self.pulses.items():
                if exchange.rank not in self._silenced:
                    due = int((now - pulse.said_at) / self.heartbeat_seconds)
                    pulse.said_at += due * self.heartbeat_seconds
                    pulse.number += due
            return dict(self.pulses)

    def _put(self, waiting: _Waiting) -> int:
        sender = waiting.exchange.rank
        for rank, inbox in self.inboxes.items():
            if rank != sender and sender in self._bound[rank] and waiting.to in (None, rank):
                inbox.append(_Stored(next(self._numbers), sender, waiting.kind, waiting.body))
        self.changed.notify_all()
        return 1 if waiting.to is not None else len(self.known(sender) - {sender})


class MemoryExchange:
    """One peer's place on a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, rank: int) -> None:
        self.counts: ExchangeCounts = Counts()
        self.rank = rank
        self._broker = broker
        self._delivered: set[int] = set()
        self._closed = False
        self._heard = {exchange: pulse.number for exchange, pulse in broker.said().items()}

    @property
    def away_seconds(self) -> float:
        since = self._broker.away_since
        return 0.0 if since is None else max(self._broker.clock.monotonic() - since, 1e-9)

    @property
    def up_since(self) -> float | None:
        return self._broker.up_since if self._broker.reachable else None

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        if len(body) > MAX_MESSAGE_BYTES:
            raise PermanentError(
                f"a {kind} message has {len(body):,} bytes, but {MAX_MESSAGE_BYTES:,} at most are taken"
            )
        if to == self.rank:
            raise ValueError(f"rank {to} does not write to itself")
        self._check()
        self._broker.put(self, kind, body, to)

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        self._check()
        with self._broker.changed:
            self._broker.changed.wait_for(self._waiting, max(timeout_seconds, 0.0))
            stored = self._waiting()
            self._delivered.update(message.number for message in stored)
        self.counts.messages_received += len(stored)
        self.counts.bytes_received += sum(len(message.body) for message in stored)
        return [Delivery(message.sender, message.kind, message.body, message.number) for message in stored]

    def acknowledge(self, delivery: Delivery) -> None:
        with self._broker.changed:
            inbox = self._broker.inboxes.get(self.rank, deque())
            for message in [message for message in inbox if message.number == delivery.token]:
                inbox.remove(message)

    def beat(self, body: bytes) -> None:
        if self._closed:
            return
        self._broker.beat(self, body)

    def beats(self) -> list[Beat]:
        """The latest of each; those in between are left out."""
        found: list[Beat] = []
        listened_to = {*watched(self.rank, self._broker.known(self.rank)), self.rank}
        for exchange, pulse in self._broker.said().items():
            news = pulse.number > self._heard.get(exchange, 0)
            self._heard[exchange] = pulse.number
            if news and exchange is not self and exchange.rank in listened_to and self._broker.reachable:
                found.append(Beat(exchange.rank, pulse.body, pulse.said_at))
        return found

    def admit(self, rank: int) -> None:
        self._broker.admit(self.rank, rank)

    def close(self, *, retire: bool = False) -> None:
        self._closed = True
        with self._broker.changed:
            self._broker.pulses.pop(self, None)
            if retire:
                self._broker.inboxes.pop(self.rank, None)

    def count(self, copies: int, body: bytes) -> None:
        """So many copies have gone."""
        self.counts.messages_sent += copies
        self.counts.bytes_sent += copies * len(body)

    def _waiting(self) -> list[_Stored]:
        if not self._broker.reachable:
            return []
        inbox = self._broker.inboxes.get(self.rank, ())
        return [message for message in inbox if message.number not in self._delivered]

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("RabbitMQ at memory:0 cannot be reached: this exchange is closed")


class SteppedNullExchange(NullExchange):
    """S3 alone without a thread: heartbeats are written and looked for when somebody asks, by a clock of any kind."""

    def __init__(
        self,
        clock: Clock,
        store: ObjectStore,
        places: Places,
        *,
        rank: int,
        peers: int,
        heartbeat_seconds: float = 1.0,
    ) -> None:
        self.stepped = S3Pulses(store, places, rank=rank, peers=peers, clock=clock, heartbeat_seconds=heartbeat_seconds)
        super().__init__(clock, self.stepped)

    def beat(self, body: bytes) -> None:
        super().beat(body)
        self.stepped.turn()

    def beats(self) -> list[Beat]:
        self.stepped.turn()
        return super().beats()

    def _begin(self) -> None:
        """No thread."""
