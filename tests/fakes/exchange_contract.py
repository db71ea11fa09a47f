"""What every exchange must do; run against the fake (tests/functional) and against RabbitMQ (tests/integration)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from contract.clock import SystemClock
from contract.errors import BrokerUnavailable, PermanentError
from peer_agent.exchange.inboxes import INBOX_MESSAGES_PER_SENDER, MAX_MESSAGE_BYTES
from peer_agent.ports import Beat, Delivery, Exchange

#: Longer than any broker needs; a test that waits for all of it has failed.
PATIENCE_SECONDS = 20.0

#: Between heartbeats of the exchanges that `join` gives.
HEARTBEAT_SECONDS = 0.05


def receive(exchange: Exchange, count: int) -> list[Delivery]:
    """Exactly `count` messages, acknowledged none."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        more = exchange.poll(PATIENCE_SECONDS)
        assert more, f"{len(deliveries)} of {count} messages came"
        deliveries += more
    assert len(deliveries) == count
    return deliveries


def listen(exchange: Exchange, until: Callable[[list[Beat]], bool]) -> list[Beat]:
    """Heartbeats, as they come, until those that came are enough."""
    clock, heard = SystemClock(), list[Beat]()
    ends = clock.monotonic() + PATIENCE_SECONDS
    while not until(heard):
        assert clock.monotonic() < ends, f"heard only {heard[-10:]}"
        exchange.poll(HEARTBEAT_SECONDS / 2)
        heard += exchange.beats()
    return heard


