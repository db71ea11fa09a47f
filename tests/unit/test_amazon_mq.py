"""What Amazon MQ is told: the rights of accounts against the names of contract/keys.py, limits against our own."""

from __future__ import annotations

import re
from secrets import token_hex

import pytest

from contract import keys
from infra.amazon_mq import rabbitmq_conf, rights, user_name
from infra.local import rabbitmq
from peer_agent.exchange.connecting import HEARTBEAT_SECONDS
from peer_agent.exchange.inboxes import MAX_MESSAGE_BYTES, inboxes

RUNS = ("demo-20260102", "a", "A_b-9", "x" * 63)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("rank", [0, 1, 9, 10, 149])
def test_a_peer_may_use_what_it_declares(run: str, rank: int) -> None:
    """Every exchange of its declaration, also one of a rank beyond those at the start, and its own queues."""
    may, declared = rights(rank), inboxes(run, rank, 150, token_hex(6), later=[2_000])
    for exchange in (*declared.senders, *declared.pulse_senders):
        assert re.search(may.configure, exchange)
        assert re.search(may.read, exchange)
    for pattern in (may.configure, may.read, may.write):
        assert re.search(pattern, declared.inbox.name)
        assert re.search(pattern, declared.pulses.name)
    assert re.search(may.write, declared.own_exchange)
    assert re.search(may.write, declared.own_pulse)


@pytest.mark.parametrize("rank", [0, 1, 14, 100])
def test_it_may_touch_no_other_inbox_and_write_to_no_other_exchange(rank: int) -> None:
    may = rights(rank)
    for other in set(range(150)) - {rank}:
        assert not re.search(may.write, keys.peer_exchange("run", other))
        assert not re.search(may.write, keys.pulse_exchange("run", other))
        for queue in (keys.inbox("run", other), keys.pulses("run", other, "c0ffee")):
            assert not any(re.search(p, queue) for p in (may.configure, may.read, may.write))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "amq.default",
        "amq.topic",
        "peerless.run.inbox.1.more",
        "peerless.run.pulses.1",
        "peerless.run.pulses.1.c0ffee.more",
        "peerless.a.b.inbox.1",
        "not.peerless.run.inbox.1",
    ],
)
def test_no_other_name_is_anybody_s(name: str) -> None:
    assert not any(re.search(p, name) for p in (rights(1).configure, rights(1).read, rights(1).write))


def test_accounts_are_named_after_ranks() -> None:
    assert user_name(12) == "peer-12"


def told(text: str) -> dict[str, str]:
    return dict(line.split(" = ") for line in text.splitlines())


def test_the_broker_s_limits_are_those_that_the_exchange_and_the_local_broker_have() -> None:
    limits = told(rabbitmq_conf(4, "mq.m7g.medium"))
    assert limits == {"consumer_timeout": "1800000", "heartbeat": "60", "max_message_size": "524288"}
    assert int(limits["max_message_size"]) == MAX_MESSAGE_BYTES
    assert int(limits["heartbeat"]) == HEARTBEAT_SECONDS
    local = told(rabbitmq.configuration(5672, "secret", later_limits=True))
    assert limits.items() <= local.items()


@pytest.mark.parametrize(
    ("peers", "instance_type", "connections"),
    [
        (50, "mq.m7g.medium", None),
        (51, "mq.m7g.medium", "102"),
        (150, "mq.m7g.medium", "300"),
        (150, "mq.m7g.large", None),
    ],
)
def test_connections_are_raised_where_the_smallest_broker_has_too_few(
    peers: int, instance_type: str, connections: str | None
) -> None:
    assert told(rabbitmq_conf(peers, instance_type)).get("connection_max") == connections
