"""Checkpoints in S3: objects before the record, one record per round whoever writes, and what counts as whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contract.config import EarlyStoppingConfig, OptimizerConfig, SchedulerConfig
from contract.errors import CorruptObject, StoreUnavailable, Superseded
from contract.keys import Place, Places
from contract.records import Checkpoint, MemberRef
from contract.store import Stored
from contract.tensors import Entry, Layout
from peer_agent.checkpoint import Checkpoints, bytes_max, capture_common, restore_common
from peer_agent.convergence import Convergence
from peer_agent.update import Update
from tests.fakes.store import MemoryStore

PLACES = Places(run="run", run_bucket="bucket", peer_buckets=("p0", "p1"), region="local")
ME, OTHER = MemberRef(rank=0, incarnation=1), MemberRef(rank=1, incarnation=2)
LAYOUT = Layout((Entry("w", (5,)),))


def update() -> Update:
    return Update(LAYOUT, np.arange(5, dtype=np.float32), {}, OptimizerConfig())


def convergence(of: Update) -> Convergence:
    return Convergence(of.optimizer, SchedulerConfig(), EarlyStoppingConfig())


WEIGHTS = update().weights_sha256


def state(round: int, rounds_applied: int = 7) -> bytes:
    found = update()
    return capture_common(found, convergence(found), run="run", round=round, rounds_applied=rounds_applied)


def checkpoints(store: MemoryStore, me: MemberRef = ME, own_states: bool = True, **options: Any) -> Checkpoints:
    return Checkpoints(store, PLACES, me, elements=5, own_states=own_states, **options)


def write(store: MemoryStore, round: int, own: tuple[MemberRef, ...] = (ME, OTHER)) -> Checkpoint:
    """A checkpoint with its weights, and the own states of some members."""
    store.put(PLACES.weights(WEIGHTS), b"weights")
    for member in own:
        checkpoints(store, member).write_own(round, b"own of %d" % member.rank)
    return checkpoints(store).write_common(round, WEIGHTS, (ME, OTHER), state(round))


def test_what_is_written_is_what_is_read() -> None:
    store = MemoryStore()
    written = write(store, 20)
    assert (written.round, written.writer, written.members, written.weights_sha256) == (20, ME, (ME, OTHER), WEIGHTS)
    assert written.key == PLACES.checkpoint_common(20).key
    reader = checkpoints(store, OTHER)
    found = reader.latest()
    assert found == written
    blob = reader.read_common(found)
    assert blob == state(20)
    fresh = update()
    assert restore_common(blob, found, fresh, convergence(fresh)) == 7
    assert [reader.read_own(found, rank) for rank in range(3)] == [b"own of 0", b"own of 1", None]


def test_the_record_comes_last() -> None:
    """Whatever ends the writer, no record names what is not there."""
    order: list[tuple[str, str]] = []
    store = MemoryStore(before=lambda operation, place: order.append((operation, place.key)))
    checkpoints(store).write_common(20, WEIGHTS, (ME,), state(20))
    writes = [key for operation, key in order if operation in ("create", "put")]
    assert writes == [PLACES.checkpoint_common(20).key, PLACES.checkpoint(20).key]

    for failing in ("find", "create", "head"):
        for number in range(1, 4):
            store, calls = MemoryStore(), 0

            def fail(operation: str, place: Place) -> None:
                nonlocal calls
                calls += operation == failing  # noqa: B023
                if operation == failing and calls == number:  # noqa: B023
                    raise StoreUnavailable("503")

            store.before = fail
            try:
                checkpoints(store).write_common(20, WEIGHTS, (ME,), state(20))
            except StoreUnavailable:
                store.before = None
                store.put(PLACES.weights(WEIGHTS), b"weights")
                assert checkpoints(store).latest_common() is None
                checkpoints(store).write_common(20, WEIGHTS, (ME,), state(20))
            store.before = None
            assert store.get(PLACES.checkpoint_common(20)) == state(20)


def test_whoever_comes_second_gets_the_record_of_the_first_and_uploads_nothing() -> None:
    store = MemoryStore()
    first = write(store, 20)
    before = store.counts.bytes_out
    assert checkpoints(store, OTHER).write_common(20, WEIGHTS, (ME, OTHER), state(20)) == first
    assert store.counts.bytes_out == before


@pytest.mark.parametrize("at", ["object", "record"])
def test_a_lost_race_returns_the_winners(at: str) -> None:
    """Another writer comes between this one's look and its write; its bits differ, as another processor's may."""
    store, raced, winner = MemoryStore(), False, []
    theirs = state(20, rounds_applied=8)

    def race(operation: str, place: Place) -> None:
        nonlocal raced
        wanted = PLACES.checkpoint_common(20) if at == "object" else PLACES.checkpoint(20)
        if operation == "create" and place == wanted and not raced:
            raced = True
            winner.append(checkpoints(store, OTHER).write_common(20, WEIGHTS, (ME, OTHER), theirs))

    store.before = race
    found = checkpoints(store).write_common(20, WEIGHTS, (ME, OTHER), state(20))
    assert winner == [found]
    assert found.writer == OTHER
    lies_there = store.get(PLACES.checkpoint_common(20))
    assert found.digest == hashlib.sha256(lies_there).hexdigest()
    assert lies_there == (theirs if at == "object" else state(20))


def test_a_writer_that_dies_between_object_and_record_is_finished_by_the_next() -> None:
    store = MemoryStore()
    store.create(PLACES.checkpoint_common(20), state(20, rounds_applied=8))
    found = checkpoints(store, OTHER).write_common(20, WEIGHTS, (ME, OTHER), state(20))
    assert found.writer == OTHER
    assert checkpoints(store).read_common(found) == state(20, rounds_applied=8)


def test_the_state_of_other_weights_in_the_way_is_never_recorded() -> None:
    store = MemoryStore()
    found = update()
    found.adopt(np.ones(5, np.float32), {})
    store.create(
        PLACES.checkpoint_common(20),
        capture_common(found, convergence(found), run="run", round=20, rounds_applied=7),
    )
    with pytest.raises(CorruptObject, match="other weights"):
        checkpoints(store).write_common(20, WEIGHTS, (ME,), state(20))
    assert store.find(PLACES.checkpoint(20)) is None


class ForgetfulStore(MemoryStore):
    """Carries creations out, and then says that it did not (a lost answer that a retry met as 412)."""

    def create(self, place: Place, data: Any) -> Stored | None:
        super().create(place, data)
        return None


def test_the_own_record_after_lost_answers_is_the_own_record() -> None:
    store = ForgetfulStore()
    found = checkpoints(store, nonce=lambda: "mine").write_common(20, WEIGHTS, (ME,), state(20))
    assert (found.writer, found.nonce) == (ME, "mine")
    assert checkpoints(store).read_common(found) == state(20)


def test_a_superseded_process_writes_nothing() -> None:
    store = MemoryStore()

    def fence() -> None:
        raise Superseded("rank 0 was taken over")

    with pytest.raises(Superseded):
        checkpoints(store, fence=fence).write_own(20, b"")
    with pytest.raises(Superseded):
        checkpoints(store, fence=fence).write_common(20, WEIGHTS, (ME,), state(20))
    assert not store.objects


def test_records_are_signed_when_complete() -> None:
    store = MemoryStore()

    def sign(record: Checkpoint) -> Checkpoint:
        assert (record.signature, len(record.nonce), record.writer) == ("", 32, ME)
        return replace(record, signature="ab" * 64)

    assert checkpoints(store, sign=sign).write_common(20, WEIGHTS, (ME,), state(20)).signature == "ab" * 64
    assert Checkpoint.from_json(store.get(PLACES.checkpoint(20))).signature == "ab" * 64


# ----------------------------------------------------------------------------------------------------- the latest


def test_the_latest_is_the_newest_that_is_whole() -> None:
    store = MemoryStore()
    assert checkpoints(store).latest() is None
    assert checkpoints(store).latest_common() is None
    old, new = write(store, 20), write(store, 120)
    assert checkpoints(store).latest() == new
    assert checkpoints(store).latest(before=120) == old
    assert checkpoints(store).latest(before=20) is None
    assert checkpoints(store).latest(before=121) == new
    store.delete([PLACES.checkpoint_common(120)])
    assert checkpoints(store).latest() == checkpoints(store).latest_common() == old
    store.delete([PLACES.weights(WEIGHTS)])
    assert checkpoints(store).latest_common() is None


def test_without_a_members_own_state_a_checkpoint_is_common_only() -> None:
    store = MemoryStore()
    old, new = write(store, 20), write(store, 40, own=(ME,))
    assert checkpoints(store).latest() == old
    assert checkpoints(store).latest_common() == new
    assert checkpoints(store, own_states=False).latest() == new, "there are none to be missing"
    assert checkpoints(store).read_own(new, OTHER.rank) is None


def test_a_process_that_stands_in_for_a_member_leaves_that_members_state() -> None:
    """It has a higher incarnation than the membership says; what its predecessor left is older."""
    store = MemoryStore()
    found = write(store, 20)
    heir = MemberRef(rank=OTHER.rank, incarnation=OTHER.incarnation + 9)
    checkpoints(store, heir).write_own(20, b"of the heir")
    assert checkpoints(store).latest() == found
    assert checkpoints(store).read_own(found, OTHER.rank) == b"of the heir"

    ghost = MemberRef(rank=OTHER.rank, incarnation=OTHER.incarnation - 1)
    new = write(store, 40, own=(ME, ghost))
    assert checkpoints(store).latest() == found, "an earlier incarnation's state is not the member's"
    assert checkpoints(store).latest_common() == new


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"run":"run"', b'"run":"other"'),
        lambda text: text.replace(b'"round":20', b'"round":21'),
        lambda text: text.replace(b"/common", b"/0000-1"),
        lambda text: text.replace(b'"version":1', b'"version":2'),
        lambda text: text[:-1],
    ],
)
def test_a_damaged_record_is_told(damage: Callable[[bytes], bytes]) -> None:
    store = MemoryStore()
    write(store, 20)
    text = store.get(PLACES.checkpoint(20))
    assert damage(text) != text
    store.put(PLACES.checkpoint(20), damage(text))
    with pytest.raises(CorruptObject):
        checkpoints(store).latest()


def test_an_object_that_is_too_large_or_altered_is_not_taken() -> None:
    store = MemoryStore()
    found = write(store, 20)
    store.put(PLACES.checkpoint_common(20), state(20, rounds_applied=9))
    fresh = update()
    with pytest.raises(CorruptObject, match="digest"):
        restore_common(checkpoints(store).read_common(found), found, fresh, convergence(fresh))

    huge = bytes(bytes_max(5) + 1)
    gets = store.counts.bytes_in
    store.put(PLACES.checkpoint_common(20), huge)
    store.put(PLACES.checkpoint_own(20, 0, 1), huge)
    with pytest.raises(CorruptObject, match="more than the state of this model"):
        checkpoints(store).read_common(found)
    with pytest.raises(CorruptObject, match="more than the state of this model"):
        checkpoints(store).read_own(found, 0)
    assert store.counts.bytes_in == gets, "it was not even fetched"
