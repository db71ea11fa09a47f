"""What peers declare on the broker, as values."""

from __future__ import annotations

import pytest

from contract import keys
from peer_agent.exchange.inboxes import INBOX_EXPIRES_MILLISECONDS, inboxes


@pytest.mark.parametrize("peers", [2, 3, 7])
def test_together_all_inboxes_are_bound_to_all_other_exchanges(peers: int) -> None:
    bound = {binding for rank in range(peers) for binding in inboxes("run", rank, peers).bindings}
    assert bound == {
        (keys.inbox("run", receiver), keys.peer_exchange("run", sender))
        for receiver in range(peers)
        for sender in range(peers)
        if receiver != sender
    }


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_one_peer_alone_declares_all_that_its_messages_need(rank: int) -> None:
    declared = inboxes("run", rank, 4)
    reached = {queue for queue, exchange in declared.bindings if exchange == declared.own_exchange}
    assert reached == {keys.inbox("run", other) for other in range(4) if other != rank}
    queues = {queue.name for queue in declared.queues}
    assert all(queue in queues and exchange in declared.exchanges for queue, exchange in declared.bindings)


def test_every_peer_declares_the_same_queues() -> None:
    assert len({str(inboxes("run", rank, 5).queues) for rank in range(5)}) == 1


def test_limits_are_explicit() -> None:
    (arguments, *_) = [queue.arguments for queue in inboxes("run", 0, 4).queues]
    assert arguments == {
        "x-queue-type": "classic",
        "x-max-length": 192,
        "x-max-length-bytes": 67_108_864,
        "x-overflow": "drop-head",
        "x-expires": INBOX_EXPIRES_MILLISECONDS,
    }


def test_a_peer_alone_needs_no_exchange() -> None:
    declared = inboxes("run", 0, 1)
    assert (declared.exchanges, declared.bindings) == ((), ())
    assert [queue.name for queue in declared.queues] == [keys.inbox("run", 0)]
