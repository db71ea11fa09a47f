"""Conditional writes and their unclear answers: records, claims, the roster."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import CorruptObject, Superseded
from contract.keys import Place, Places
from contract.records import Commit, Member, MemberRef
from contract.store import Stored
from peer_agent.membership import FIRST_INCARNATION, Roster, claim, ranks_named
from peer_agent.records import Records, new_nonce
from tests.fakes.store import MemoryStore

PLACES = Places(run="run", run_bucket="bucket", peer_buckets=("p0", "p1", "p2"), region="local")
ME, OTHER = MemberRef(rank=0, incarnation=1), MemberRef(rank=1, incarnation=1)


class ForgetfulStore(MemoryStore):
    """Carries writes out, and then says that it did not (a lost answer that a retry met as 412)."""

    forgets = 0

    def create(self, place: Place, data: Any) -> Stored | None:
        stored = super().create(place, data)
        if stored is not None and self.forgets:
            self.forgets -= 1
            return None
        return stored

    def replace(self, place: Place, data: Any, etag: str) -> Stored | None:
        stored = super().replace(place, data, etag)
        if stored is not None and self.forgets:
            self.forgets -= 1
            return None
        return stored


def draft(round: int = 0) -> Commit:
    return Commit(
        run="run", round=round, base_weights={"0": "0" * 64}, contributors=(), members=(ME, OTHER), writer=ME, nonce=""
    )


def test_the_first_commit_wins_and_everyone_else_reads_it() -> None:
    store = MemoryStore()
    mine, theirs = Records(store, PLACES, ME), Records(store, PLACES, OTHER)
    commit, won = mine.create_commit(draft())
    assert won
    assert commit.writer == ME
    assert len(commit.nonce) == 32
    assert theirs.create_commit(draft()) == (commit, False)
    assert theirs.commit(0) == commit
    assert theirs.commit(1) is None


def test_the_own_nonce_after_a_lost_answer_means_won() -> None:
    store = ForgetfulStore()
    store.forgets = 3
    records = Records(store, PLACES, ME)
    commit, won = records.create_commit(draft())
    assert (won, commit.writer) == (True, ME)
    result, won = records.create_result(0, "1" * 64)
    assert (won, result.key) == (True, PLACES.weights("1" * 64).key)
    stop, won = records.create_stop("interrupted", 3, "1" * 64, 0.5)
    assert (won, stop.weights_sha256, stop.validation_loss) == (True, "1" * 64, 0.5)
    assert (records.result(0), records.stop()) == (result, stop)


def test_a_record_of_another_run_is_refused() -> None:
    store = MemoryStore()
    other = Places(run="other", run_bucket="bucket", peer_buckets=("p",), region="local")
    commit, _ = Records(store, other, ME).create_commit(draft())
    store.put(PLACES.commit(0), Commit.from_json(commit.to_json()).to_json().replace(b'"run":"run"', b'"run":"other"'))
    with pytest.raises(CorruptObject, match="of run 'other'"):
        Records(store, PLACES, ME).commit(0)


def test_nonces_differ() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100


def claimed(store: MemoryStore, peer_id: str, nonce: str, rank: int = 1) -> Member:
    return claim(store, PLACES, rank=rank, peer_id=peer_id, nonce=nonce, resources={"cores": 2})


def test_a_free_rank_is_claimed() -> None:
    store = MemoryStore()
    member = claimed(store, "a", "n1")
    assert (member.incarnation, member.peer_id, member.resources) == (FIRST_INCARNATION, "a", {"cores": 2})
    assert Records(store, PLACES, ME).member(1) == member
    assert Records(store, PLACES, ME).member(2) is None


def test_the_same_identity_raises_the_incarnation_and_another_is_refused() -> None:
    store = MemoryStore()
    claimed(store, "a", "n1")
    assert claimed(store, "a", "n2").incarnation == FIRST_INCARNATION + 1
    with pytest.raises(Superseded, match="rank 1 of run run is held by 'a' \\(this process is 'b'\\)"):
        claimed(store, "b", "n3")
    record = Records(store, PLACES, ME).member(1)
    assert record is not None
    assert (record.incarnation, record.nonce) == (FIRST_INCARNATION + 1, "n2")


def test_a_claim_whose_answer_was_lost_is_recognised_by_its_nonce() -> None:
    store = ForgetfulStore()
    store.forgets = 1
    assert claimed(store, "a", "n1").incarnation == FIRST_INCARNATION
    store.forgets = 1
    assert claimed(store, "a", "n2").incarnation == FIRST_INCARNATION + 1


def test_two_processes_of_one_identity_never_hold_the_same_incarnation() -> None:
    store = MemoryStore()
    claimed(store, "a", "n0")
    raced = False

    def race(operation: str, place: Place) -> None:
        nonlocal raced
        if operation == "replace" and not raced:
            raced = True
            assert claimed(store, "a", "rival").incarnation == FIRST_INCARNATION + 1

    store.before = race
    assert claimed(store, "a", "n1").incarnation == FIRST_INCARNATION + 2


def test_the_roster_knows_who_is_missing_and_keeps_the_highest_incarnation() -> None:
    roster = Roster(ME, 3)
    member = Member(run="run", rank=2, peer_id="c", incarnation=2, nonce="n")
    assert roster.missing == (1, 2)
    assert roster.see(member)
    assert not roster.see(member)
    assert not roster.see(Member(run="run", rank=2, peer_id="c", incarnation=1, nonce="n"))
    assert roster.see(Member(run="run", rank=9, peer_id="z", incarnation=1, nonce="n")), "one that joins later"
    assert 9 not in {member.rank for member in roster.members}
    assert roster.missing == (1,)
    assert roster.members == (ME, MemberRef(rank=2, incarnation=2))
    assert roster.supersedes(Member(run="run", rank=0, peer_id="a", incarnation=2, nonce="n"))
    assert not roster.supersedes(Member(run="run", rank=0, peer_id="a", incarnation=1, nonce="n"))


def test_ranks_are_named_as_people_would() -> None:
    assert (ranks_named((3,)), ranks_named((1, 2))) == ("peer 3", "peers 1, 2")
