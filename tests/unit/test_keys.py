"""Places and names: all different, in order, and safe."""

from __future__ import annotations

import pytest

from contract.errors import CorruptObject
from contract.keys import Place, Places, current_place, inbox, peer_exchange, spec_place

PLACES = Places(run="mnist-1", run_bucket="runs", peer_buckets=("p0", "p1"), region="us-east-1", account="123456789012")


def test_every_place_of_a_run_is_a_different_object() -> None:
    made = [
        PLACES.spec(),
        PLACES.stop(),
        PLACES.validation(),
        PLACES.weights("a" * 64),
        PLACES.weights("b" * 64),
        *(PLACES.commit(round) for round in range(3)),
        *(PLACES.result(round) for round in range(3)),
        *(maker(round) for round in range(3) for maker in (PLACES.checkpoint, PLACES.checkpoint_common)),
        *(PLACES.checkpoint_own(t, r, i) for t in range(3) for r in range(2) for i in range(2)),
        *(PLACES.shard(t, i) for t in range(3) for i in range(2)),
        *(PLACES.alive(rank) for rank in range(2)),
        *(maker(rank) for rank in range(2) for maker in (PLACES.member, PLACES.report, PLACES.manifest)),
        *(PLACES.contribution(t, r, i) for t in range(3) for r in range(2) for i in range(2)),
        *(PLACES.items(r, t, i) for t in range(3) for r in range(2) for i in range(2)),
        *(PLACES.gradient(r, t, i, b) for t in range(2) for r in range(2) for i in range(2) for b in range(3)),
        *(PLACES.batch(r, b) for r in range(2) for b in range(3)),
        *(PLACES.events(r, t) for r in range(2) for t in (0, 1_700_000_000_000, 1_700_000_000_001)),
    ]
    assert len(set(made)) == len(made)
    assert len({place.key for place in made}) == len(made), "two peers may share one bucket"
    assert all(place.key.startswith(("runs/mnist-1/", "expiring/mnist-1/")) for place in made)
    assert all(place.owner == "123456789012" for place in made)


def test_batches_and_gradients_lie_in_the_peers_bucket_and_the_rest_in_the_runs() -> None:
    in_peer = [PLACES.manifest(1), PLACES.batch(1, 0), PLACES.items(1, 0, 0), PLACES.gradient(1, 0, 0, 0)]
    in_run = [PLACES.member(1), PLACES.contribution(0, 1, 0), PLACES.report(1), PLACES.commit(0), PLACES.validation()]
    assert {place.bucket for place in in_peer} == {"p1"}
    assert {place.bucket for place in in_run} == {"runs"}


def test_a_contributions_key_says_whose_it_is() -> None:
    assert PLACES.parse_contribution(PLACES.contribution(12, 3, 4).key) == (12, 3, 4)
    assert PLACES.parse_contribution(PLACES.contribution(1_234_567, 0, 10).key) == (1_234_567, 0, 10)
    for key in (PLACES.commit(0).key, PLACES.contributions().key, PLACES.contribution(1, 2, 3).key + "x"):
        with pytest.raises(CorruptObject, match="no place of a contribution"):
            PLACES.parse_contribution(key)


def test_states_of_checkpoints_say_their_round_and_whose_they_are() -> None:
    states = [PLACES.checkpoint_common(20), PLACES.checkpoint_own(20, 1, 3)]
    assert all(place.key.startswith(PLACES.checkpoint_states(20).key) for place in states)
    assert PLACES.checkpoint_states(20).key.startswith(PLACES.checkpoint_states().key)
    assert [PLACES.parse_own(place.key) for place in states] == [None, (20, 1, 3)]
    assert [PLACES.round_of(place.key, PLACES.checkpoint_states()) for place in states] == [20, 20]


def test_keys_of_rounds_are_found_by_their_prefix() -> None:
    for place, prefix in (
        (PLACES.commit(12), PLACES.commits()),
        (PLACES.result(12), PLACES.results()),
        (PLACES.contribution(12, 3, 4), PLACES.contributions()),
        (PLACES.shard(12, 3), PLACES.shards()),
    ):
        assert PLACES.round_of(place.key, prefix) == 12
        assert (prefix.bucket, prefix.owner) == (place.bucket, place.owner)
        for key in (prefix.key, prefix.key + "x", place.key.replace("12", "x"), PLACES.spec().key, "000012.json"):
            with pytest.raises(CorruptObject, match="the place of no round"):
                PLACES.round_of(key, prefix)


