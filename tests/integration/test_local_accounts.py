"""An account per peer on the brokers of local runs: what each suffices for, what it keeps a peer from, who has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from contract.clock import SystemClock
from contract.errors import BrokerUnavailable
from infra.local import rabbitmq
from infra.local.broker_accounts import RANKS, Accounts, accounts, usual_addresses
from infra.local.cloud import LocalCloud
from infra.local.processes import Starting
from infra.local.rabbitmq import Broker, start_managed
from peer_agent.exchange import open_exchange
from peer_agent.exchange.connecting import connection_parameters
from peer_agent.ports import Exchange
from tests.fakes.broker_attempts import ACCESS_REFUSED, ATTEMPTS
from tests.fakes.certificates import self_signed
from tests.fakes.exchange_contract import receive


@pytest.fixture
def private(local_cloud: LocalCloud, unique: str) -> Accounts:
    """Those of a run on the session's node."""
    if rabbitmq.NAME not in local_cloud.children:
        pytest.fail("these tests are about a private node: unset PEERLESS_BROKER_URL")
    return local_cloud.broker_accounts(unique, pytest.fail)


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with a management API, as one that is given by URL may have it."""
    folder = tmp_path_factory.mktemp("managed")
    certificate = self_signed(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        started = start_managed(folder / "node", folder / "log", Starting(), certificate=certificate)
        assert started.child is not None
        try:
            yield started
        finally:
            started.child.stop()


def given(broker: Broker, run: str, note: Callable[[str], None] = pytest.fail) -> Accounts:
    """The accounts of a run on a broker that is somebody else's."""
    return accounts(broker.url, run, note, private=False, management=[broker.management_url])


def join(stack: ExitStack, of: Accounts, run: str, rank: int) -> Exchange:
    """The exchange of a peer, with its own account."""
    exchange = open_exchange(of.url(rank), run=run, rank=rank, peers=2, clock=SystemClock())
    stack.callback(exchange.close, retire=True)
    return exchange


def refused(url: str, what: str, run: str) -> bool:
    """Whether the broker refuses this account that attempt."""
    connection = pika.BlockingConnection(connection_parameters(url))
    channel: BlockingChannel = connection.channel()
    channel.confirm_delivery()
    try:
        ATTEMPTS[what](channel, run)
    except pika.exceptions.ChannelClosedByBroker as refusal:
        return bool(refusal.reply_code == ACCESS_REFUSED)
    else:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize("what", ATTEMPTS)
def test_on_a_private_node_a_peer_touches_nobody_else_s_inbox(private: Accounts, unique: str, what: str) -> None:
    with ExitStack() as stack:
        first, second = (join(stack, private, unique, rank) for rank in (0, 1))
        assert refused(private.url(0), what, unique)
        first.publish("frame", b"for one")
        (delivery,) = receive(second, 1)
        assert (delivery.sender, delivery.body) == (0, b"for one")


def test_every_rank_of_a_private_node_has_a_password_of_its_own_that_is_written_nowhere(
    private: Accounts, local_cloud: LocalCloud
) -> None:
    urls = [urlsplit(private.url(rank)) for rank in range(RANKS)]
    assert len({url.password for url in urls} | {urlsplit(local_cloud.broker_url).password}) == RANKS + 1
    node = local_cloud.children[rabbitmq.NAME]
    folder = Path(psutil.Process(node.pid).cwd())
    for path in (folder / "definitions.json", folder / "rabbitmq.conf", node.log_path):
        text = path.read_text(errors="replace")
        assert not any(url.password and url.password in text for url in urls)
    with pytest.raises(BrokerUnavailable, match=f"ranks below {RANKS}"):
        private.url(RANKS)


def test_a_peer_gets_in_with_no_password_but_its_own(private: Accounts) -> None:
    mine, other = (urlsplit(private.url(rank)) for rank in (0, 1))
    assert other.username
    wrong = mine.geturl().replace(f"//{mine.username}:", f"//{other.username}:")
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(connection_parameters(wrong))


@pytest.mark.parametrize("what", ["read", "publish as the other", "declare other queues"])
def test_on_a_broker_with_a_management_api_a_run_makes_accounts_and_removes_them(
    managed: Broker, unique: str, what: str
) -> None:
    made = given(managed, unique)
    with ExitStack() as stack:
        first, second = (join(stack, made, unique, rank) for rank in (0, 1))
        first.publish("frame", b"for one")
        assert [delivery.body for delivery in receive(second, 1)] == [b"for one"]
        assert refused(made.url(0), what, unique)
    url = made.url(0)
    assert not refused(managed.url, "declare other queues", unique), "the administrator may"
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
        open_exchange(url, run="another", rank=0, peers=2, clock=SystemClock()).close()
    made.close()
    with pytest.raises(BrokerUnavailable, match="refused user name or password"):
        open_exchange(url, run=unique, rank=0, peers=2, clock=SystemClock())


def test_an_account_without_rights_makes_none_and_is_everybody_s_and_that_is_said_once(
    managed: Broker, unique: str
) -> None:
    made, said = given(managed, unique), list[str]()
    plain = made.url(0)
    shared = accounts(plain, unique, said.append, private=False, management=[managed.management_url])
    assert [shared.url(rank) for rank in (0, 1)] == [plain] * 2
    assert len(said) == 1
    assert "all peers use the one account" in said[0]
    assert (urlsplit(plain).password or "-") not in said[0]
    shared.close()
    made.close()


def test_a_broker_without_a_management_api_is_used_as_it_is(broker_url: str, unique: str) -> None:
    said: list[str] = []
    shared = accounts(broker_url, unique, said.append, private=False, management=["http://127.0.0.1:1"])
    assert (shared.url(5), len(said)) == (broker_url, 1)
    assert accounts("", unique, pytest.fail, private=False).url(0) == "", "no broker at all"


def test_where_a_management_api_is_looked_for() -> None:
    assert usual_addresses("amqp://u:p@broker.example/v") == ("http://broker.example:15672",)
    assert usual_addresses("amqps://u:p@[::1]:5671") == ("https://[::1]:15671", "https://[::1]")
