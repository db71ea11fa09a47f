"""Exchange and heartbeats while the broker is killed, stopped or stands still, and while connections are cut."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from urllib.parse import urlsplit

import pytest

from contract.clock import SystemClock
from contract.errors import BrokerUnavailable
from infra.local import rabbitmq
from infra.local.mending import start_again
from infra.local.processes import Starting
from peer_agent.exchange import RabbitMqExchange, link
from peer_agent.exchange.inboxes import MAX_MESSAGE_BYTES
from peer_agent.exchange.link import STOP_TIMEOUT_SECONDS, WAITING_BYTES, WAITING_MESSAGES
from peer_agent.liveness import Liveness
from tests.fakes.exchange_contract import HEARTBEAT_SECONDS, PATIENCE_SECONDS, listen, receive
from tests.fakes.tcp_proxy import TcpProxy

CLOCK = SystemClock()
#: A second is what it takes at most; the rest is for a machine that is busy with other tests.
SOON_SECONDS = 4.0


class Node:
    """A broker of this module's own: every message and binding of its can be lost at any moment."""

    def __init__(self, broker: rabbitmq.Broker) -> None:
        assert broker.lasting
        self.broker = broker

    def signal(self, number: Signals) -> None:
        """To all its processes."""
        assert self.broker.child is not None
        os.killpg(self.broker.child.pid, number)

    def end(self, number: Signals) -> None:
        """Returns when it is gone."""
        self.signal(number)
        assert self.broker.child is not None
        assert self.broker.child.wait(PATIENCE_SECONDS) is not None

    def start(self) -> None:
        """On the same port over the same data; returns when it takes connections."""
        assert self.broker.child is not None
        child = start_again(self.broker.child, lambda: rabbitmq.answers(self.broker), Starting())
        self.broker = replace(self.broker, child=child)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("restarts")
    environ = {name: value for name, value in os.environ.items() if name != "PEERLESS_BROKER_URL"}
    node = Node(rabbitmq.start(folder / "node", folder / "log", Starting(), environ))
    yield node
    assert node.broker.child is not None
    node.broker.child.stop()


@pytest.fixture
def proxy(node: Node) -> Iterator[TcpProxy]:
    host, _, port = node.broker.address.rpartition(":")
    with TcpProxy((host, int(port))) as between:
        yield between


