"""What stays in S3 while a run goes on, and for how long: played by several peers whose turns rotate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from contract.errors import CorruptObject, ObjectMissing, WeightsMismatch
from contract.keys import Places
from contract.records import Checkpoint, Commit, Contributor, MemberRef, Result
from contract.tensors import Entry, Layout, encode_weights, weights_hash
from peer_agent.barrier import Retention, WeightsShelf
from tests.fakes.store import MemoryStore

PEERS = 3
PLACES = Places(run="run", run_bucket="bucket", peer_buckets=("p0", "p1", "p2"), region="local")
MEMBERS = tuple(MemberRef(rank=rank, incarnation=1) for rank in range(PEERS))
LAYOUT = Layout((Entry("w", (4,)),))


def sha(round: int) -> str:
    """The name of the weights that a round starts from."""
    return f"W{round}-".ljust(64, "0")


class Run:
    """A run of which only the objects are real. Each peer keeps its account; the best weights are `best(round)`."""

    def __init__(self, every: int, best: dict[int, int] | None = None) -> None:
        self.store = MemoryStore()
        self.every, self.best_at = every, best or {}
        self.best = 0
        self.peers: dict[int, Retention] = {}
        self.dead: set[int] = set()
        self.skipped: set[int] = set()  # rounds whose checkpoint nobody comes to record
        for rank in range(PEERS):
            self.join(rank)
        self.store.put(PLACES.weights(sha(0)), b"")

    def join(self, rank: int) -> None:
        me = MEMBERS[rank]
        shelf = WeightsShelf(self.store, PLACES, LAYOUT, me)
        self.peers[rank] = Retention(me, shelf, sha(0), every_rounds=self.every)
        self.dead.discard(rank)

    def play(self, first: int, end: int, left_out: int | None = None) -> None:
        for round in range(first, end):
            self.play_round(round, left_out)

    def play_round(self, round: int, left_out: int | None = None) -> None:
        if self.every and round and round % self.every == 0:
            self.checkpoint(round)
        members = [member for member in MEMBERS if member.rank not in self.dead]
        for member in members:
            self.store.put(PLACES.contribution(round, member.rank, member.incarnation), b"")
            self.store.put(PLACES.piece(round, member.rank, member.incarnation, 0), b"")
        self.store.put(PLACES.shard(round, 0), b"")
        writer = members[(round + 1) % len(members)]
        self.store.put(PLACES.weights(sha(round + 1)), b"")
        self.best = self.best_at.get(round, self.best)
        commit = Commit(
            run="run",
            round=round,
            base_weights={"0": sha(round)},
            contributors=tuple(
                Contributor(rank=m.rank, incarnation=1, key="k", digest="d", samples=1)
                for m in members
                if m.rank != left_out
            ),
            members=tuple(members),
            writer=writer,
            nonce="n",
        )
        place = PLACES.weights(sha(round + 1))
        result = Result(
            run="run", round=round, weights_sha256=sha(round + 1), bucket=place.bucket, key=place.key, writer=writer,
            nonce="n",
        )  # fmt: skip
        for member in members:
            self.peers[member.rank].applied(commit)
        for member in members:
            self.peers[member.rank].passed(result, sha(self.best) if self.best else "")

    def checkpoint(self, round: int) -> None:
        for member in MEMBERS:
            if member.rank not in self.dead:
                self.store.put(PLACES.checkpoint_own(round, member.rank, 1), b"")
        self.store.put(PLACES.checkpoint_common(round), b"")
        if round in self.skipped:
            return
        record = Checkpoint(
            run="run", round=round, weights_sha256=sha(round), key=PLACES.checkpoint_common(round).key, digest="d",
            members=MEMBERS, writer=MEMBERS[0], nonce="n",
        )  # fmt: skip
        self.store.create(PLACES.checkpoint(round), record.to_json())

    def rounds(self, part: str) -> list[int]:
        prefix = f"expiring/run/{part}/"
        keys = self.store.list("bucket", prefix)
        return sorted({int(key.removeprefix(prefix).split("/")[0]) for key in keys})

    @property
    def weights(self) -> list[int]:
        keys = self.store.list("bucket", "expiring/run/weights/")
        return sorted(int(key.rpartition("/")[2].partition("-")[0][1:]) for key in keys)


def test_everything_since_the_last_but_one_checkpoint_stays_and_nothing_older() -> None:
    run = Run(every=7)
    run.play(0, 36)
    assert run.rounds("checkpoints") == [21, 28, 35]
    assert run.rounds("contributions") == list(range(21, 36)), (
        "somebody may still be in the round before the checkpoint"
    )
    run.play(36, 38)
    assert run.rounds("checkpoints") == [28, 35]
    assert run.rounds("contributions") == run.rounds("shards") == list(range(28, 38))
    assert run.weights == [0, *range(28, 39)]
    assert [PLACES.parse_checkpoint(k) for k in run.store.list("bucket", PLACES.checkpoints().key)] == [
        7,
        14,
        21,
        28,
        35,
    ]


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_storage_stays_bounded_for_every_interval(every: int) -> None:
    run, most = Run(every=every), 0
    for round in range(60):
        run.play_round(round)
        most = max(most, len(run.rounds("contributions")))
        last = round - round % every
        needed = range(max(0, last - every), round + 1)
        assert set(needed) <= set(run.rounds("contributions")), "the last but one checkpoint can be replayed from"
        assert {0, *needed, round + 1} <= set(run.weights)
    assert most <= 3 * every + 3
    assert len(run.weights) <= 3 * every + 5


def test_before_the_second_checkpoint_nothing_goes() -> None:
    run = Run(every=20)
    run.play(0, 39)
    assert run.rounds("contributions") == list(range(39))
    assert run.weights == list(range(40))
    assert run.store.counts.deletes == 0


def test_without_checkpoints_two_rounds_stay() -> None:
    run = Run(every=0)
    for round in range(24):
        run.play_round(round)
        assert len(run.rounds("contributions")) <= 3
        assert {round, round - 1} - {-1} <= set(run.rounds("contributions"))
        assert len(run.weights) <= 5
        assert {0, round, round + 1} <= set(run.weights)
    assert run.store.counts.deletes <= 12


def test_the_best_weights_stay_as_long_as_a_kept_checkpoint_may_call_them_so() -> None:
    run = Run(every=5, best={2: 2, 21: 21})
    run.play(0, 21)
    assert 2 in run.weights
    run.play(21, 30)
    assert {2, 21} <= set(run.weights), "the checkpoints of 15 and 20 know the old ones"
    run.play(30, 33)
    assert 2 not in run.weights
    assert 21 in run.weights


def test_a_checkpoint_that_was_never_recorded_keeps_the_earlier_ones() -> None:
    run = Run(every=5)
    run.skipped = {10, 15}
    run.play(0, 20)
    assert run.rounds("contributions")[0] == 0, "only the checkpoint of round 5 is known"
    run.play(20, 23)
    assert run.rounds("contributions")[0] == run.rounds("checkpoints")[0] == 5
    run.play(23, 28)
    assert run.rounds("contributions")[0] == 20


def test_what_no_commit_took_and_what_a_dead_writer_left_goes_too() -> None:
    run = Run(every=5)
    run.play(0, 11, left_out=2)
    delete, run.store.delete = run.store.delete, lambda places: None  # type: ignore[method-assign]
    run.play(11, 13)  # the writer of this sweep dies before it deletes
    run.store.delete = delete  # type: ignore[method-assign]
    run.dead.add(1)
    run.play(13, 18)
    assert run.rounds("contributions") == list(range(10, 18))
    assert run.weights == [0, *range(10, 19)]


def test_one_that_comes_back_with_an_empty_account_deletes_nothing_that_it_does_not_know() -> None:
    run = Run(every=5)
    run.play(0, 14)
    for rank in range(PEERS):
        run.join(rank)
    run.store.put(PLACES.weights(sha(999)), b"")  # of a round to come, for all that this process knows
    run.play(14, 18)
    assert run.rounds("contributions") == list(range(10, 18))
    assert {5, 6, 7, 8, 9, 999} <= set(run.weights), "nobody knows their rounds any more"


def test_a_checkpoint_that_one_hears_of_is_not_read_again() -> None:
    run = Run(every=5)
    run.play(0, 11)
    known = [Checkpoint.from_json(run.store.get(PLACES.checkpoint(round))) for round in (5, 10)]
    for retention in run.peers.values():
        for record in reversed(known):
            retention.checkpointed(record)
        retention.checkpointed(dataclasses.replace(known[1], run="earlier", round=8))
    read: list[str] = []
    run.store.before = lambda operation, place: read.append(place.key) if operation == "find" else None
    run.play(11, 13)
    assert read == []
    assert run.rounds("contributions")[0] == 5


# ------------------------------------------------------------------------------------------- weights of earlier runs


def test_the_best_weights_of_an_earlier_run_are_brought_along_once() -> None:
    store = MemoryStore()
    flat = np.arange(4, dtype=np.float32)
    name = weights_hash(LAYOUT, flat, {})
    blob = encode_weights(LAYOUT, flat, {}, run="first", round=3, rank=0, incarnation=1)
    first, second = PLACES.of_run("first"), PLACES.of_run("second")
    store.put(first.weights(name), blob)
    shelf = WeightsShelf(store, PLACES, LAYOUT, MEMBERS[0])
    np.testing.assert_array_equal(shelf.get(name, first)[0], flat)
    with pytest.raises(ObjectMissing):
        shelf.get(name)
    shelf.bring(name, [second, first])
    np.testing.assert_array_equal(shelf.get(name)[0], flat)
    written = store.counts.bytes_out
    shelf.bring(name, [second, first])
    assert store.counts.bytes_out == written
    with pytest.raises(ObjectMissing, match="no earlier run"):
        shelf.bring("0" * 64, [second, first])
    store.put(second.weights("1" * 64), blob)
    with pytest.raises((CorruptObject, WeightsMismatch)):
        shelf.bring("1" * 64, [second, first])
