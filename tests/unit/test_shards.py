"""Averages of shards: the same bytes by whoever makes them, and together what everyone would have averaged alone."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import wire
from contract.codec import F32, NAMES
from contract.errors import CorruptObject, NonFiniteGradient, ObjectMissing
from contract.records import Commit
from contract.robust import aggregation
from contract.seeds import public_seed
from contract.tensors import Buffers, unpack_buffers
from peer_agent.shards import READS_AHEAD, ahead, assemble, fill, open_average
from tests.fakes.shard_round import ROUND, ShardRound, gradient_of, model

AGGREGATIONS = [{"name": "mean"}, {"name": "median"}, {"name": "trimmed_mean", "byzantine": 1}]


def whole(round: ShardRound, commit: Commit) -> tuple[F32, Buffers]:
    """What all_gather makes of the same contributions."""
    total = sum(c.samples for c in commit.contributors)
    decoder = round.peers[round.members[0]].sharding(round.shards).codec
    with aggregation(round.spec.config.aggregation, round.layout, total) as aggregator:
        for contributor in commit.contributors:
            frame = wire.decode(round.frames[contributor.rank], expected_elements=None, expected_buffers_bytes=None)
            buffers = unpack_buffers(round.layout, frame.buffers)
            aggregator.add(frame.payload, decoder, buffers, contributor.samples)
        return aggregator.result(round.base)


@settings(max_examples=80, deadline=None)
@given(
    members=st.sets(st.integers(0, 11), min_size=1, max_size=7).map(sorted),
    elements=st.integers(1, 4_000),
    channels=st.lists(st.integers(1, 40), max_size=4),
    name=st.sampled_from(NAMES),
    how=st.sampled_from(AGGREGATIONS),
    data=st.data(),
)
def test_averages_together_are_what_all_gather_makes_quantised_once_more(
    members: list[int], elements: int, channels: list[int], name: str, how: dict[str, Any], data: st.DataObject
) -> None:
    how = how if len(members) >= 3 else {"name": "mean"}
    round = ShardRound(model(elements, channels), members, name, aggregation=how)
    listed = data.draw(st.sets(st.sampled_from(members), min_size=1).map(sorted))
    commit = round.commit(listed)
    made = round.reduce(commit)
    average, buffers = whole(round, commit)
    reduction = round.reduction(members[0], commit)
    sharding, inner = reduction.sharding, reduction.sharding.inner
    frames = [open_average(reduction, shard, made[shard].frame) for shard in range(round.shards)]
    gradient, found = assemble(sharding, frames)
    for shard, part in enumerate(sharding.codec.slices):
        seed = public_seed(round.spec.config.seed, "average", ROUND, shard)
        again = inner.decode(inner.encode(average[part], seed), part.stop - part.start)
        assert gradient[part].tobytes() == again.tobytes()
        norm = np.linalg.norm(average[part].astype(np.float64))
        lost = np.linalg.norm(again.astype(np.float64) - average[part])
        assert made[shard].relative_error == pytest.approx(lost / norm if norm else 0.0, rel=1e-5)
    if name == "none":
        assert gradient.tobytes() == average.tobytes()
    assert found.keys() == buffers.keys()
    assert all(found[key].tobytes() == buffers[key].tobytes() for key in buffers)
    gathered = round.peers[members[-1]].gather(round.reduction(members[-1], commit), round.base, {})
    assert gathered.gradient.tobytes() == gradient.tobytes()
    assert gathered.remade == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", AGGREGATIONS, ids=lambda how: how["name"])
def test_whoever_makes_an_average_makes_the_same_bytes(name: str, how: dict[str, Any]) -> None:
    round = ShardRound(model(3_000, [7, 20]), [0, 2, 3, 5], name, aggregation=how)
    commit = round.commit([0, 3, 5])
    observer = round.peer(9, kept=lambda digest: None)
    for shard in range(4):
        made = {
            peer.average(peer.reduction(commit, 4), shard, round.base) for peer in (*round.peers.values(), observer)
        }
        (average,) = made
        header = wire.decode_header(average.frame)
        assert (header.rank, header.incarnation, header.signature) == (0, 0, bytes(64))
        assert (header.kind, header.shard, header.shards) == (wire.Kind.SHARD, shard, 4)
        assert (header.samples, header.base_weights, header.loss) == (1 + 4 + 6, "ab" * 32, None)


def test_shards_rounds_and_runs_are_rounded_with_different_numbers() -> None:
    round = ShardRound(model(3_000), [0, 1])
    reduction = round.reduction(0, round.commit())
    headers = [
        reduction.header(0, 3),
        reduction.header(1, 3),
        dataclasses.replace(reduction, round=8).header(0, 3),
        dataclasses.replace(reduction, seed=4).header(0, 3),
    ]
    assert len({header.seed for header in headers}) == 4
    assert dataclasses.replace(reduction, run="other").header(0, 3).seed == headers[0].seed, "same seed, same bits"


def test_the_second_quantisation_is_reported_as_it_is() -> None:
    errors = {name: ShardRound(model(20_000), range(4), name) for name in NAMES}
    found = {name: max(a.relative_error for a in r.reduce(r.commit()).values()) for name, r in errors.items()}
    assert found["none"] == 0.0
    assert 0 < found["fp16"] < 5e-4
    assert 0.001 < found["qsgd8"] < 0.02
    assert 0.1 < found["qsgd4"] < 0.25


def damaged(round: ShardRound, rank: int, shard: int) -> None:
    """Change a byte of one shard of a stored contribution."""
    piece, at, _ = round.peers[0].sharding(round.shards).extents[shard]
    place = round.spec.places.piece(ROUND, rank, 0, piece)
    stored = bytearray(round.shared.objects[place.bucket, place.key])
    stored[at + 3] ^= 1
    round.shared.objects[place.bucket, place.key] = bytes(stored)


def without(round: ShardRound, rank: int) -> None:
    place = round.place(rank)
    del round.shared.objects[place.bucket, place.key]


def test_a_shard_that_is_damaged_is_left_out_of_its_average_alone_and_by_all() -> None:
    round = ShardRound(model(3_000, [9]), range(4))
    commit = round.commit()
    damaged(round, 3, 1)
    for shard in range(4):
        reader = round.peers[0]
        average = reader.average(round.reduction(0, commit), shard, round.base)
        assert average == round.peers[1].average(round.reduction(1, commit), shard, round.base)
        assert average.left_out == ((3,) if shard == 1 else ())
        assert wire.decode_header(average.frame).samples == (6 if shard == 1 else 10)
        if shard == 1:
            remaining = round.commit([0, 1, 2])
            assert average.frame == reader.average(round.reduction(0, remaining), shard, round.base).frame


def test_contributions_that_cannot_be_read_are_left_out() -> None:
    """Missing, replaced by another one, cut off, and sound bytes that are no payload: four of five."""
    round = ShardRound(model(3_000), range(5))
    commit = round.commit()
    without(round, 1)
    two, three = round.place(2), round.place(3)
    round.shared.objects[two.bucket, two.key] = wire.header_part(round.frames[4])
    round.shared.objects[three.bucket, three.key] = wire.header_part(round.frames[3])[:300]
    sharding = round.reduction(0, commit).sharding
    nonsense = sharding.frame(wire.decode_header(round.frames[4]), b"\xff" * sum(sharding.codec.lengths), b"")
    place = round.place(4)
    del round.shared.objects[place.bucket, place.key]
    round.store_whole(4, nonsense)
    digest = wire.decode_header(nonsense).digest
    listed = (*commit.contributors[:4], dataclasses.replace(commit.contributors[4], digest=digest))
    reader = round.peer(0)
    reduction = dataclasses.replace(reader.reduction(commit, 5), contributors=listed)
    average = reader.average(reduction, 2, round.base)
    assert average.left_out == (1, 2, 3, 4)
    assert wire.decode_header(average.frame).samples == 1


def test_where_nothing_can_be_read_the_average_is_zero_and_buffers_stay() -> None:
    round = ShardRound(model(1_000, [3]), range(2))
    commit = round.commit()
    for rank in range(2):
        without(round, rank)
    reader = round.peer(0, kept=lambda digest: None)
    reduction = reader.reduction(commit, 2)
    made = [reader.average(reduction, shard, round.base) for shard in range(2)]
    gradient, buffers = assemble(reduction.sharding, [open_average(reduction, s, m.frame) for s, m in enumerate(made)])
    assert not gradient.any()
    assert all(np.array_equal(buffers[name], value) for name, value in round.base.items())
    assert [(m.left_out, m.relative_error, wire.decode_header(m.frame).samples) for m in made] == [((0, 1), 0.0, 0)] * 2


def test_an_aggregator_that_gets_too_few_says_so() -> None:
    round = ShardRound(model(1_000), range(3), aggregation={"name": "trimmed_mean", "byzantine": 1})
    commit = round.commit([0, 1])
    assert "needs 3 contributions" in round.peers[0].average(round.reduction(0, commit), 0, round.base).note


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_average_beyond_float32_is_refused_by_every_maker() -> None:
    """Seven weights of which the sum, in float32, is above 1."""
    largest = np.finfo(np.float32).max
    round = ShardRound(model(7 * 512), range(7), "none", gradient=lambda n, rank: np.full(n, largest, np.float32))
    commit = round.commit()
    for rank in range(3):
        with pytest.raises(NonFiniteGradient, match="value 0 is inf"):
            round.peers[rank].average(round.reduction(rank, commit), 0, round.base)


def change(blob: bytes, **fields: Any) -> bytes:
    frame = wire.decode(blob, expected_elements=None, expected_buffers_bytes=None)
    payload = fields.pop("payload", frame.payload)
    return wire.encode(dataclasses.replace(frame.header, **fields), payload, frame.buffers)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": wire.Kind.UPDATE},
        {"run": "other"},
        {"round": 8},
        {"base_round": 8},
        {"base_weights": "cd" * 32},
        {"rank": 1},
        {"incarnation": 1},
        {"shard": 0},
        {"shards": 3},
        {"group": 1},
        {"samples": 4},
        {"loss": 0.5},
        {"codec": "qsgd8"},
        {"seed": 1},
        {"elements": 499},
        {"extensions": (wire.accuracy_extension(0.5),)},
        {"payload": b"short"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_frame_that_is_not_the_average_asked_for_is_refused(fields: dict[str, Any]) -> None:
    round = ShardRound(model(1_500), range(2))
    commit = round.commit()
    reduction = round.reduction(0, commit)
    average = round.peers[0].average(reduction, 1, round.base).frame
    assert open_average(reduction, 1, average).header.samples == 3
    assert open_average(reduction, 1, change(average, signature=b"s" * 64)).header.signature == b"s" * 64
    for wrong in (change(average, **dict(fields)), average[:-1], b""):
        with pytest.raises(CorruptObject):
            open_average(reduction, 1, wrong)


def test_assembling_needs_all_averages_and_sound_ones() -> None:
    round = ShardRound(model(1_500), range(2))
    commit = round.commit()
    reduction = round.reduction(0, commit)
    frames = [open_average(reduction, s, m.frame) for s, m in sorted(round.reduce(commit).items())]
    for wrong in (frames[:1], frames * 2):
        with pytest.raises(ValueError, match="argument"):
            assemble(reduction.sharding, wrong)
    noise = memoryview(b"\xff" * frames[0].payload.nbytes)
    gradient = np.ones(1_500, np.float32)
    with pytest.raises(CorruptObject):
        fill(reduction.sharding, 0, dataclasses.replace(frames[0], payload=noise), gradient)
    assert gradient.tolist() == [1.0] * 1_500


@pytest.mark.parametrize("how", AGGREGATIONS, ids=lambda how: how["name"])
def test_memory_holds_a_few_shards_however_many_contribute(how: dict[str, Any]) -> None:
    peaks = []
    ones = partial(np.full, fill_value=1, dtype=np.float32)
    for count in (3, 9):  # shards of 1 MiB as float32, whatever their number
        round = ShardRound(model(count << 18), range(count), "qsgd8", aggregation=how, gradient=lambda n, _: ones(n))
        commit = round.commit()
        reader = round.peer(0, kept=lambda digest: None)
        reduction = reader.reduction(commit, count)
        tracemalloc.start()
        reader.average(reduction, 1, round.base)
        peaks.append(tracemalloc.get_traced_memory()[1] / (1 << 20))
        tracemalloc.stop()
    # The average and what was decoded; squares and blocks of coordinates in float64; encoded shards on their way.
    assert max(peaks) < 5
    assert peaks[1] < peaks[0] + 0.5


def test_reading_ahead_keeps_order_bounds_and_errors() -> None:
    running, most, lock, gate = 0, 0, threading.Lock(), threading.Semaphore(0)

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.acquire()
        with lock:
            running -= 1
        if item == 5:
            raise ObjectMissing("5")
        return item * item

    found: list[int | str] = []
    results = ahead(call, range(12))
    gate.release(100)
    for result in results:
        try:
            found.append(result())
        except ObjectMissing as error:
            found.append(str(error))
    assert found == [25 if item == 5 else item * item for item in range(12)][:5] + ["5"] + [i * i for i in range(6, 12)]
    assert most <= READS_AHEAD


def test_reading_ahead_stops_when_nobody_listens() -> None:
    called: list[int] = []
    results = ahead(lambda item: called.append(item), range(1_000))
    for result in itertools.islice(results, 3):
        result()
    results.close()  # type: ignore[attr-defined]
    assert len(called) <= 3 + READS_AHEAD
    assert list(ahead(gradient_of, [])) == []
