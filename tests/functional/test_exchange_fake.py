"""The exchange in memory keeps the contract of the real one; and the exchange that carries nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contract.errors import BrokerUnavailable
from peer_agent.exchange import open_exchange
from peer_agent.ports import Delivery, Exchange
from tests.fakes.clock import FakeClock
from tests.fakes.exchange import MemoryBroker
from tests.fakes.exchange_contract import ExchangeContract


class TestMemoryExchange(ExchangeContract):
    @pytest.fixture
    def join(self) -> Callable[[int, int], Exchange]:
        brokers: dict[int, MemoryBroker] = {}
        return lambda rank, peers: brokers.setdefault(peers, MemoryBroker(peers)).join(rank)


def test_an_unreachable_broker_raises() -> None:
    broker = MemoryBroker(2)
    exchange = broker.join(0)
    broker.reachable = False
    with pytest.raises(BrokerUnavailable):
        exchange.publish("commit", b"{}")


def test_without_a_broker_polling_only_lets_time_pass() -> None:
    clock = FakeClock()
    exchange = open_exchange("", run="run", rank=0, peers=4, clock=clock)
    exchange.publish("commit", b"{}")
    assert exchange.poll(2.0) == []
    assert clock.slept == [2.0]
    exchange.acknowledge(Delivery(None, "commit", b"", None))
    exchange.close()
    assert (exchange.counts.messages_sent, exchange.counts.bytes_received) == (0, 0)
