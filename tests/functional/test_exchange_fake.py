"""The exchange in memory keeps the contract of the real one; and the exchange that carries nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contract.clock import SystemClock
from contract.errors import BrokerUnavailable, StoreUnavailable
from contract.keys import Place, Places
from peer_agent.exchange import open_exchange
from peer_agent.ports import Beat, Delivery, Exchange
from tests.fakes.clock import FakeClock
from tests.fakes.exchange import MemoryBroker, SteppedNullExchange
from tests.fakes.exchange_contract import HEARTBEAT_SECONDS, ExchangeContract
from tests.fakes.store import MemoryStore

PLACES = Places(run="run", run_bucket="run", peer_buckets=("p",) * 4, region="local")


class TestMemoryExchange(ExchangeContract):
    @pytest.fixture
    def join(self) -> Callable[[int, int], Exchange]:
        brokers: dict[int, MemoryBroker] = {}

        def joined(rank: int, peers: int) -> Exchange:
            if peers not in brokers:
                brokers[peers] = MemoryBroker(peers, heartbeat_seconds=HEARTBEAT_SECONDS)
            return brokers[peers].join(rank)

        return joined


def test_what_is_published_while_the_broker_is_away_comes_later() -> None:
    clock = FakeClock()
    broker = MemoryBroker(2, clock)
    sender, receiver = broker.join(0), broker.join(1)
    broker.reachable = False
    clock.advance(7.0)
    assert (sender.away_seconds, sender.up_since) == (7.0, None)
    sender.publish("commit", b"{}")
    assert receiver.poll(0.0) == []
    with pytest.raises(BrokerUnavailable):
        broker.join(1)
    broker.reachable = True
    assert (sender.away_seconds, sender.up_since) == (0.0, 7.0)
    assert [delivery.body for delivery in receiver.poll(0.0)] == [b"{}"]
    assert sender.counts.messages_sent == 1


def test_heartbeats_in_memory_follow_the_clock() -> None:
    clock = FakeClock()
    broker = MemoryBroker(2, clock, heartbeat_seconds=1.0)
    sender, receiver = broker.join(0), broker.join(1)
    sender.beat(b"alive")
    assert receiver.beats() == [Beat(0, b"alive", 0.0)]
    clock.advance(0.9)
    assert receiver.beats() == []
    clock.advance(1.2)
    assert receiver.beats() == [Beat(0, b"alive", 2.0)]
    broker.silence(0)
    clock.advance(60.0)
    assert receiver.beats() == []
    broker.revive(0)
    assert [beat.sender for beat in receiver.beats()] == [0]
    sender.close()
    clock.advance(60.0)
    assert receiver.beats() == []


def test_without_a_broker_polling_only_lets_time_pass() -> None:
    clock = FakeClock()
    exchange = open_exchange("", run="run", rank=0, peers=4, clock=clock)
    exchange.publish("commit", b"{}")
    assert exchange.poll(2.0) == []
    assert clock.slept == [2.0]
    exchange.acknowledge(Delivery(None, "commit", b"", None))
    exchange.beat(b"nobody carries it")
    assert (exchange.beats(), exchange.away_seconds, exchange.up_since) == ([], 0.0, 0.0)
    exchange.close()
    assert (exchange.counts.messages_sent, exchange.counts.bytes_received) == (0, 0)


class TestHeartbeatsThroughS3:
    """Without a thread, by a clock of the test's own."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def join(self, clock: FakeClock, store: MemoryStore) -> Callable[[int], SteppedNullExchange]:
        return lambda rank: SteppedNullExchange(clock, store, PLACES, rank=rank, peers=3)

    def test_are_heard_by_all_others(self, join: Callable[[int], SteppedNullExchange], clock: FakeClock) -> None:
        peers = [join(rank) for rank in range(3)]
        for peer in peers:
            peer.beat(b"%d" % peers.index(peer))
        for _ in range(2):
            clock.advance(1.0)
            heard = [peer.beats() for peer in peers]
        assert [[beat.sender for beat in beats] for beats in heard] == [[1, 2], [0, 2], [0, 1]]
        assert heard[0][1] == Beat(2, b"2", clock.monotonic())

    def test_one_that_was_left_by_the_dead_is_none(
        self, join: Callable[[int], SteppedNullExchange], clock: FakeClock
    ) -> None:
        dead, living = join(0), join(1)
        dead.beat(b"last words")
        for _ in range(5):
            clock.advance(1.0)
            assert living.beats() == []

    def test_the_same_words_again_are_news(self, join: Callable[[int], SteppedNullExchange], clock: FakeClock) -> None:
        sender, listener = join(0), join(1)
        sender.beat(b"round 3")
        listener.beats()
        for _ in range(3):
            clock.advance(1.0)
            sender.beats()
            assert [beat.body for beat in listener.beats()] == [b"round 3"]

    def test_cost_a_put_and_a_get_of_each_other_a_second(
        self, join: Callable[[int], SteppedNullExchange], clock: FakeClock, store: MemoryStore
    ) -> None:
        peer = join(0)
        peer.beat(b"alive")
        for _ in range(40):
            clock.advance(0.25)
            peer.beats()
        assert (store.counts.puts, store.counts.gets, store.counts.lists) == (11, 22, 0)

    def test_stop_while_s3_does_not_answer_and_the_gap_is_told(
        self, join: Callable[[int], SteppedNullExchange], clock: FakeClock, store: MemoryStore
    ) -> None:
        def refuse(operation: str, place: Place) -> None:
            raise StoreUnavailable(f"{operation} {place}: out of reach")

        peer = join(0)
        peer.beat(b"alive")
        store.before = refuse
        for second in range(1, 6):
            clock.advance(1.0)
            assert peer.beats() == []
            assert peer.away_seconds == (0.0 if second <= 3 else second)
        assert [peer.up_since] == [None]
        store.before = None
        clock.advance(1.0)
        peer.beats()
        assert (peer.away_seconds, peer.up_since) == (0.0, 6.0)

    def test_of_one_that_joins_late_are_heard_once_it_is_admitted(
        self, join: Callable[[int], SteppedNullExchange], clock: FakeClock
    ) -> None:
        listener, newcomer = join(0), join(3)
        newcomer.beat(b"here")
        listener.admit(3)
        listener.beats()
        clock.advance(1.0)
        newcomer.beats()
        assert [beat.sender for beat in listener.beats()] == [3]


def test_without_a_broker_heartbeats_have_a_thread() -> None:
    store, clock = MemoryStore(), SystemClock()
    exchanges = [
        open_exchange(
            "", run="run", rank=rank, peers=2, clock=clock, store=store, places=PLACES, heartbeat_seconds=0.02
        )
        for rank in range(2)
    ]
    for rank, exchange in enumerate(exchanges):
        exchange.beat(b"%d" % rank)
    heard: list[Beat] = []
    ends = clock.monotonic() + 20.0
    while not heard and clock.monotonic() < ends:
        exchanges[1].poll(0.01)
        heard += exchanges[1].beats()
    assert (heard[0].sender, heard[0].body) == (0, b"0")
    for exchange in exchanges:
        exchange.close()
    written = store.counts.puts
    with pytest.raises(BrokerUnavailable):
        exchanges[0].poll(0.0)
    assert (store.counts.puts, exchanges[0].beats()) == (written, [])