@pytest.fixture
def join(node: Node, unique: str) -> Iterator[Callable[..., RabbitMqExchange]]:
    """(rank, peers) -> RabbitMqExchange of this test's run; `by` a proxy where that is given."""
    opened: list[RabbitMqExchange] = []

    def joined(rank: int, peers: int, by: TcpProxy | None = None) -> RabbitMqExchange:
        parts = urlsplit(node.broker.url)
        if by is not None:
            parts = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{by.port}")
        opened.append(
            RabbitMqExchange(
                parts.geturl(),
                run=unique,
                rank=rank,
                peers=peers,
                clock=CLOCK,
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        )
        return opened[-1]

    yield joined
    for exchange in opened:
        exchange.close(retire=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it holds, which another thread or process sees to."""
    ends = CLOCK.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert CLOCK.monotonic() < ends
        CLOCK.sleep(0.005)


@pytest.mark.parametrize("how", [SIGKILL, SIGTERM])
def test_a_broker_that_comes_back_brings_everything_that_was_confirmed_and_what_waited(
    node: Node, join: Callable[..., RabbitMqExchange], how: Signals
) -> None:
    peers = [join(rank, 3) for rank in range(3)]
    for rank, peer in enumerate(peers):
        peer.beat(b"%d" % rank)
    peers[0].publish("commit", b"unread")
    peers[0].publish("commit", b"read")
    _, read = receive(peers[1], 2)
    peers[1].acknowledge(read)
    node.end(how)
    wait_for(lambda: all(peer.away_seconds > 0 for peer in peers))
    begun = CLOCK.monotonic()
    peers[0].publish("result", b"during")
    peers[2].publish("frame", b"to one", to=0)
    assert CLOCK.monotonic() - begun < 1.0
    assert (peers[0].poll(0.0), peers[0].counts.messages_sent) == ([], 4)

    node.start()
    back = CLOCK.monotonic()
    wait_for(lambda: all(peer.up_since is not None for peer in peers))
    assert max(peer.up_since or 0.0 for peer in peers) - back < SOON_SECONDS
    bodies: list[list[bytes]] = [[], [], []]
    for rank, last in ((0, b"to one"), (1, b"during"), (2, b"during")):
        while last not in bodies[rank]:
            arrived = peers[rank].poll(PATIENCE_SECONDS)
            assert arrived
            bodies[rank] += [delivery.body for delivery in arrived]
            for delivery in arrived:
                peers[rank].acknowledge(delivery)
    # Confirmed is kept, acknowledged may come again if the broker died before it wrote that down, and each in order.
    assert bodies[0] == [b"to one"]
    assert [body for body in bodies[1] if body != b"read"] == [b"unread", b"during"]
    assert bodies[2] == [b"unread", b"read", b"during"]
    wait_for(lambda: peers[0].counts.messages_sent == 6)
    for rank, peer in enumerate(peers):
        others = {0, 1, 2} - {rank}
        listen(peer, lambda beats, others=others: others <= {b.sender for b in beats if b.at > back})  # type: ignore[misc]


def test_nobody_is_taken_for_dead_because_the_broker_was(node: Node, join: Callable[..., RabbitMqExchange]) -> None:
    """As the runner asks: before, while and after it is away, for far longer than the timeout."""
    timeout = 1.0
    peers = [join(rank, 2) for rank in range(2)]
    liveness = [Liveness(timeout, HEARTBEAT_SECONDS) for _ in peers]
    began = CLOCK.monotonic()
    for rank, (peer, seen) in enumerate(zip(peers, liveness, strict=True)):
        peer.beat(b"{}")
        seen.watch([1 - rank], began)

    def look(ends: Callable[[], bool]) -> None:
        until = CLOCK.monotonic() + 3 * PATIENCE_SECONDS
        while not ends():
            assert CLOCK.monotonic() < until
            for peer, seen in zip(peers, liveness, strict=True):
                peer.poll(HEARTBEAT_SECONDS / 4)
                since, now = peer.up_since, CLOCK.monotonic()
                seen.link(since is not None, now if since is None else since)
                for beat in peer.beats():
                    assert beat.sender is not None
                    seen.heard(beat.sender, 1, 0, beat.at)
                assert seen.silent(CLOCK.monotonic()) == ()

    look(lambda: all(seen.standing for seen in liveness))
    node.end(SIGKILL)
    starting = threading.Thread(target=node.start)
    down = CLOCK.monotonic()
    look(lambda: CLOCK.monotonic() > down + 2 * timeout)
    starting.start()
    look(lambda: not starting.is_alive())
    back = CLOCK.monotonic()
    look(lambda: CLOCK.monotonic() > back + 2 * timeout)


def test_a_connection_that_carries_nothing_counts_as_none(node: Node, join: Callable[..., RabbitMqExchange]) -> None:
    """Nobody hangs up on it: whoever is cut off so must not take all others for dead."""
    peers = [join(rank, 2) for rank in range(2)]
    for peer in peers:
        peer.beat(b"{}")
    for peer in peers:
        listen(peer, lambda beats: len(beats) >= 2)
    before = [peer.up_since for peer in peers]
    node.signal(SIGSTOP)
    try:
        stopped = CLOCK.monotonic()
        wait_for(lambda: all(peer.away_seconds > 5 * HEARTBEAT_SECONDS for peer in peers))
        assert [peer.up_since for peer in peers] == [None, None]
        assert all(peer.away_seconds <= CLOCK.monotonic() - stopped + 2 * HEARTBEAT_SECONDS for peer in peers)
    finally:
        node.signal(SIGCONT)
    wait_for(lambda: all(peer.away_seconds == 0.0 for peer in peers))
    for peer, earlier in zip(peers, before, strict=True):
        assert peer.up_since is not None
        assert earlier is not None
        assert peer.up_since > max(earlier, stopped)
        peer.publish("commit", b"{}")
    assert [delivery.body for delivery in receive(peers[0], 1)] == [b"{}"]


def test_a_connection_that_goes_on_carrying_nothing_is_given_up(
    node: Node, proxy: TcpProxy, join: Callable[..., RabbitMqExchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "DEAF_SECONDS", 0.5)
    exchange = join(0, 2, proxy)
    exchange.beat(b"{}")
    wait_for(lambda: exchange.away_seconds == 0.0)
    assert proxy.accepted == 1
    node.signal(SIGSTOP)
    try:
        wait_for(lambda: proxy.accepted > 1)
        assert exchange.away_seconds > 0.5
    finally:
        node.signal(SIGCONT)
    wait_for(lambda: exchange.up_since is not None)
    exchange.publish("commit", b"{}")
    wait_for(lambda: exchange.counts.messages_sent == 1)


def test_an_outage_holds_nobody_up_and_is_told_by_its_length(
    proxy: TcpProxy, join: Callable[..., RabbitMqExchange]
) -> None:
    exchange, receiver = join(0, 2, proxy), join(1, 2)
    first_up = exchange.up_since
    begun = CLOCK.monotonic()
    proxy.cut(refuse=True)
    wait_for(lambda: exchange.away_seconds > 0)
    for number in range(5):
        exchange.publish("commit", str(number).encode())
    assert CLOCK.monotonic() - begun < 2.0
    assert (exchange.poll(0.0), exchange.beats(), exchange.up_since) == ([], [], None)
    assert 0.0 < exchange.away_seconds <= CLOCK.monotonic() - begun
    assert receiver.poll(0.0) == []
    proxy.restore()
    restored = CLOCK.monotonic()
    assert [delivery.body for delivery in receive(receiver, 5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert (exchange.away_seconds, first_up is None) == (0.0, False)
    assert exchange.up_since is not None
    assert restored < exchange.up_since < restored + SOON_SECONDS


def test_of_what_waits_the_newest_is_kept(proxy: TcpProxy, join: Callable[..., RabbitMqExchange]) -> None:
    sender, receiver = join(0, 9, proxy), join(1, 9)
    proxy.cut(refuse=True)
    wait_for(lambda: sender.away_seconds > 0)
    expected = WAITING_BYTES // MAX_MESSAGE_BYTES
    for _ in range(WAITING_MESSAGES):
        sender.publish("commit", b"older")
    for _ in range(expected):
        sender.publish("frame", bytes(MAX_MESSAGE_BYTES))
    assert sender.counts.messages_sent == 0
    proxy.restore()
    kinds: list[str] = []
    while len(kinds) < expected:
        deliveries = receiver.poll(PATIENCE_SECONDS)
        assert deliveries
        kinds += [delivery.kind for delivery in deliveries]
        for delivery in deliveries:
            receiver.acknowledge(delivery)
    assert kinds == ["frame"] * expected
    wait_for(lambda: sender.counts.messages_sent == 8 * expected)


def test_a_closed_exchange_leaves_at_once_while_the_broker_is_away(
    node: Node, proxy: TcpProxy, join: Callable[..., RabbitMqExchange]
) -> None:
    exchange = join(0, 2, proxy)
    proxy.cut(refuse=True)
    wait_for(lambda: exchange.away_seconds > 0)
    exchange.publish("commit", b"never sent")
    begun = CLOCK.monotonic()
    exchange.close(retire=True)
    assert CLOCK.monotonic() - begun < STOP_TIMEOUT_SECONDS / 2
    with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{proxy.port} .*this exchange is closed") as error:
        exchange.publish("commit", b"{}")
    assert str(urlsplit(node.broker.url).password) not in str(error.value)


def test_heartbeats_go_on_after_a_lost_connection(proxy: TcpProxy, join: Callable[..., RabbitMqExchange]) -> None:
    sender, receiver = join(0, 2, proxy), join(1, 2)
    for peer, other in itertools.permutations((sender, receiver)):
        other.beat(b"said once")
        listen(peer, lambda beats: bool(beats))
    for _ in range(3):
        proxy.cut()
        wait_for(lambda: sender.away_seconds > 0)
        wait_for(lambda: sender.away_seconds == 0)
        back = CLOCK.monotonic()
        for peer in (sender, receiver):
            listen(peer, lambda beats, back=back: any(beat.at > back for beat in beats))  # type: ignore[misc]


def test_what_was_admitted_stays_so_on_the_next_connection(
    proxy: TcpProxy, join: Callable[..., RabbitMqExchange]
) -> None:
    old, newcomer = join(0, 2, proxy), join(2, 2)
    old.admit(2)
    proxy.cut(refuse=True)
    wait_for(lambda: old.away_seconds > 0)
    proxy.restore()
    wait_for(lambda: old.away_seconds == 0)
    newcomer.publish("hello", b"late")
    newcomer.beat(b"{}")
    assert [delivery.sender for delivery in receive(old, 1)] == [2]
    assert {beat.sender for beat in listen(old, lambda beats: bool(beats))} == {2}


def test_a_peer_whose_connection_the_broker_still_holds_comes_back_at_once(
    node: Node, join: Callable[..., RabbitMqExchange]
) -> None:
    """A predecessor that stands still must not lock its successor out of a queue."""
    sender, predecessor, successor = join(0, 2), join(1, 2), join(1, 2)
    for peer in (sender, predecessor, successor):
        peer.beat(b"{}")
    assert {beat.sender for beat in listen(successor, lambda b: {0, 1} <= {beat.sender for beat in b})} == {0, 1}
    assert predecessor.away_seconds == successor.away_seconds == 0.0
