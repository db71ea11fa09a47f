"""The exchange over a real RabbitMQ: the contract, and what only a broker and a network can do wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from contract import keys
from contract.clock import SystemClock
from contract.errors import BrokerUnavailable
from peer_agent.exchange import RabbitMqExchange, connecting
from peer_agent.exchange.inboxes import INBOX_MESSAGES_PER_SENDER, TO_OTHERS, inboxes
from peer_agent.exchange.session import PREFETCH
from peer_agent.ports import Delivery, Exchange
from tests.fakes.exchange_contract import HEARTBEAT_SECONDS, PATIENCE_SECONDS, ExchangeContract, listen, receive
from tests.fakes.tcp_proxy import TcpProxy

_numbers = itertools.count()


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A name of its own for every test."""
    return f"exchange-{next(_numbers)}-{abs(hash(request.node.nodeid)) % 10**8}"


@pytest.fixture
def opened() -> Iterator[list[RabbitMqExchange]]:
    """Exchanges to retire at the end, so that a test leaves nothing on the broker."""
    exchanges: list[RabbitMqExchange] = []
    yield exchanges
    for exchange in exchanges:
        exchange.close(retire=True)


@pytest.fixture
def join(broker_url: str, run: str, opened: list[RabbitMqExchange]) -> Callable[[int, int], Exchange]:
    def joined(rank: int, peers: int) -> RabbitMqExchange:
        opened.append(
            RabbitMqExchange(
                broker_url,
                run=run,
                rank=rank,
                peers=peers,
                clock=SystemClock(),
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        )
        return opened[-1]

    return joined


@pytest.fixture
def broker(broker_url: str) -> Iterator[pika.BlockingConnection]:
    """A connection of the test's own, to look at the broker from outside."""
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    yield connection
    connection.close()


@pytest.fixture
def proxy(broker_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(broker_url)
    with TcpProxy((str(parts.hostname), parts.port or 5672)) as between:
        yield between


def through(proxy: TcpProxy, broker_url: str) -> str:
    """The broker's URL, by way of the proxy."""
    parts = urlsplit(broker_url)
    credentials = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}").geturl()


def exists(broker: pika.BlockingConnection, *, queue: str = "", exchange: str = "") -> bool:
    channel = broker.channel()
    try:
        if queue:
            channel.queue_declare(queue, passive=True)
        else:
            channel.exchange_declare(exchange, passive=True)
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == 404:
            return False
        raise
    channel.close()
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it holds, which another thread sees to."""
    clock = SystemClock()
    ends = clock.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert clock.monotonic() < ends
        clock.sleep(0.005)


class TestRabbitMqExchange(ExchangeContract):
    """The contract, over `join` above."""


def test_messages_are_persistent_and_say_what_they_are(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    sender = join(0, 2)
    join(1, 2).close()
    sender.publish("frame", b"body")
    _, properties, body = broker.channel().basic_get(keys.inbox(run, 1))
    assert body == b"body"
    assert (properties.delivery_mode, properties.type, properties.content_type) == (
        2,
        "frame",
        "application/octet-stream",
    )
    assert properties.headers == {"run": run, "rank": 0}


def test_foreign_messages_are_handed_over_without_a_sender(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    receiver = join(1, 2)
    broker.channel().basic_publish("", keys.inbox(run, 1), b"?", pika.BasicProperties(headers={"rank": "0"}))
    (delivery,) = receive(receiver, 1)
    assert (delivery.sender, delivery.kind, delivery.body) == (None, "", b"?")


def test_queues_are_declared_with_every_limit(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    join(0, 3)
    queue = inboxes(run, 0, 3).inbox
    channel = broker.channel()
    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))  # equal arguments: accepted
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="inequivalent"):
        channel.queue_declare(queue.name, durable=True)


def left_behind(broker: pika.BlockingConnection, run: str, peers: int) -> set[str]:
    """Names of the run's queues and exchanges that the broker has."""
    declared = inboxes(run, 0, peers)
    queues = {name for name in (keys.inbox(run, rank) for rank in range(peers)) if exists(broker, queue=name)}
    return queues | {name for name in (*declared.senders, *declared.pulse_senders) if exists(broker, exchange=name)}


@pytest.mark.parametrize("joined", [1, 2, 3])
def test_nothing_stays_behind(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection, joined: int
) -> None:
    """Whoever of three peers ever came, and though nothing was ever bound to the exchanges of the absent."""
    peers = [join(rank, 3) for rank in range(joined)]
    peers[0].publish("commit", b"{}")
    assert len(left_behind(broker, run, 3)) == 6 + joined
    for peer in peers:
        peer.close(retire=True)
    assert left_behind(broker, run, 3) == set()


def test_a_goodbye_between_two_heartbeats_is_a_clean_one(
    broker_url: str, run: str, broker: pika.BlockingConnection
) -> None:
    """They come so close to each other here that some are due while the connection is being closed."""
    for _ in range(20):
        peer = RabbitMqExchange(broker_url, run=run, rank=0, peers=2, clock=SystemClock(), heartbeat_seconds=0.0005)
        peer.beat(b"{}")
        wait_for(lambda peer=peer: peer.away_seconds == 0.0)  # type: ignore[misc]
        peer.close(retire=True)
        assert left_behind(broker, run, 2) == set()


def test_a_peer_can_publish_after_all_others_have_retired(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    first, second = join(0, 2), join(1, 2)
    second.close(retire=True)
    first.publish("result", b"late")
    first.close(retire=True)
    assert left_behind(broker, run, 2) == set()


def test_what_a_killed_peer_leaves_goes_with_its_inbox(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    staying, killed = join(0, 2), join(1, 2)
    killed.close()
    staying.publish("result", b"late")
    staying.close(retire=True)
    left = keys.inbox(run, 1)
    assert left_behind(broker, run, 2) == {left, keys.peer_exchange(run, 0), keys.peer_exchange(run, 1)}
    broker.channel().queue_delete(left)  # as its expiry does, some minutes later
    assert left_behind(broker, run, 2) == set()


def test_the_broker_says_who_sent_a_message(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    """Not the message: a peer could write another's rank into it."""
    receiver = join(1, 3)
    forged = pika.BasicProperties(headers={"rank": 2}, type="frame")
    broker.channel().basic_publish(keys.peer_exchange(run, 0), TO_OTHERS, b"?", forged)
    (delivery,) = receive(receiver, 1)
    assert (delivery.sender, delivery.kind) == (0, "frame")


def test_a_full_inbox_that_refuses_holds_nobody_up(
    broker_url: str,
    run: str,
    proxy: TcpProxy,
    join: Callable[[int, int], Exchange],
    opened: list[RabbitMqExchange],
    broker: pika.BlockingConnection,
) -> None:
    """Amazon MQ's clusters refuse where we asked to drop the oldest: the others get the message all the same."""
    sender = RabbitMqExchange(through(proxy, broker_url), run=run, rank=0, peers=3, clock=SystemClock())
    opened.append(sender)
    receiver, channel = join(1, 3), broker.channel()
    channel.queue_declare(run, exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.queue_bind(run, keys.peer_exchange(run, 0), TO_OTHERS)
    bodies = [str(number).encode() for number in range(5)]
    for body in bodies:
        sender.publish("commit", body)
    assert [delivery.body for delivery in receive(receiver, 5)] == bodies
    assert proxy.accepted == 1


def test_retiring_leaves_alone_who_is_still_there(join: Callable[[int, int], Exchange]) -> None:
    first, second, third = (join(rank, 3) for rank in range(3))
    first.publish("commit", b"before")
    third.close(retire=True)
    first.publish("commit", b"after")
    assert [delivery.body for delivery in receive(second, 2)] == [b"before", b"after"]


def test_a_lost_connection_is_mended_and_nothing_is_lost(
    broker_url: str, run: str, proxy: TcpProxy, join: Callable[[int, int], Exchange], opened: list[RabbitMqExchange]
) -> None:
    url = through(proxy, broker_url)
    sender = RabbitMqExchange(url, run=run, rank=0, peers=2, clock=SystemClock())
    opened.append(sender)
    receiver = join(1, 2)
    bodies = [str(number).encode() for number in range(30)]
    for number, body in enumerate(bodies):
        if number % 10 == 5:
            connections = 1 + number // 10
            wait_for(lambda expected=connections: proxy.accepted == expected and sender.away_seconds == 0.0)  # type: ignore[misc]
            proxy.cut()
        sender.publish("commit", body)
    received: list[bytes] = []
    while not received or received[-1] != bodies[-1]:
        received += [delivery.body for delivery in receiver.poll(20.0)]
    # A confirmation that got lost makes a double, never a gap and never another order.
    assert list(dict.fromkeys(received)) == bodies
    assert proxy.accepted >= 4


def test_a_message_under_way_while_the_connection_breaks_is_published_again(
    broker_url: str, run: str, proxy: TcpProxy, join: Callable[[int, int], Exchange], opened: list[RabbitMqExchange]
) -> None:
    sender = RabbitMqExchange(through(proxy, broker_url), run=run, rank=0, peers=2, clock=SystemClock())
    opened.append(sender)
    receiver = join(1, 2)
    proxy.cut(refuse=True)
    sender.publish("frame", bytes(300_000))
    assert sender.counts.messages_sent == 0
    proxy.restore()
    assert len(receive(receiver, 1)[0].body) == 300_000
    wait_for(lambda: (sender.counts.messages_sent, sender.counts.bytes_sent) == (1, 300_000))


def test_unacknowledged_messages_come_again_after_a_lost_connection(
    broker_url: str, run: str, proxy: TcpProxy, join: Callable[[int, int], Exchange], opened: list[RabbitMqExchange]
) -> None:
    receiver = RabbitMqExchange(through(proxy, broker_url), run=run, rank=1, peers=2, clock=SystemClock())
    opened.append(receiver)
    join(0, 2).publish("commit", b"{}")
    (before,) = receive(receiver, 1)
    proxy.cut()
    (after,) = receive(receiver, 1)
    receiver.acknowledge(before)  # of the lost connection: ignored, not a protocol error on the new one
    receiver.acknowledge(after)
    receiver.publish("commit", b"{}")
    assert after.body == b"{}"


class LaterClock(SystemClock):
    """A process that was started a minute later has one of these."""

    def now(self) -> float:
        return super().now() + 60.0


def test_a_successor_gets_the_messages_though_its_predecessor_stands_still(
    broker_url: str, run: str, join: Callable[[int, int], Exchange], opened: list[RabbitMqExchange]
) -> None:
    """As a stopped process does, whose connection the broker takes for sound: it must not get every other message."""
    sender, predecessor = join(0, 2), join(1, 2)
    successor = RabbitMqExchange(broker_url, run=run, rank=1, peers=2, clock=LaterClock())
    opened.append(successor)
    for number in range(10):
        sender.publish("commit", str(number).encode())
    assert [int(delivery.body) for delivery in receive(successor, 10)] == list(range(10))
    assert predecessor.poll(0.0) == []


def test_heartbeats_pass_a_full_inbox(join: Callable[[int, int], Exchange]) -> None:
    """Nothing is acknowledged, the prefetch is used up, and the inbox has begun to drop its oldest messages."""
    sender, receiver = join(0, 2), join(1, 2)
    sender.beat(b"round 7")
    for _ in range(PREFETCH + INBOX_MESSAGES_PER_SENDER + 3):
        sender.publish("frame", bytes(1_000))
    assert len(receive(receiver, PREFETCH)) == PREFETCH
    receiver.beats()
    heard = listen(receiver, lambda beats: len(beats) >= 10)
    assert {beat.body for beat in heard} == {b"round 7"}
    assert heard[-1].at - heard[0].at < 20 * HEARTBEAT_SECONDS + 1.0
    assert receiver.away_seconds == 0.0


def test_an_inbox_that_was_deleted_is_declared_again(
    join: Callable[[int, int], Exchange], run: str, broker: pika.BlockingConnection
) -> None:
    sender, receiver = join(0, 2), join(1, 2)
    sender.publish("commit", b"before")
    receive(receiver, 1)
    broker.channel().queue_delete(keys.inbox(run, 1))
    received: list[Delivery] = []
    while (
        not received
    ):  # what comes before the inbox is back is lost to it; pytest's time limit ends one that stays away
        sender.publish("commit", b"after")
        received = receiver.poll(0.2)
    assert received[0].body == b"after"


def test_other_arguments_on_the_broker_are_refused_in_one_sentence(
    broker_url: str, run: str, broker: pika.BlockingConnection
) -> None:
    channel = broker.channel()
    channel.queue_declare(keys.inbox(run, 0), durable=True)
    with pytest.raises(BrokerUnavailable, match=r"it said 406 PRECONDITION_FAILED - inequivalent arg"):
        RabbitMqExchange(broker_url, run=run, rank=0, peers=2, clock=SystemClock())
    channel.queue_delete(keys.inbox(run, 0))
    channel.exchange_delete(keys.peer_exchange(run, 0))
    channel.exchange_delete(keys.peer_exchange(run, 1))


def test_a_wrong_password_is_refused_at_once_and_not_quoted(broker_url: str, run: str) -> None:
    parts = urlsplit(broker_url)
    url = parts._replace(netloc=f"peerless-nobody:wrong-secret@{parts.hostname}:{parts.port}").geturl()
    with pytest.raises(BrokerUnavailable, match="refused user name or password") as error:
        RabbitMqExchange(url, run=run, rank=0, peers=2, clock=SystemClock())
    assert "wrong-secret" not in str(error.value)


def test_heartbeats_go_on_while_the_caller_computes(
    broker_url: str,
    run: str,
    proxy: TcpProxy,
    opened: list[RabbitMqExchange],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "HEARTBEAT_SECONDS", 1)
    clock = SystemClock()
    exchange = RabbitMqExchange(through(proxy, broker_url), run=run, rank=0, peers=2, clock=clock)
    opened.append(exchange)
    # RabbitMQ drops a client that says nothing for two heartbeats.
    ends = clock.monotonic() + 3.0
    while clock.monotonic() < ends:
        sum(number * number for number in range(10_000))
    exchange.publish("commit", b"{}")
    assert proxy.accepted == 1
