"""A broker in memory; passes the same contract tests as RabbitMQ (tests/fakes/exchange_contract.py)."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass

from contract.errors import BrokerUnavailable, PermanentError
from peer_agent.exchange.counts import Counts
from peer_agent.exchange.inboxes import INBOX_MESSAGES_PER_SENDER, MAX_MESSAGE_BYTES
from peer_agent.ports import Delivery, ExchangeCounts


@dataclass(frozen=True)
class _Stored:
    number: int
    sender: int
    kind: str
    body: bytes


class MemoryBroker:
    """The inboxes of one run. Thread-safe. While `reachable` is False everything raises BrokerUnavailable."""

    def __init__(self, peers: int) -> None:
        self.reachable = True
        self.changed = threading.Condition()
        self.inboxes: dict[int, deque[_Stored]] = {}
        """By rank, of the peers that have joined and not retired."""
        self._most = INBOX_MESSAGES_PER_SENDER * max(peers - 1, 1)
        self._others = peers - 1
        self._numbers = itertools.count()

    def join(self, rank: int) -> MemoryExchange:
        """The exchange of one peer; a successor of the same rank finds what its predecessor left unacknowledged."""
        self.check()
        with self.changed:
            self.inboxes.setdefault(rank, deque(maxlen=self._most))
        return MemoryExchange(self, rank)

    def check(self) -> None:
        if not self.reachable:
            raise BrokerUnavailable("RabbitMQ at memory:0 cannot be reached: it was told not to answer")

    def put(self, sender: int, kind: str, body: bytes) -> int:
        """Give a copy to every inbox but the sender's; to how many peers it was sent, which may have none yet."""
        with self.changed:
            for inbox in [inbox for rank, inbox in self.inboxes.items() if rank != sender]:
                inbox.append(_Stored(next(self._numbers), sender, kind, body))
            self.changed.notify_all()
        return self._others


class MemoryExchange:
    """One peer's place on a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, rank: int) -> None:
        self.counts: ExchangeCounts = Counts()
        self._broker, self._rank = broker, rank
        self._delivered: set[int] = set()
        self._closed = False

    def publish(self, kind: str, body: bytes) -> None:
        if len(body) > MAX_MESSAGE_BYTES:
            raise PermanentError(
                f"a {kind} message has {len(body):,} bytes, but {MAX_MESSAGE_BYTES:,} at most are taken"
            )
        self._check()
        copies = self._broker.put(self._rank, kind, body)
        self.counts.messages_sent += copies
        self.counts.bytes_sent += copies * len(body)

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
            inbox = self._broker.inboxes.get(self._rank, deque())
            for message in [message for message in inbox if message.number == delivery.token]:
                inbox.remove(message)

    def close(self, *, retire: bool = False) -> None:
        self._closed = True
        if retire:
            with self._broker.changed:
                self._broker.inboxes.pop(self._rank, None)

    def _waiting(self) -> list[_Stored]:
        inbox = self._broker.inboxes.get(self._rank, ())
        return [message for message in inbox if message.number not in self._delivered]

    def _check(self) -> None:
        self._broker.check()
        if self._closed:
            raise BrokerUnavailable("RabbitMQ at memory:0 cannot be reached: this exchange is closed")
