"""Models in shards: bounds, buffers, payloads, and frames that are cut just so."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import wire
from contract.codec import BUCKET, CODECS, F32, NAMES, codec
from contract.errors import CorruptObject, NonFiniteGradient
from contract.feedback import ErrorFeedback
from contract.seeds import public_seed
from contract.sharding import MAX_PIECES, PIECE_BYTES, ShardedCodec, Sharding, bounds
from contract.tensors import Entry, Layout

HEADER = wire.FrameHeader(
    kind=wire.Kind.UPDATE,
    run="r",
    round=3,
    base_round=3,
    base_weights="ab" * 32,
    rank=1,
    incarnation=0,
    samples=8,
    codec="qsgd4",
    seed=5,
    elements=0,
)
sizes = st.integers(0, 6 * BUCKET) | st.sampled_from([BUCKET * k + d for k in (1, 3, 8) for d in (-1, 0, 1)])
names = st.sampled_from(NAMES)


def gradient(size: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def layout(elements: int, *buffers: int) -> Layout:
    """A model with buffers of so many bytes."""
    entries = tuple(Entry(f"b{number}", (size,), "uint8") for number, size in enumerate(buffers))
    return Layout((Entry("w", (elements,)),), entries)


@settings(max_examples=300, deadline=None)
@given(elements=sizes | st.integers(0, 10**12), shards=st.integers(1, 40))
def test_bounds_cover_everything_once_in_whole_buckets_as_even_as_can_be(elements: int, shards: int) -> None:
    parts = bounds(elements, shards)
    assert len(parts) == shards
    assert (parts[0].start, parts[-1].stop) == (0, elements)
    assert all(before.stop == after.start for before, after in itertools.pairwise(parts))
    assert all(part.start % BUCKET == 0 or part.start == elements for part in parts)
    buckets = [-(-(part.stop - part.start) // BUCKET) for part in parts]
    assert max(buckets) - min(buckets) <= 1


@pytest.mark.parametrize(("elements", "shards"), [(10, 0), (10, -1), (-1, 2)])
def test_bounds_of_nothing_do_not_exist(elements: int, shards: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        bounds(elements, shards)


@settings(max_examples=150, deadline=None)
@given(name=names, size=sizes, shards=st.integers(1, 9), seed=st.integers(0, 2**63))
def test_shards_of_a_payload_are_what_the_codec_makes_of_the_slices(
    name: str, size: int, shards: int, seed: int
) -> None:
    inner, x = codec(name), gradient(size)
    tested = ShardedCodec(inner, size, shards)
    payload = tested.encode(x, seed)
    assert len(payload) == tested.encoded_bytes(size) == sum(tested.lengths)
    back = tested.decode(payload, size)
    for shard, (part, encoded) in enumerate(tested.split(payload)):
        assert bytes(encoded) == inner.encode(x[part], public_seed(seed, "shard", shard))
        assert np.array_equal(back[part], inner.decode(encoded, part.stop - part.start))
    acc, expected = gradient(size, 2), gradient(size, 2)
    tested.accumulate(payload, acc, 0.25)
    for part, encoded in tested.split(payload):
        inner.accumulate(encoded, expected[part], 0.25)
    assert np.array_equal(acc, expected)
    out = np.empty(size, np.float32)
    assert tested.decode(payload, size, out) is out
    assert np.array_equal(out, back)


def test_cutting_at_buckets_changes_no_scale() -> None:
    """With the codecs that draw no random numbers a payload in shards holds the very values of one in a piece."""
    x = gradient(5 * BUCKET + 7)
    for name in ("none", "fp16"):
        assert ShardedCodec(codec(name), x.size, 4).encode(x, 1) == codec(name).encode(x, 1)
    whole, cut = codec("qsgd4"), ShardedCodec(codec("qsgd4"), x.size, 4)
    errors = [np.linalg.norm(c.decode(c.encode(x, 1), x.size) - x) for c in (whole, cut)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_shards_are_rounded_with_different_numbers() -> None:
    tested = ShardedCodec(codec("qsgd4"), 2 * BUCKET, 2)
    x = np.tile(gradient(BUCKET), 2)
    first, second = np.split(tested.decode(tested.encode(x, 1), x.size), 2)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_damage_anywhere_leaves_sums_and_outputs_as_they_were(name: str) -> None:
    tested = ShardedCodec(codec(name), 1_500, 3)
    payload = tested.encode(gradient(1_500), 1)
    last = tested.lengths[-1]
    nan = payload[:-4] + (b"\xff" * 4 if name in ("none", "fp16") else b"\x00" * 4)
    for wrong in (payload[:-1], payload + b"\0", b"", nan, payload[:-last] + b"\xff" * last):
        out, acc = np.ones(1_500, np.float32), np.ones(1_500, np.float32)
        with pytest.raises(CorruptObject):
            tested.decode(wrong, 1_500, out)
        with pytest.raises(CorruptObject):
            tested.accumulate(wrong, acc, 1.0)
        assert out.tolist() == acc.tolist() == [1.0] * 1_500
    for call in (lambda: tested.decode(payload, 1_499), lambda: tested.accumulate(payload, np.zeros(7, np.float32), 1)):
        with pytest.raises(CorruptObject, match="1500 values"):
            call()
    with pytest.raises(ValueError, match="1500 are in these shards"):
        tested.encode(gradient(1_499), 1)


def test_what_is_not_finite_is_named_by_its_place_in_the_whole() -> None:
    x = gradient(1_500)
    x[[1_200, 1_400]] = np.nan, np.inf
    with pytest.raises(NonFiniteGradient, match="value 1200 is nan"):
        ShardedCodec(codec("qsgd4"), 1_500, 3).encode(x, 1)


@pytest.mark.parametrize("name", NAMES)
def test_error_feedback_works_with_shards_as_with_a_whole(name: str) -> None:
    tested = ShardedCodec(codec(name), 1_500, 3)
    feedback = ErrorFeedback(tested, 1_500)
    x = gradient(1_500)
    payload = feedback.encode(x, 1)
    feedback.taken(payload)
    assert np.allclose(feedback.state, x - tested.decode(payload, 1_500), atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    elements=st.integers(1, 3_000),
    buffers=st.lists(st.integers(0, 900), max_size=30),
    shards=st.integers(1, 12),
)
def test_buffers_are_spread_whole_in_order_and_evenly(elements: int, buffers: list[int], shards: int) -> None:
    whole = layout(elements, *buffers)
    layouts = Sharding(whole, codec("qsgd4"), shards).layouts
    assert tuple(entry for held in layouts for entry in held.buffers) == whole.buffers
    assert [held.elements for held in layouts] == [part.stop - part.start for part in bounds(elements, shards)]
    even, largest = whole.buffers_bytes / shards, max(buffers, default=0)
    assert all(held.buffers_bytes <= even + largest for held in layouts)


@settings(max_examples=100, deadline=None)
@given(
    name=names,
    elements=st.integers(1, 3_000),
    buffers=st.lists(st.integers(0, 90), max_size=9),
    shards=st.integers(1, 7),
)
def test_a_frame_is_cut_as_its_sharding_says(name: str, elements: int, buffers: list[int], shards: int) -> None:
    whole = layout(elements, *buffers)
    sharding = Sharding(whole, codec(name), shards)
    payload = sharding.codec.encode(gradient(elements), 5)
    packed = np.random.default_rng(1).bytes(whole.buffers_bytes)
    blob = sharding.frame(dataclasses.replace(HEADER, codec=name, elements=elements), payload, packed)
    frame = wire.decode(blob, expected_elements=elements, expected_buffers_bytes=len(packed))
    assert (bytes(frame.payload), bytes(frame.buffers)) == (payload, packed)
    assert sharding.fits(frame.header)
    assert frame.header.table is not None
    for entry, held, (_, encoded) in zip(
        frame.header.table, sharding.layouts, sharding.codec.split(payload), strict=True
    ):
        entry.check(encoded, packed[entry.buffers_offset : entry.buffers_offset + held.buffers_bytes])


def test_a_frame_that_is_cut_otherwise_does_not_fit() -> None:
    whole = layout(1_500, 10, 20, 30)
    sharding = Sharding(whole, codec("qsgd4"), 3)
    payload = sharding.codec.encode(gradient(1_500), 5)
    header = dataclasses.replace(HEADER, elements=1_500)
    right = wire.decode_header(sharding.frame(header, payload, bytes(60)))
    assert sharding.fits(right)
    assert not sharding.fits(dataclasses.replace(right, elements=1_501))
    assert not sharding.fits(dataclasses.replace(right, codec="qsgd8"))
    for other in (2, 4):
        assert not Sharding(whole, codec("qsgd4"), other).fits(right)
    assert not Sharding(layout(1_500, 30, 20, 10), codec("qsgd4"), 3).fits(right)
    plain = codec("qsgd4").encode(gradient(1_500), 5)
    assert not sharding.fits(wire.decode_header(wire.encode(header, plain, bytes(60))))
    moved = wire.encode_shards(header, [(payload[:9], b""), (b"", b""), (payload[9:], bytes(60))])
    assert not sharding.fits(wire.decode_header(moved))
    with pytest.raises(CorruptObject, match="buffers take 59 bytes"):
        sharding.frame(header, payload, bytes(59))
    with pytest.raises(CorruptObject, match="payload in 3 shards"):
        sharding.frame(header, payload[:-1], bytes(60))


@pytest.mark.parametrize("shards", [0, 1_365])
def test_more_shards_than_a_table_has_room_for_are_refused(shards: int) -> None:
    with pytest.raises(ValueError, match="1 to 1364 shards"):
        Sharding(layout(10), CODECS["none"], shards)


@settings(max_examples=100, deadline=None)
@given(
    elements=st.sampled_from([0, 1, 700, 5_000, 400_000, 3_000_000]),
    shards=st.integers(1, 12),
    buffers=st.lists(st.integers(0, 300), max_size=3),
)
def test_a_contribution_is_its_leading_part_and_its_pieces(elements: int, shards: int, buffers: list[int]) -> None:
    cut = Sharding(layout(elements, *buffers), codec("qsgd4"), shards)
    payload = cut.codec.encode(np.ones(elements, np.float32), 1)
    frame = cut.frame(
        dataclasses.replace(HEADER, elements=elements),
        payload,
        bytes(range(256)) * (sum(buffers) // 256) + bytes(sum(buffers) % 256),
    )
    decoded = wire.decode(frame, expected_elements=elements, expected_buffers_bytes=sum(buffers))
    pieces = cut.in_pieces(decoded)
    assert cut.whole(wire.header_part(frame), pieces) == frame
    assert [shard for piece in cut.pieces for shard in piece] == list(range(shards)), "each shard once, in order"
    assert len(pieces) == len(cut.pieces) <= min(shards, MAX_PIECES)
    assert len(pieces) == 1 or min(map(len, pieces)) > PIECE_BYTES // 2
    assert decoded.header.table is not None
    for (piece, at, length), entry in zip(cut.extents, decoded.header.table, strict=True):
        found = memoryview(pieces[piece])[at : at + length]
        entry.check(found[: entry.payload_bytes], found[entry.payload_bytes :])
