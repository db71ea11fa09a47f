"""A round in shards over an object store: bytes per peer, takeovers, and averages that are missing or forged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from contract import models, wire
from contract.errors import CorruptObject, ObjectMissing
from contract.keys import Place
from contract.modelspec import ModelSpec
from contract.records import MemberRef
from contract.sharding import Sharding
from contract.tensors import Layout
from peer_agent.early import FEW
from peer_agent.exchange.topology import topology
from peer_agent.reduction import Gathered
from tests.fakes.shard_round import ROUND, ShardRound, model
from tests.fakes.store import MemoryStore

#: 6 MB of float32, 0.76 MB at 4 bits, without buffers; and a model whose BatchNorm makes 6% of that.
PLAIN, MOBILENET = model(1_500_000), ModelSpec(name="mobilenet_v3_small", classes=10, channels=3, image_size=32)


def gathered(round: ShardRound, rank: int, commit: Any, made: dict[int, bytes] | None = None) -> Gathered:
    return round.peers[rank].gather(round.reduction(rank, commit), round.base, made or {})


@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("peers", [4, 8, 16])
def test_bytes_per_peer_stay_flat(peers: int, batchnorm: bool) -> None:
    """Real contributions, averages and gathering; everything that any peer sends to or receives from S3 is counted."""
    round = ShardRound(Layout.of(models.build(MOBILENET)) if batchnorm else PLAIN, range(peers))
    commit = round.commit()
    leader = round.peers[1]
    for rank in round.members:
        if rank != 1:
            leader.confirm(wire.decode_header(round.frames[rank]))
    made = {shard: averaged.frame for shard, averaged in round.reduce(commit).items()}
    gradients = {gathered(round, rank, commit, {rank: made[rank]}).gradient.tobytes() for rank in round.members}
    assert len(gradients) == 1
    size = round.compressed_bytes
    sent = [round.stores[rank].counts.bytes_out / size for rank in round.members]
    received = [round.stores[rank].counts.bytes_in / size for rank in round.members]
    assert max(*sent, *received) <= 2.2  # what must be
    with_buffers = size + round.layout.buffers_bytes
    assert max(*sent, *received) * size / with_buffers < 2.0  # what is aimed at
    expected = topology("reduce_scatter").traffic(peers, with_buffers)
    assert np.allclose(sent, expected.sent / size, rtol=0.02)
    assert np.allclose(received, expected.received / size, rtol=0.03)
    gets = [round.stores[rank].counts.gets for rank in round.members]
    too_early = peers - 1 if peers <= FEW else 0
    assert max(gets) <= 3 * (peers - 1) + 2 + too_early


def test_error_and_values_are_those_of_the_mean() -> None:
    round = ShardRound(model(200_000), range(4))
    commit = round.commit()
    made = round.reduce(commit)
    mean = round.whole_average(commit)
    found = gathered(round, 0, commit).gradient
    lost = np.linalg.norm(found - mean) / np.linalg.norm(mean)
    reported = np.sqrt(np.mean([averaged.relative_error**2 for averaged in made.values()]))
    assert lost == pytest.approx(reported, rel=0.02)
    assert 0.1 < lost < 0.25


def test_a_takeover_finds_the_place_taken_or_makes_the_same_bytes() -> None:
    round = ShardRound(model(5_000, [4]), range(4))
    commit = round.commit([0, 1, 3])
    heir = next(topology("reduce_scatter").makers(2, round.members, {0, 1, 3}))
    assert heir == 3
    reduction = round.reduction(heir, commit)
    assert round.peers[heir].listed(ROUND, 4) == frozenset()
    averaged = round.peers[heir].average(reduction, 2, round.base)
    made = round.peers[heir].publish(reduction, 2, averaged)
    assert (made.first, made.conflict, made.frame) == (True, None, averaged.frame)
    assert round.peers[0].listed(ROUND, 4) == {2}
    late = round.peers[2].average(round.reduction(2, commit), 2, round.base)
    again = round.peers[2].publish(round.reduction(2, commit), 2, late)
    assert (again.first, again.conflict, again.frame) == (False, None, averaged.frame)


def test_signatures_differ_and_nothing_else() -> None:
    def signer(letter: bytes) -> Any:
        return lambda frame: frame[:176] + letter * 64 + frame[240:]

    round = ShardRound(model(5_000), range(3))
    commit = round.commit()
    first, second = (round.peer(0, sign=signer(letter)) for letter in (b"a", b"b"))
    reduction = first.reduction(commit, 3)
    averaged = first.average(reduction, 0, round.base)
    mine = first.publish(reduction, 0, averaged)
    theirs = second.publish(reduction, 0, second.average(reduction, 0, round.base))
    assert (theirs.first, theirs.conflict) == (False, None)
    assert theirs.frame == mine.frame != averaged.frame
    stored = wire.decode_header(round.shared.objects["run", first.place(ROUND, 0).key])
    assert stored.signature == b"a" * 64


def test_a_wrong_average_by_a_member_counts_for_all_and_is_evidence_against_its_maker() -> None:
    round = ShardRound(model(5_000), range(3))
    commit = round.commit()
    liar, honest = round.peers[1], round.peers[2]
    reduction = liar.reduction(commit, 3)
    wrong = liar.average(dataclasses.replace(reduction, contributors=commit.contributors[1:]), 1, round.base)
    liar.publish(reduction, 1, wrong)
    made = honest.publish(honest.reduction(commit, 3), 1, honest.average(reduction, 1, round.base))
    assert made.frame == wrong.frame
    assert made.conflict is not None
    assert made.conflict.digest == wire.decode_header(wrong.frame).digest
    found = {gathered(round, rank, commit).gradient.tobytes() for rank in range(3)}
    assert len(found) == 1


def spoil(round: ShardRound, shard: int, how: str) -> None:
    for peer in round.peers.values():
        peer.forget_through(ROUND)  # whoever looked for it early may have the sound one
    key = ("run", round.peers[0].place(ROUND, shard).key)
    stored = round.shared.objects[key]
    if how == "missing":
        del round.shared.objects[key]
    elif how == "damaged":
        round.shared.objects[key] = stored[:-5] + bytes([stored[-5] ^ 4]) + stored[-4:]
    elif how == "truncated":
        round.shared.objects[key] = stored[:300]
    elif how == "of another shard":
        round.shared.objects[key] = round.shared.objects["run", round.peers[0].place(ROUND, 0).key]
    elif how == "no payload":
        frame = wire.decode(stored, expected_elements=None, expected_buffers_bytes=None)
        round.shared.objects[key] = wire.encode(frame.header, b"\xff" * frame.payload.nbytes, frame.buffers)


@pytest.mark.parametrize("how", ["missing", "damaged", "truncated", "of another shard", "no payload"])
def test_an_average_of_no_use_is_computed_by_whoever_needs_it(how: str) -> None:
    round = ShardRound(model(5_000, [4, 9]), range(3))
    commit = round.commit()
    round.reduce(commit)
    unharmed = gathered(round, 0, commit)
    spoil(round, 2, how)
    for rank in range(3):
        found = gathered(round, rank, commit)
        assert found.gradient.tobytes() == unharmed.gradient.tobytes()
        assert all(np.array_equal(found.buffers[name], value) for name, value in unharmed.buffers.items())
        assert found.remade == (2,)
    if how != "missing":
        honest = round.peers[1]
        reduction = honest.reduction(commit, 3)
        averaged = honest.average(reduction, 2, round.base)
        made = honest.publish(reduction, 2, averaged)
        assert (made.first, made.frame) == (False, averaged.frame)
        assert (made.conflict is not None) == (how == "no payload"), "sound frames are evidence, whatever is in them"


def test_an_average_by_no_member_is_of_no_use() -> None:
    round = ShardRound(model(5_000), range(3))
    commit = round.commit()
    round.reduce(commit)
    unharmed = gathered(round, 0, commit)
    forged = round.peer(0, genuine=lambda header: header.shard != 1)
    found = forged.gather(forged.reduction(commit, 3), round.base, {})
    assert found.remade == (1,)
    assert found.gradient.tobytes() == unharmed.gradient.tobytes()


def test_what_is_at_hand_is_not_fetched() -> None:
    round = ShardRound(model(50_000), range(4))
    commit = round.commit()
    store = round.stores[2]
    before = store.counts.bytes_in
    made = round.peers[2].average(round.reduction(2, commit), 2, round.base)
    quarter = round.compressed_bytes / 4
    assert store.counts.bytes_in - before < 3 * (quarter + 800)
    round.reduce(commit)
    round.peers[2] = round.peer(2)  # one that has found no average early
    before = store.counts.bytes_in
    found = gathered(round, 2, commit, {2: made.frame})
    assert found.bytes_in == store.counts.bytes_in - before < 3 * (quarter + 400)


def test_the_leader_sees_a_contribution_from_its_leading_part() -> None:
    round = ShardRound(model(50_000), range(4))
    commit = round.commit()
    header = wire.decode_header(wire.header_part(round.frames[3]))
    leader, store = round.peers[0], round.stores[0]
    before = store.counts.bytes_in
    assert leader.confirm(header) == store.counts.bytes_in - before == header.header_bytes < 600
    member = MemberRef(rank=3, incarnation=0)
    assert leader.find(ROUND, member, 4) == leader.fetch(ROUND, commit.contributors[3], 4) == header
    assert leader.find(ROUND + 1, member, 4) is None
    with pytest.raises(ObjectMissing):
        leader.confirm(dataclasses.replace(header, rank=2, incarnation=5))
    for other in ({"samples": 9}, {"digest": "00" * 32}, {"signature": b"s" * 64}, {"extensions": ()}):
        with pytest.raises(CorruptObject, match="not the frame that was announced"):
            leader.confirm(dataclasses.replace(header, **dict(other)))


def test_a_commit_that_describes_something_else_is_refused() -> None:
    round = ShardRound(model(50_000), range(4))
    listed = round.commit().contributors[3]
    for change in ({"digest": "00" * 32}, {"samples": 5}, {"key": "expiring/r/contributions/x"}, {"rank": 2}):
        with pytest.raises(CorruptObject, match="is not the contribution that commit 7 describes"):
            round.peer(0).fetch(ROUND, dataclasses.replace(listed, **dict(change)), 4)
    with pytest.raises(ObjectMissing):
        round.peer(0).fetch(ROUND, dataclasses.replace(listed, incarnation=1), 4)
    for shards in (3, 5):
        with pytest.raises(CorruptObject):
            round.peer(0).fetch(ROUND, listed, shards)
    assert round.peer(0).fetch(ROUND, listed, 4).rank == 3


def test_a_contribution_to_other_weights_is_left_out() -> None:
    round = ShardRound(model(5_000), range(2))
    commit = dataclasses.replace(round.commit(), base_weights={"0": "cd" * 32})
    average = round.peer(0).average(round.reduction(0, commit), 0, round.base)
    assert average.left_out == (0, 1)


def test_a_whole_frame_has_no_shards_to_read() -> None:
    """What all_gather stores, at a place where shards are looked for: too short, or without a table."""
    round = ShardRound(model(5_000), range(4))
    header = dataclasses.replace(round.contribute(1), extensions=())
    place = round.place(2)
    for payload in (b"", bytes(5_000)):
        round.shared.objects[place.bucket, place.key] = wire.encode(header, payload)
        with pytest.raises(CorruptObject):
            round.peers[0].find(ROUND, MemberRef(rank=2, incarnation=0), 4)


def test_headers_are_fetched_once_and_forgotten_with_their_round() -> None:
    round = ShardRound(model(5_000), range(3))
    commit = round.commit()
    asked: list[str] = []

    def before(operation: str, place: Place) -> None:
        asked.append(operation)

    round.stores[0] = MemoryStore(before=before)
    round.stores[0].objects = round.shared.objects
    reader = round.peer(0, kept=lambda digest: None)
    for count in (3 * 3, 3):  # header (one of them in two parts, others with none to add), then the shard
        asked.clear()
        reader.average(reader.reduction(commit, 3), 1, round.base)
        assert len(asked) == count
    reader.forget_through(ROUND)
    asked.clear()
    reader.average(reader.reduction(commit, 3), 1, round.base)
    assert len(asked) == 3 * 3


def test_shardings_are_kept_for_one_number_of_members() -> None:
    round = ShardRound(model(5_000), range(3))
    reader = round.peers[0]
    assert reader.sharding(3) is reader.sharding(3)
    assert isinstance(reader.sharding(4), Sharding)
