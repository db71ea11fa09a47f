"""Which rank a newcomer gets, and what the run's configuration is with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.errors import ConfigError, CorruptObject
from contract.joining import MAX_RANKS, Joined, find_joined, joined_ranks, take_rank
from contract.keys import Places
from contract.runspec import RunSpec
from contract.store import ObjectStore
from peer_agent.newcomers import Newcomers
from tests.fakes.signed_frames import RULES, frame
from tests.fakes.store import MemoryStore
from tests.unit.test_runspec import spec


def record(rank: int, nonce: str = "a", **changes: object) -> Joined:
    values = {"run": "mnist-1", "samples": 300, "batches": 7, "bucket": f"own-{rank}", "manifest_sha256": "ab" * 32}
    return Joined(**{**values, "rank": rank, "nonce": nonce, **changes})  # type: ignore[arg-type]


def put(store: ObjectStore, places: Places, *ranks: int) -> None:
    for rank in ranks:
        store.put(places.joined(rank), record(rank).to_json())


def test_the_next_free_rank_is_taken() -> None:
    store, places = MemoryStore(), spec().places
    assert [take_rank(store, places, 2, record).rank for _ in range(3)] == [2, 3, 4]
    assert [found.rank for found in joined_ranks(store, places, 2)] == [2, 3, 4]
    assert find_joined(store, places, 5) is None


def test_whoever_is_slower_gets_the_rank_after() -> None:
    store, places = MemoryStore(), spec().places
    asked: list[int] = []

    def slow(rank: int) -> Joined:
        asked.append(rank)
        if rank == 2:
            put(store, places, 2)  # somebody else, meanwhile
        return record(rank, "mine")

    assert take_rank(store, places, 2, slow).rank == 3
    assert asked == [2, 3]


def test_a_record_whose_answer_was_lost_is_ones_own() -> None:
    store, places = MemoryStore(), spec().places

    def lost(rank: int) -> Joined:
        mine = record(rank, "mine")
        store.put(places.joined(rank), mine.to_json())
        return mine

    assert take_rank(store, places, 2, lost).rank == 2


def test_a_run_has_no_more_ranks_than_it_can_have() -> None:
    store, places = MemoryStore(), spec().places
    with pytest.raises(ConfigError, match=f"has {MAX_RANKS} ranks already"):
        take_rank(store, places, MAX_RANKS, record)


def test_a_record_of_another_rank_or_run_is_damage() -> None:
    store, places = MemoryStore(), spec().places
    store.put(places.joined(2), record(3).to_json())
    with pytest.raises(CorruptObject, match="is the record of rank 3"):
        find_joined(store, places, 2)
    store.put(places.joined(2), record(2, run="other").to_json())
    with pytest.raises(CorruptObject, match="of run 'other'"):
        find_joined(store, places, 2)


@pytest.mark.parametrize("wrong", [{"batches": 0}, {"samples": 6}, {"rank": -1}])
def test_nobody_joins_with_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot join"):
        replace(record(2), **wrong)


def test_a_run_with_newcomers_is_as_long_as_it_was_planned() -> None:
    before = spec((5, 3), batches_per_round=2)
    after = before.including([record(2), record(3, batches=40)])
    assert (after.samples, after.batches) == ((640, 384, 300, 300), (5, 3, 7, 40))
    assert after.places.peer_buckets == ("p0", "p1", "own-2", "own-3")
    assert after.state_machines[2:] == ("", "")
    assert (after.rounds_per_epoch, after.rounds_limit) == (before.rounds_per_epoch, before.rounds_limit)
    for round in range(before.rounds_limit):
        assert after.batches_for_round(1, round) == before.batches_for_round(1, round)
    cycled = [index for round in range(4) for index in after.batches_for_round(2, round)]
    assert sorted(cycled) == list(range(7)), "four rounds of two, the last of one: its own partition, once"
    assert RunSpec.from_json(after.to_json()) == after


def test_ranks_follow_each_other() -> None:
    with pytest.raises(ValueError, match="do not follow rank 1"):
        spec().including([record(3)])
    with pytest.raises(ValueError, match="has 3 entries"):
        replace(spec().including([record(2)]), joined=0)


def test_samples_are_limited_by_rank() -> None:
    rules = replace(RULES, samples_max=100, joined={2: 300, 3: 5})
    for rank, most in ((0, 100), (1, 100), (2, 300), (3, 5)):
        assert rules.misfit(frame(rank, samples=most)) is None
        assert rules.misfit(frame(rank, samples=most + 1)) == "samples"


def test_a_rank_may_be_held_once_it_has_joined() -> None:
    store, run = MemoryStore(), spec()
    admitted: list[int] = []
    newcomers = Newcomers(run, 0, store, admitted.append)
    assert newcomers.look() == ()
    assert [newcomers.may_hold(rank) for rank in (0, 1, 2)] == [True, True, False]
    put(store, run.places, 2, 3)
    assert newcomers.look() == (2,)
    assert newcomers.look() == (2, 3), "one more with each look, and those whose claims are still to come"
    assert newcomers.samples == {2: 300, 3: 300}
    assert newcomers.may_hold(3)
