"""A peer that joined after the start and wants to go: who stays a member, and what each peer does."""

from __future__ import annotations

import pytest

from contract.records import MemberRef
from peer_agent import signals as s
from peer_agent.attendance import Attendance, Quorum
from peer_agent.membership import Roster


def ref(rank: int, incarnation: int = 1) -> MemberRef:
    return MemberRef(rank=rank, incarnation=incarnation)


def attendance(quorum: Quorum = 1.0, members: int = 4) -> Attendance:
    made = Attendance(Roster(ref(0), 3), quorum)
    made.open([ref(rank) for rank in range(members)])
    return made


def ranks(found: tuple[MemberRef, ...]) -> list[int]:
    return [member.rank for member in found]


def test_whoever_wants_to_go_is_no_member_of_the_next_round() -> None:
    there = attendance()
    there.heard(3, 1, 5)
    assert ranks(there.next_members(5, {0, 1, 2, 3})) == [0, 1, 2, 3]
    there.heard(3, 1, 5, leaving=True)
    assert ranks(there.next_members(5, {0, 1, 2, 3})) == [0, 1, 2]
    assert there.leaving == {3}
    there.open([ref(0), ref(1), ref(2)])
    there.heard(3, 1, 6, leaving=True)
    assert ranks(there.next_members(6, {0, 1, 2})) == [0, 1, 2], "it is not taken in again"
    assert there.leaving == frozenset(), "it is a member no longer"


def test_the_wish_of_an_earlier_process_says_nothing_about_its_successor() -> None:
    there = attendance()
    there.heard(3, 1, 5, leaving=True)
    there.open([ref(0), ref(1), ref(2), ref(3, incarnation=2)])
    assert ranks(there.next_members(5, {0, 1, 2, 3})) == [0, 1, 2, 3]


@pytest.mark.parametrize(("quorum", "kept"), [(4, [0, 1, 2, 3]), (3, [0, 1, 2]), (0.5, [0, 1, 2])])
def test_nobody_goes_below_the_quorum(quorum: Quorum, kept: list[int]) -> None:
    there = attendance(quorum)
    there.heard(3, 1, 5, leaving=True)
    assert ranks(there.next_members(5, {0, 1, 2, 3})) == kept


def test_one_who_wants_to_go_is_kept_rather_than_one_who_is_gone() -> None:
    there = attendance(3)
    there.heard(3, 1, 5, leaving=True)
    there.silent = frozenset({1})
    assert ranks(there.next_members(5, {0, 2, 3})) == [0, 2, 3]


def test_the_last_one_stays() -> None:
    there = attendance(members=1)
    there.heard(0, 1, 5, leaving=True)
    assert ranks(there.next_members(5, {0})) == [0]


def test_a_wish_is_heard() -> None:
    assert s.Heard(3, 1, 5) == s.Heard(3, 1, 5, leaving=False)