def test_another_run_lies_in_the_same_buckets_under_its_own_name() -> None:
    other = PLACES.of_run("mnist-2")
    assert other.commit(3) == Place("runs", "runs/mnist-2/commits/000003.json", "123456789012")
    assert other.of_run("mnist-1") == PLACES
    with pytest.raises(ValueError, match="run name"):
        PLACES.of_run("../mnist-1")


def test_chunks_of_events_come_in_the_order_of_time() -> None:
    assert PLACES.events(3, 1_700_000_000_000).key == "expiring/mnist-1/events/0003/1700000000000.jsonl"
    keys = [PLACES.events(3, moment).key for moment in (5, 1_700_000_000_000, 1_700_000_000_001, 9_999_999_999_999)]
    assert sorted(keys) == keys
    assert all(key.startswith(PLACES.events_of(3).key) for key in keys)
    assert [PLACES.parse_events(3, key) for key in keys[:2]] == [5, 1_700_000_000_000]
    for key in (PLACES.events(4, 5).key, PLACES.events_of(3).key, PLACES.events(3, 5).key + "x", PLACES.report(3).key):
        with pytest.raises(CorruptObject, match="no place of rank 3's events"):
            PLACES.parse_events(3, key)


def test_the_current_run_is_found_without_knowing_any_run() -> None:
    assert current_place("runs", "123456789012") == Place("runs", "deployment/current.json", "123456789012")


def test_listings_come_in_numerical_order() -> None:
    rounds = [0, 9, 10, 99, 100, 999_999]
    assert sorted(PLACES.commit(round).key for round in rounds) == [PLACES.commit(round).key for round in rounds]
    ranks = [0, 9, 10, 999]
    assert sorted(PLACES.member(rank).key for rank in ranks) == [PLACES.member(rank).key for rank in ranks]


def test_the_configuration_is_found_before_the_table_is_known() -> None:
    assert spec_place("mnist-1", "runs", "123456789012") == PLACES.spec()


def test_queue_names() -> None:
    assert peer_exchange("mnist-1", 3) == "peerless.mnist-1.peer.3"
    assert inbox("mnist-1", 3) == "peerless.mnist-1.inbox.3"


@pytest.mark.parametrize("run", ["", "a/b", "../x", "a.b", "a b", "-a", "a*", "a#", "x" * 64, "a\n"])
def test_a_run_name_that_would_change_a_key_is_refused(run: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        Places(run=run, run_bucket="b", peer_buckets=(), region="r")
    with pytest.raises(ValueError, match="run name"):
        spec_place(run, "b")
    with pytest.raises(ValueError, match="run name"):
        inbox(run, 0)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_without_a_bucket_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="has no bucket"):
        PLACES.manifest(rank)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="start at 0"):
        PLACES.commit(-1)


def test_json_round_trip() -> None:
    assert Places.from_dict(PLACES.to_dict()) == PLACES
    damaged = PLACES.to_dict() | {"peer_buckets": "p0"}
    with pytest.raises(CorruptObject, match=r"places\.peer_buckets is str"):
        Places.from_dict(damaged)
    with pytest.raises(CorruptObject, match="run name"):
        Places.from_dict(PLACES.to_dict() | {"run": "../other"})


def test_a_place_reads_as_a_url() -> None:
    assert str(Place("bucket", "a/b")) == "s3://bucket/a/b"


def test_a_gradients_key_says_whose_it_is() -> None:
    place = PLACES.gradient(1, 12, 3, 70)
    assert place.key.startswith(PLACES.gradients(1, 12).key)
    assert PLACES.parse_gradient(1, 12, place.key) == (3, 70)
    for other in (PLACES.gradient(1, 13, 3, 70), PLACES.gradient(0, 12, 3, 70), PLACES.items(1, 12, 3)):
        with pytest.raises(CorruptObject, match="no place of a gradient of rank 1, round 12"):
            PLACES.parse_gradient(1, 12, other.key)
