"""The rights of the peers' accounts, held against the names that contract/keys.py builds."""

from __future__ import annotations

import re

import pytest

from contract import keys
from infra.broker_users import rights, user_name

RUNS = ("demo-20260102", "a", "A_b-9", "x" * 63)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("rank", [0, 1, 9, 10, 149])
def test_a_peer_may_use_what_it_declares(run: str, rank: int) -> None:
    own, inbox = keys.peer_exchange(run, rank), keys.inbox(run, rank)
    may = rights(rank)
    assert all(re.search(may.configure, keys.peer_exchange(run, other)) for other in range(150))
    assert all(re.search(may.read, keys.peer_exchange(run, other)) for other in range(150))
    for pattern in (may.configure, may.read, may.write):
        assert re.search(pattern, inbox)
    assert re.search(may.write, own)


@pytest.mark.parametrize("rank", [0, 1, 14, 100])
def test_it_may_touch_no_other_inbox_and_write_to_no_other_exchange(rank: int) -> None:
    may = rights(rank)
    for other in set(range(150)) - {rank}:
        assert not re.search(may.write, keys.peer_exchange("run", other))
        assert not any(re.search(p, keys.inbox("run", other)) for p in (may.configure, may.read, may.write))


@pytest.mark.parametrize(
    "name",
    ["", "amq.default", "amq.topic", "peerless.run.inbox.1.more", "peerless.a.b.inbox.1", "not.peerless.run.inbox.1"],
)
def test_no_other_name_is_anybody_s(name: str) -> None:
    assert not any(re.search(p, name) for p in (rights(1).configure, rights(1).read, rights(1).write))


def test_accounts_are_named_after_ranks() -> None:
    assert user_name(12) == "peer-12"
