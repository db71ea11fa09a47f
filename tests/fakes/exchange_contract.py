"""What every exchange must do; run against the fake (tests/functional) and against RabbitMQ (tests/integration)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from contract.errors import BrokerUnavailable, PermanentError
from peer_agent.exchange.inboxes import INBOX_MESSAGES_PER_SENDER, MAX_MESSAGE_BYTES
from peer_agent.ports import Delivery, Exchange

#: Longer than any broker needs; a test that waits for all of it has failed.
PATIENCE_SECONDS = 20.0


def receive(exchange: Exchange, count: int) -> list[Delivery]:
    """Exactly `count` messages, acknowledged none."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        more = exchange.poll(PATIENCE_SECONDS)
        assert more, f"{len(deliveries)} of {count} messages came"
        deliveries += more
    assert len(deliveries) == count
    return deliveries


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

    def test_a_closed_exchange_says_so(self, join: Callable[[int, int], Exchange]) -> None:
        exchange = join(0, 2)
        exchange.close()
        exchange.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            exchange.publish("commit", b"{}")
        with pytest.raises(BrokerUnavailable, match="closed"):
            exchange.poll(0.0)