class ExchangeContract:
    """Subclasses give the fixture `join`: (rank, peers) -> Exchange, all of one run; it closes them at the end."""

    def test_every_other_peer_gets_a_copy(self, join: Callable[[int, int], Exchange]) -> None:
        peers = [join(rank, 3) for rank in range(3)]
        peers[1].publish("frame", b"\x00gradient\xff")
        for rank in (0, 2):
            (delivery,) = receive(peers[rank], 1)
            assert (delivery.sender, delivery.kind, delivery.body) == (1, "frame", b"\x00gradient\xff")
        assert peers[1].poll(0.0) == []

    def test_a_message_waits_for_a_peer_that_is_away(self, join: Callable[[int, int], Exchange]) -> None:
        sender = join(0, 2)
        join(1, 2).close()
        sender.publish("hello", b"{}")
        (delivery,) = receive(join(1, 2), 1)
        assert (delivery.sender, delivery.kind) == (0, "hello")

    def test_a_peer_gets_what_is_published_once_it_has_joined(self, join: Callable[[int, int], Exchange]) -> None:
        """What came before it finds in S3; and nobody is held up for want of it."""
        sender = join(0, 3)
        sender.publish("hello", b"nobody")
        early = join(1, 3)
        sender.publish("hello", b"one")
        late = join(2, 3)
        sender.publish("hello", b"both")
        assert [delivery.body for delivery in receive(early, 2)] == [b"one", b"both"]
        assert [delivery.body for delivery in receive(late, 1)] == [b"both"]
        assert sender.counts.messages_sent == 6

    def test_messages_of_one_sender_keep_their_order(self, join: Callable[[int, int], Exchange]) -> None:
        sender, receiver = join(0, 2), join(1, 2)
        for number in range(20):
            sender.publish("commit", str(number).encode())
        assert [int(delivery.body) for delivery in receive(receiver, 20)] == list(range(20))

    def test_unacknowledged_messages_come_again_to_a_successor(self, join: Callable[[int, int], Exchange]) -> None:
        sender, receiver = join(0, 2), join(1, 2)
        for body in (b"kept", b"done"):
            sender.publish("result", body)
        kept, done = receive(receiver, 2)
        receiver.acknowledge(done)
        receiver.close()
        (again,) = receive(join(1, 2), 1)
        assert again.body == kept.body == b"kept"

    def test_poll_wakes_up_for_a_message(self, join: Callable[[int, int], Exchange]) -> None:
        sender, receiver = join(0, 2), join(1, 2)
        received: list[Delivery] = []
        thread = threading.Thread(target=lambda: received.extend(receive(receiver, 1)))
        thread.start()
        sender.publish("stop", b"now")
        thread.join(PATIENCE_SECONDS)
        assert [delivery.body for delivery in received] == [b"now"]

    def test_counts_every_copy(self, join: Callable[[int, int], Exchange]) -> None:
        peers = [join(rank, 4) for rank in range(4)]
        peers[0].publish("frame", bytes(1_000))
        peers[0].publish("commit", bytes(10))
        receive(peers[3], 2)
        assert (peers[0].counts.messages_sent, peers[0].counts.bytes_sent) == (6, 3_030)
        assert (peers[3].counts.messages_received, peers[3].counts.bytes_received) == (2, 1_010)

    def test_the_largest_body_travels_and_a_larger_one_is_refused(self, join: Callable[[int, int], Exchange]) -> None:
        sender, receiver = join(0, 2), join(1, 2)
        with pytest.raises(PermanentError, match="frame message has 524,289 bytes"):
            sender.publish("frame", bytes(MAX_MESSAGE_BYTES + 1))
        sender.publish("frame", bytes(MAX_MESSAGE_BYTES))
        (delivery,) = receive(receiver, 1)
        assert len(delivery.body) == MAX_MESSAGE_BYTES
        assert sender.counts.messages_sent == 1

    def test_a_peer_alone_publishes_to_nobody(self, join: Callable[[int, int], Exchange]) -> None:
        alone = join(0, 1)
        alone.publish("commit", b"{}")
        assert alone.poll(0.0) == []
        assert alone.counts.messages_sent == 0

    def test_an_absent_peer_misses_the_oldest_messages(self, join: Callable[[int, int], Exchange]) -> None:
        sender = join(0, 2)
        join(1, 2).close()
        for number in range(INBOX_MESSAGES_PER_SENDER + 3):
            sender.publish("commit", str(number).encode())
        first, *_, last = receive(join(1, 2), INBOX_MESSAGES_PER_SENDER)
        assert (first.body, last.body) == (b"3", str(INBOX_MESSAGES_PER_SENDER + 2).encode())

    def test_a_message_to_one_rank_reaches_nobody_else(self, join: Callable[[int, int], Exchange]) -> None:
        peers = [join(rank, 3) for rank in range(3)]
        peers[0].publish("frame", b"for one", to=2)
        peers[0].publish("commit", b"for all")
        assert [delivery.body for delivery in receive(peers[1], 1)] == [b"for all"]
        assert [delivery.body for delivery in receive(peers[2], 2)] == [b"for one", b"for all"]
        assert (peers[0].counts.messages_sent, peers[0].counts.bytes_sent) == (3, 21)
        with pytest.raises(ValueError, match="itself"):
            peers[0].publish("frame", b"", to=0)

    def test_heartbeats_go_on_by_themselves_and_reach_all_others(self, join: Callable[[int, int], Exchange]) -> None:
        clock = SystemClock()
        peers = [join(rank, 3) for rank in range(3)]
        before = clock.monotonic()
        for rank, peer in enumerate(peers):
            peer.beat(b"from %d" % rank)
        for rank, peer in enumerate(peers):
            others = {0, 1, 2} - {rank}

            def thrice(beats: list[Beat], others: set[int] = others) -> bool:
                return all(len([beat for beat in beats if beat.sender == other]) >= 3 for other in others)

            heard = listen(peer, thrice)
            assert {(beat.sender, beat.body) for beat in heard} == {(other, b"from %d" % other) for other in others}
            assert all(before <= beat.at <= clock.monotonic() for beat in heard)
            assert all(first.at <= second.at for first, second in itertools.pairwise(b for b in heard if b.sender == 2))

    def test_a_heartbeat_changes_with_the_next_call_and_ends_with_close(
        self, join: Callable[[int, int], Exchange]
    ) -> None:
        clock, sender, listener = SystemClock(), join(0, 2), join(1, 2)
        sender.beat(b"round 1")
        listen(listener, lambda beats: bool(beats))
        sender.beat(b"round 2")
        bodies = [
            beat.body for beat in listen(listener, lambda beats: [b.body for b in beats][-2:] == [b"round 2"] * 2)
        ]
        assert bodies == sorted(bodies)
        sender.close()
        closed = clock.monotonic()
        listener.poll(4 * HEARTBEAT_SECONDS)
        listener.beats()
        listener.poll(4 * HEARTBEAT_SECONDS)
        assert listener.beats() == []
        assert clock.monotonic() > closed

    def test_an_exchange_that_works_is_up_and_not_away(self, join: Callable[[int, int], Exchange]) -> None:
        clock = SystemClock()
        before = clock.monotonic()
        exchange = join(0, 2)
        exchange.beat(b"{}")
        exchange.poll(6 * HEARTBEAT_SECONDS)
        since = exchange.up_since
        assert exchange.away_seconds == 0.0
        assert since is not None
        assert before - PATIENCE_SECONDS < since <= clock.monotonic()

    def test_one_that_joins_late_is_heard_by_whoever_admits_it(self, join: Callable[[int, int], Exchange]) -> None:
        first, second = join(0, 2), join(1, 2)
        newcomer = join(2, 2)
        newcomer.publish("hello", b"nobody knows me")
        for _ in range(2):
            first.admit(2)
        newcomer.publish("hello", b"one knows me")
        newcomer.beat(b"late")
        first.publish("commit", b"to all")
        assert [(d.sender, d.body) for d in receive(first, 1)] == [(2, b"one knows me")]
        assert {beat.sender for beat in listen(first, lambda beats: bool(beats))} == {2}
        assert [d.body for d in receive(newcomer, 1)] == [b"to all"]
        assert [d.body for d in receive(second, 1)] == [b"to all"]
        assert first.counts.messages_sent == 2
        first.publish("frame", b"to you", to=2)
        assert [d.body for d in receive(newcomer, 1)] == [b"to you"]

    def test_a_twin_hears_its_twin(self, join: Callable[[int, int], Exchange]) -> None:
        """Two processes of one rank: the earlier one learns so from the later one's heartbeats."""
        first, second = join(0, 2), join(0, 2)
        second.beat(b"incarnation 2")
        heard = listen(first, lambda beats: bool(beats))
        assert (heard[0].sender, heard[0].body) == (0, b"incarnation 2")
        assert second.beats() == []

    def test_a_closed_exchange_says_so(self, join: Callable[[int, int], Exchange]) -> None:
        exchange = join(0, 2)
        exchange.close()
        exchange.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            exchange.publish("commit", b"{}")
        with pytest.raises(BrokerUnavailable, match="closed"):
            exchange.poll(0.0)
