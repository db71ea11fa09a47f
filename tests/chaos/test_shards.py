"""Case 1 where contributions are cut into shards: the owner of one is killed before or after it has averaged it.

The commit is made by then, so the round's outcome is settled: whoever makes the average makes the undisturbed run's
bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from contract import wire
from tests.chaos.conftest import Prepare, Undisturbed
from tests.chaos.faults import Fault, plan
from tests.chaos.fleet import Fleet
from tests.chaos.test_kills import ENDLESS, LEADER, PACE_SECONDS, ROUND, assert_together, dropped
from tests.fakes.small_run import prepare_run

#: Of 2,003 values: four buckets, hence something to average for each of the four.
SHARDED: dict[str, Any] = {
    "exchange": {"topology": "reduce_scatter", "poll_seconds": 0.3},
    "prepare_run": partial(prepare_run, hidden=100),
}
CASES = [
    (1, "before_shard"),
    pytest.param(1, "after_shard", marks=pytest.mark.slow),
    pytest.param(LEADER, "before_shard", marks=pytest.mark.slow),
    pytest.param(LEADER, "after_shard", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def sharded(undisturbed_run: Undisturbed) -> Fleet:
    """A run in shards when nothing goes wrong."""
    return undisturbed_run(**SHARDED)


def average(fleet: Fleet, shard: int) -> bytes:
    """The payload of a shard's average in ROUND. The frame around it differs by the run's name and the signature."""
    blob = fleet.store.get(fleet.spec.places.shard(ROUND, shard))
    return bytes(wire.decode(blob, expected_elements=None, expected_buffers_bytes=None).payload)


def assert_same_bytes(fleet: Fleet, sharded: Fleet, rank: int, at: str) -> None:
    """Of ROUND, and by whom the killed owner's shard was averaged: by the next one, where it had not come to it; on a
    busy machine the one after may lose patience meanwhile, which must change no bit."""
    made = [event["rank"] for event in fleet.events("shard_averaged", round=ROUND) if event["shard"] == rank]
    assert (rank + 1) % 4 in made if at == "before_shard" else made == []
    assert not fleet.events("shard_conflict")
    for shard in range(4):
        assert len(average(fleet, shard)) > 100
        assert average(fleet, shard) == average(sharded, shard)
    assert fleet.result(ROUND).weights_sha256 == sharded.result(ROUND).weights_sha256


@pytest.mark.parametrize(("rank", "at"), CASES)
def test_the_next_one_averages_the_shard_of_a_dead_owner(prepare: Prepare, sharded: Fleet, rank: int, at: str) -> None:
    fault = Fault(rank=rank, round=ROUND, at=at, do="kill")
    fleet = prepare(epochs=ENDLESS, **SHARDED)
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    assert [c.rank for c in fleet.until_committed(ROUND).contributors] == [0, 1, 2, 3]
    commit = dropped(fleet, rank)
    assert commit.round == ROUND + 1
    assert_same_bytes(fleet, sharded, rank, at)
    after = fleet.until_committed(commit.round + 1)
    assert after.extensions["shards"] == 3

    fleet.start(ranks=[rank], plan=plan(pace_seconds=PACE_SECONDS))
    fleet.until_member(rank, 2)
    fleet.interrupt()
    assert_together(fleet)
    assert fleet.report(rank).incarnation == 2


@pytest.mark.slow
@pytest.mark.parametrize("at", ["before_shard", "after_shard"])
def test_an_owner_that_comes_back_before_it_is_dropped_changes_nothing(
    prepare: Prepare, sharded: Fleet, at: str
) -> None:
    """Nobody takes it for dead, so its shard is averaged after some vain looks, and the next round waits for it."""
    fault = Fault(rank=1, round=ROUND, at=at, do="kill")
    fleet = prepare(membership={"heartbeat_timeout_seconds": 45.0}, **SHARDED)
    fleet.start(plan(fault))
    fleet.until_struck(fault)
    fleet.until(lambda: fleet.exists(fleet.spec.places.result(ROUND)), "the round does not end without the owner")
    assert_same_bytes(fleet, sharded, 1, at)
    fleet.start(ranks=[1])
    assert assert_together(fleet) == sharded.report(0).weights_sha256
    assert [[c.rank for c in commit.contributors] for commit in fleet.commits()[:-1]] == (
        [[0, 1, 2, 3]] * fleet.spec.rounds_limit
    )
