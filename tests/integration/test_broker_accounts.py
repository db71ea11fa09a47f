"""The peers' accounts on a real RabbitMQ, made by the function that makes them on AWS, over TLS as there: what a peer's
own rights suffice for, and what they keep it from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote, unquote, urlsplit

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from contract import keys
from contract.clock import SystemClock
from contract.errors import BrokerUnavailable
from infra.amazon_mq import rights, user_name
from infra.local.processes import Starting
from infra.local.rabbitmq import Broker, start_managed
from lambdas.broker_users.handler import Budget, Management, NotLetIn, handler
from peer_agent.exchange import open_exchange
from peer_agent.exchange.connecting import connection_parameters
from peer_agent.ports import Exchange
from tests.fakes.broker_attempts import ACCESS_REFUSED, ATTEMPTS
from tests.fakes.certificates import self_signed
from tests.fakes.custom_resource import Context, Server, event
from tests.fakes.exchange_contract import HEARTBEAT_SECONDS, listen, receive


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A node of this module's own, whose certificate is its own authority."""
    folder = tmp_path_factory.mktemp("managed")
    certificate = self_signed(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        started = start_managed(folder / "node", folder / "log", Starting(), certificate=certificate)
        assert started.child is not None
        try:
            tell(started, "Create", {0: "zero-secret", 1: "one-secret"})
            yield started
        finally:
            started.child.stop()


def tell(broker: Broker, kind: str, passwords: dict[int, str], old: dict[int, str] | None = None) -> None:
    """What CloudFormation asks for; the answer must be SUCCESS."""
    parts = urlsplit(broker.url)
    password = unquote(parts.password or "")

    def properties(wanted: dict[int, str]) -> dict[str, object]:
        users = []
        for rank, secret in wanted.items():
            may = rights(rank)
            patterns = {"Configure": may.configure, "Write": may.write, "Read": may.read}
            users.append({"Username": user_name(rank), "Password": secret, **patterns})
        administrator = {"Username": parts.username, "Password": password, "Previous": password}
        return {"Management": broker.management_url, "Administrator": administrator, "Users": users, "Version": "1"}

    more = {} if old is None else {"OldResourceProperties": properties(old)}
    with Server() as cloudformation:
        handler(event(kind, cloudformation.url, properties(passwords), **more), Context())
    (answer,) = cloudformation.requests
    assert answer.json()["Status"] == "SUCCESS", answer.json()["Reason"]


def url(broker: Broker, rank: int, password: str) -> str:
    """As a peer has it."""
    parts = urlsplit(broker.url)
    return f"amqps://{user_name(rank)}:{quote(password)}@{parts.hostname}:{parts.port}"


@pytest.fixture
def opened(broker: Broker, unique: str) -> Iterator[Callable[[int], Exchange]]:
    """Exchanges of two peers, each with its own account."""
    exchanges: list[Exchange] = []

    def open_as(rank: int) -> Exchange:
        secret = ("zero-secret", "one-secret")[rank]
        exchange = open_exchange(
            url(broker, rank, secret),
            run=unique,
            rank=rank,
            peers=2,
            clock=SystemClock(),
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
        exchanges.append(exchange)
        return exchange

    yield open_as
    for exchange in exchanges:
        exchange.close(retire=True)


@pytest.fixture
def stranger(broker: Broker) -> Iterator[BlockingChannel]:
    """A channel of peer 0's account, used as somebody would who has its password; a publish waits for its answer."""
    connection = pika.BlockingConnection(connection_parameters(url(broker, 0, "zero-secret")))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def test_two_peers_exchange_messages_with_their_own_rights(opened: Callable[[int], Exchange]) -> None:
    first, second = opened(0), opened(1)
    first.publish("frame", b"from zero")
    second.publish("frame", b"from one")
    (to_second,), (to_first,) = receive(second, 1), receive(first, 1)
    assert (to_second.sender, to_second.body) == (0, b"from zero")
    assert (to_first.sender, to_first.body) == (1, b"from one")
    second.acknowledge(to_second)


def test_and_heartbeats_and_words_to_one_and_hear_who_joins_late(opened: Callable[[int], Exchange]) -> None:
    first, second = opened(0), opened(1)
    first.beat(b"zero lives")
    heard = listen(second, lambda beats: len(beats) >= 2)
    assert {(beat.sender, beat.body) for beat in heard} == {(0, b"zero lives")}
    first.publish("frame", b"to one", to=1)
    assert [delivery.body for delivery in receive(second, 1)] == [b"to one"]
    second.admit(2)
    assert (first.away_seconds, second.away_seconds) == (0.0, 0.0)


def test_retiring_leaves_nothing_behind(broker: Broker, opened: Callable[[int], Exchange], unique: str) -> None:
    for exchange in [opened(0), opened(1)]:
        exchange.close(retire=True)
    connection = pika.BlockingConnection(connection_parameters(broker.url))
    for rank in range(2):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
            connection.channel().queue_declare(keys.inbox(unique, rank), passive=True)
        for name in (keys.peer_exchange(unique, rank), keys.pulse_exchange(unique, rank)):
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"):
                connection.channel().exchange_declare(name, passive=True)
    connection.close()


@pytest.mark.parametrize("what", ATTEMPTS)
def test_a_peer_touches_nobody_else_s_inbox_and_speaks_in_nobody_else_s_name(
    opened: Callable[[int], Exchange], stranger: BlockingChannel, unique: str, what: str
) -> None:
    opened(0)
    other = opened(1)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
        ATTEMPTS[what](stranger, unique)
    assert refusal.value.reply_code == ACCESS_REFUSED
    assert other.poll(0.0) == []


def test_a_peer_s_account_opens_no_management_api(broker: Broker) -> None:
    management = Management(broker.management_url, user_name(0), "zero-secret", Budget(Context(), 0.0))
    with pytest.raises(NotLetIn):
        management.check()


def test_a_new_password_holds_from_the_next_connection_on_and_a_removed_account_is_gone(broker: Broker) -> None:
    before = {0: "zero-secret", 1: "one-secret"}
    tell(broker, "Update", {**before, 2: "two-secret"}, before)
    connect(broker, 2, "two-secret")
    tell(broker, "Update", {**before, 2: "new-secret"}, {**before, 2: "two-secret"})
    connect(broker, 2, "new-secret")
    with pytest.raises(BrokerUnavailable, match="refused user name or password"):
        connect(broker, 2, "two-secret")
    tell(broker, "Update", before, {**before, 2: "new-secret"})
    with pytest.raises(BrokerUnavailable, match="refused user name or password"):
        connect(broker, 2, "new-secret")
    tell(broker, "Delete", {2: "new-secret"})  # it is not there; nothing to complain about


def connect(broker: Broker, rank: int, password: str) -> None:
    exchange = open_exchange(url(broker, rank, password), run="rotation", rank=rank, peers=1, clock=SystemClock())
    exchange.close(retire=True)
