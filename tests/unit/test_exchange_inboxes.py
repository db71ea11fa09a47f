"""What peers declare on the broker, as values."""

from __future__ import annotations

import pytest

from contract import keys
from peer_agent.exchange.inboxes import ANCHOR, INBOX_EXPIRES_MILLISECONDS, TO_OTHERS, inboxes


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


def test_a_peer_alone_needs_no_exchange() -> None:
    declared = inboxes("run", 0, 1)
    assert (declared.senders, declared.bindings) == ({}, ())
    assert declared.inbox.name == keys.inbox("run", 0)
