"""What peers declare on the broker, as values."""

from __future__ import annotations

import pytest

from contract import keys
from peer_agent.exchange.inboxes import ANCHOR, INBOX_EXPIRES_MILLISECONDS, TO_OTHERS, inboxes, to_one
from peer_agent.liveness import watched


@pytest.mark.parametrize("peers", [2, 3, 7])
def test_together_all_inboxes_are_bound_to_all_other_exchanges(peers: int) -> None:
    bound = {
        (declared.inbox.name, exchange)
        for declared in (inboxes("run", rank, peers) for rank in range(peers))
        for exchange, key in declared.bindings
        if key == TO_OTHERS
    }
    assert bound == {
        (keys.inbox("run", receiver), keys.peer_exchange("run", sender))
        for receiver in range(peers)
        for sender in range(peers)
        if receiver != sender
    }


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_own_exchange_has_a_binding_that_carries_nothing(rank: int) -> None:
    declared = inboxes("run", rank, 4)
    assert [key for exchange, key in declared.bindings if exchange == declared.own_exchange] == [ANCHOR]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_message_to_one_rank_has_a_key_to_every_other_exchange(rank: int) -> None:
    declared = inboxes("run", rank, 4)
    mine = {exchange for exchange, key in declared.bindings if key == to_one(rank)}
    assert mine == set(declared.senders) - {declared.own_exchange}
    assert {key for _, key in declared.bindings} == {TO_OTHERS, to_one(rank), ANCHOR}


def test_one_that_joined_late_is_bound_and_changes_no_argument() -> None:
    before, after = inboxes("run", 0, 3), inboxes("run", 0, 3, later=[7])
    late = keys.peer_exchange("run", 7)
    assert set(after.bindings) - set(before.bindings) == {(late, TO_OTHERS), (late, to_one(0))}
    assert after.pulse_senders[keys.pulse_exchange("run", 7)] == 7
    assert after.inbox == before.inbox
    newcomer = inboxes("run", 7, 3)
    assert set(newcomer.senders.values()) == {0, 1, 2, 7}
    assert newcomer.inbox.arguments == before.inbox.arguments


@pytest.mark.parametrize("peers", [2, 16])
def test_heartbeats_of_everybody_come_and_the_own_too(peers: int) -> None:
    declared = inboxes("run", 1, peers, "c0ffee")
    assert sorted(declared.pulse_senders.values()) == list(range(peers))
    assert declared.own_pulse in declared.pulse_senders
    assert declared.pulses.name == "peerless.run.pulses.1.c0ffee"


def test_among_many_only_the_watched_and_the_own_heartbeats_come() -> None:
    declared = inboxes("run", 0, 100)
    assert set(declared.pulse_senders.values()) == {0, *watched(0, range(100))}
    assert len(declared.pulse_senders) == 9


@pytest.mark.parametrize("rank", [0, 3])
def test_a_peer_declares_every_exchange_and_its_own_inbox(rank: int) -> None:
    declared = inboxes("run", rank, 4)
    assert declared.senders == {keys.peer_exchange("run", peer): peer for peer in range(4)}
    assert {exchange for exchange, _ in declared.bindings} == set(declared.senders)
    assert declared.inbox.name == keys.inbox("run", rank)
    assert declared.own_exchange == keys.peer_exchange("run", rank)


def test_limits_are_explicit() -> None:
    assert inboxes("run", 0, 4).inbox.arguments == {
        "x-queue-type": "classic",
        "x-max-length": 192,
        "x-max-length-bytes": 67_108_864,
        "x-overflow": "drop-head",
        "x-expires": INBOX_EXPIRES_MILLISECONDS,
    }
    assert inboxes("run", 0, 4).pulses.arguments == {
        "x-queue-type": "classic",
        "x-max-length": 16,
        "x-overflow": "drop-head",
        "x-message-ttl": 5_000,
    }


def test_a_peer_alone_needs_no_exchange() -> None:
    declared = inboxes("run", 0, 1)
    assert (declared.senders, declared.bindings, declared.pulse_senders) == ({}, (), {})
    assert declared.inbox.name == keys.inbox("run", 0)
