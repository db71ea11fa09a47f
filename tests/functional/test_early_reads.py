"""Pieces of contributions and averages that are read before anyone has said that they are there."""

from __future__ import annotations

import threading

import pytest

from contract import wire
from contract.errors import CorruptObject, ObjectMissing, StoreUnavailable
from contract.keys import Place
from contract.packing import packing
from contract.records import MemberRef
from peer_agent.early import EarlyReads
from peer_agent.pieces import Pieces
from tests.fakes.shard_round import ROUND, ShardRound, model
from tests.fakes.store import MemoryStore

#: At 4 bits its contributions are cut into four pieces.
ELEMENTS = 4_400_000
MEMBERS = tuple(MemberRef(rank=rank, incarnation=0) for rank in range(4))


@pytest.fixture(scope="module")
def large() -> ShardRound:
    """A round of which all contributions are made, and lie where `large.shared` says."""
    round = ShardRound(model(ELEMENTS, [3]), range(4))
    for rank in range(4):
        round.contribute(rank)
    return round


def put(large: ShardRound, store: MemoryStore, rank: int) -> Pieces:
    pieces = Pieces(store, large.spec.places, packing("none"))
    pieces.put(large.frames[rank], large.peers[rank].sharding(4), MEMBERS[rank], MEMBERS)
    return pieces


def test_whoever_comes_last_has_its_shard_of_all_others_when_its_own_pieces_are_up(large: ShardRound) -> None:
    store = MemoryStore()
    for rank in range(3):
        put(large, store, rank)
    pieces, asked = put(large, store, 3), list[str]()
    found = [pieces.early.take(large.spec.places.piece(ROUND, rank, 0, 3)) for rank in range(3)]
    store.before = lambda operation, place: asked.append(operation)
    assert None not in found
    for rank, early in enumerate(found):
        header = wire.decode_header(large.frames[rank])
        payload, buffers = pieces.shard(header, large.peers[3].sharding(4), 3)
        assert bytes(payload) + bytes(buffers) == early
    assert asked == ["get_range"] * 3, "what was taken is asked for again, and only then"


def test_what_was_read_early_is_not_read_again(large: ShardRound) -> None:
    store = MemoryStore()
    store.objects = dict(large.shared.objects)
    for piece in range(4):
        store.delete([large.spec.places.piece(ROUND, 3, 0, piece)])
    pieces, asked = put(large, store, 3), list[str]()
    header, sharding = wire.decode_header(large.frames[1]), large.peers[3].sharding(4)
    pieces.early.look_again()  # waits for nothing, asks for nothing that is there
    store.before = lambda operation, place: asked.append(place.key)
    payload, buffers = pieces.shard(header, sharding, 3)
    assert header.table is not None
    header.table[3].check(payload, buffers)
    assert asked == []
    pieces.shard(header, sharding, 2)
    assert asked == [large.spec.places.piece(ROUND, 1, 0, 2).key], "another's shard, taken over, was not looked for"


def test_early_bytes_that_are_not_the_committed_ones_are_read_once_more(large: ShardRound) -> None:
    store = MemoryStore()
    store.objects = dict(large.shared.objects)
    for piece in range(4):
        store.delete([large.spec.places.piece(ROUND, 3, 0, piece)])
    place = large.spec.places.piece(ROUND, 1, 0, 3)
    good = store.get(place)
    store.put(place, bytes(len(good)))
    pieces, header = put(large, store, 3), wire.decode_header(large.frames[1])
    pieces.early.look_again()
    early = pieces.early.take(place)
    assert early is not None
    assert not any(early)
    pieces.early.look(ROUND, place, lambda: early)
    store.put(place, good)
    payload, buffers = pieces.shard(header, large.peers[3].sharding(4), 3)
    assert bytes(payload) + bytes(buffers) == good
    pieces.early.look(ROUND, place, lambda: early)
    store.put(place, early)
    with pytest.raises(CorruptObject, match="does not match"):
        pieces.shard(header, large.peers[3].sharding(4), 3)


def test_a_contribution_is_whole_again_from_its_parts_or_refused(large: ShardRound) -> None:
    store = MemoryStore()
    store.objects = dict(large.shared.objects)
    pieces, sharding = Pieces(store, large.spec.places, packing("none")), large.peers[0].sharding(4)
    leading = store.get(large.place(2))
    assert pieces.whole(leading, sharding) == large.frames[2]
    with pytest.raises(CorruptObject, match="cut otherwise"):
        pieces.whole(leading, large.peers[0].sharding(3))
    place = large.spec.places.piece(ROUND, 2, 0, 1)
    store.put(place, store.get(place)[:-1] + b"\0")
    with pytest.raises(CorruptObject, match="does not match its frame's table"):
        wire.decode(pieces.whole(leading, sharding), expected_elements=None, expected_buffers_bytes=None)
    store.put(place, store.get(place)[:-1])
    with pytest.raises(CorruptObject, match="bytes, but has"):
        wire.decode(pieces.whole(leading, sharding), expected_elements=None, expected_buffers_bytes=None)
    store.delete([place])
    with pytest.raises(ObjectMissing):
        pieces.whole(leading, sharding)


def test_pieces_are_there_before_what_names_them() -> None:
    round, created = ShardRound(model(5_000), range(3)), list[str]()
    round.stores[1].before = lambda operation, place: created.append(place.key) if operation == "create" else None
    round.contribute(1)
    assert created == [round.spec.places.piece(ROUND, 1, 0, 0).key, round.place(1).key]


def test_a_read_that_fails_is_no_answer_and_is_tried_again_when_asked_to() -> None:
    early, place, answers = EarlyReads(), Place("bucket", "key"), [StoreUnavailable("S3 is away"), ObjectMissing("no")]
    done = threading.Semaphore(0)

    def read() -> bytes:
        try:
            if answers:
                raise answers.pop(0)
            return b"there"
        finally:
            done.release()

    for _ in range(2):
        early.look(3, place, read)
        assert early.take(place) is None
    early.look(3, place, read)
    assert early.take(place) == b"there"
    assert early.take(place) is None, "it is taken once"
    early.look(3, place, read)
    early.forget_through(3)
    assert early.take(place) is None
    early.close()


def test_averages_that_are_there_early_are_not_asked_for_again() -> None:
    round = ShardRound(model(5_000), range(3))
    commit = round.commit()
    for rank in range(2):
        reduction = round.reduction(rank, commit)
        round.peers[rank].publish(reduction, rank, round.peers[rank].average(reduction, rank, round.base))
    last, reduction = round.peers[2], round.reduction(2, commit)
    made = last.publish(reduction, 2, last.average(reduction, 2, round.base))
    found = [last._pieces.early._looks[last.place(ROUND, shard)].found.result() for shard in range(2)]
    assert None not in found
    asked = list[str]()
    round.stores[2].before = lambda operation, place: asked.append(place.key)
    gathered = last.gather(reduction, round.base, {2: made.frame})
    assert asked == []
    assert gathered.remade == ()
