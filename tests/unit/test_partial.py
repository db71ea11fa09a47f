"""Means of means: buffers of every dtype, what is missing, the order of additions, and the form in a frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from contract import wire
from contract.averaging import WeightedMean
from contract.codec import codec
from contract.errors import CorruptObject, WeightsMismatch
from contract.extensions import REDUCED, Extension, Measured, Reduced, reduced_extension
from contract.partial import (
    Bounds,
    Partial,
    PartialMean,
    TreeMean,
    bounds_bytes,
    buffer_kinds,
    item_alone,
    nameless_layout,
    raw,
)
from contract.tensors import Buffers, Entry, Layout
from contract.tree import tree

N = 1_000
LAYOUT = Layout(
    (Entry("w", (N,)),),
    (
        Entry("mean", (7,)),
        Entry("var", (2, 3), "float64"),
        Entry("half", (3,), "float16"),
        Entry("count", (), "int64"),
        Entry("index", (4,), "int32"),
        Entry("flag", (5,), "bool"),
        Entry("last", (2,)),
    ),
)
BASE: Buffers = {
    "mean": np.zeros(7, np.float32),
    "var": np.ones((2, 3)),
    "half": np.ones(3, np.float16),
    "count": np.asarray(41, np.int64),
    "index": np.arange(4, dtype=np.int32),
    "flag": np.array([True, False, True, False, True]),
    "last": np.full(2, 0.1, np.float32),
}
RAW = codec("none")


def gradients(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.standard_normal(N).astype(np.float32) for _ in range(count)]


def buffers(position: int) -> Buffers:
    """After one batch: the odd ones changed counters and flags, and all left `index` and `last` alone."""
    generator = np.random.default_rng(position)
    odd = position % 2
    return {
        **BASE,
        "mean": generator.standard_normal(7).astype(np.float32),
        "var": generator.standard_normal((2, 3)),
        "half": generator.standard_normal(3).astype(np.float16),
        "count": np.asarray(41 + odd, np.int64),
        "flag": BASE["flag"] ^ np.array([bool(odd), False, bool(odd), False, False]),
    }


def flat(samples: Sequence[int], missing: Sequence[int] = ()) -> tuple[np.ndarray, Buffers]:
    came = [position for position in range(len(samples)) if position not in missing]
    mean = WeightedMean(LAYOUT, sum(samples[position] for position in came))
    each = gradients(len(samples))
    for position in came:
        mean.add(raw(each[position]), RAW, buffers(position), samples[position])
    return mean.result(BASE)


def as_tree(samples: Sequence[int], missing: Sequence[int] = ()) -> Partial:
    mean = TreeMean(LAYOUT, samples)
    each = gradients(len(samples))
    for position, count in enumerate(samples):
        if position in missing:
            mean.skip()
        else:
            mean.add(raw(each[position]), RAW, buffers(position), count, float(position), position)
    return mean.result()


@pytest.mark.parametrize("count", [2, 3, 8, 9, 20, 70])
@pytest.mark.parametrize("missing", [(), (1,), (0, 1)])
def test_the_tree_is_the_flat_mean_but_for_rounding(count: int, missing: tuple[int, ...]) -> None:
    missing = missing if len(missing) < count else ()
    samples = [1 + position % 5 for position in range(count)]
    gradient, expected = flat(samples, missing)
    part = as_tree(samples, missing)
    assert np.linalg.norm(part.gradient - gradient) < 1e-6 * np.linalg.norm(gradient)
    found = part.bounds.settled(LAYOUT, BASE)
    for name in ("count", "index", "flag", "last"):
        assert found[name].tobytes() == expected[name].tobytes(), name
        assert (found[name].dtype, found[name].shape) == (expected[name].dtype, expected[name].shape), name
    for name in ("mean", "var", "half"):
        tolerance = 4 * np.finfo(BASE[name].dtype).eps  # rounded once per level
        np.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=2 * tolerance, err_msg=name)
    came = [position for position in range(count) if position not in missing]
    assert part.reduced.items == tuple(came)
    assert part.samples == sum(samples[position] for position in came)
    assert part.loss == pytest.approx(sum(samples[p] * p for p in came) / part.samples, rel=1e-12)


def test_one_group_equals_the_flat_mean_to_the_bit() -> None:
    gradient, expected = flat([3, 1, 4, 1, 5])
    part = as_tree([3, 1, 4, 1, 5])
    assert part.gradient.tobytes() == gradient.tobytes()
    found = part.bounds.settled(LAYOUT, BASE)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_groups_apart_come_to_the_same_bits_as_the_tree_in_one_process() -> None:
    """Through bytes, and without the buffers' names, as reducers do it."""
    samples = [1 + position % 4 for position in range(70)]
    nameless = nameless_layout(N, buffer_kinds(LAYOUT))
    each = gradients(len(samples))
    parts: list[tuple[memoryview, bytes, int, float, Reduced]] = []
    for position, count in enumerate(samples):
        packed = Bounds.of(buffers(position)).pack(LAYOUT)
        parts.append((raw(each[position]), packed, count, float(position), item_alone(position, None)))
    for sizes in tree(len(samples)):
        made, start = [], 0
        for size in sizes:
            group, start = parts[start : start + size], start + size
            mean = PartialMean(nameless, sum(part[2] for part in group))
            for payload, packed, count, loss, reduced in group:
                mean.add(payload, RAW, Bounds.unpack(nameless, packed), count, loss, reduced)
            part = mean.result()
            assert part is not None
            made.append((raw(part.gradient), part.bounds.pack(nameless), part.samples, part.loss, part.reduced))
        parts = made
    ((payload, packed, count, loss, reduced),) = parts
    whole = as_tree(samples)
    assert bytes(payload) == whole.gradient.tobytes()
    assert packed == whole.bounds.pack(LAYOUT)
    assert len(packed) == bounds_bytes(LAYOUT) > LAYOUT.buffers_bytes
    assert (count, loss, reduced) == (whole.samples, whole.loss, whole.reduced)


def test_a_flag_that_only_one_group_changed_flips() -> None:
    """Which a reducer cannot know: it does not have the weights that the round started from."""
    part = as_tree([1] * 10)
    flags = part.bounds.settled(LAYOUT, BASE)["flag"]
    assert flags.tolist() == [False, False, False, False, True]


def test_a_group_of_which_nothing_came_has_no_mean() -> None:
    assert PartialMean(LAYOUT, 10).result() is None
    part = as_tree([2] * 11, missing=range(6, 11))
    assert (part.samples, part.reduced.items) == (12, (0, 1, 2, 3, 4, 5))
    with pytest.raises(CorruptObject, match="does not exist"):
        as_tree([2] * 11, missing=range(11))
    with pytest.raises(CorruptObject, match="before all have come"):
        TreeMean(LAYOUT, [1, 1]).result()


def test_more_samples_than_announced_and_other_buffers_are_refused() -> None:
    mean = PartialMean(LAYOUT, 10)
    alone = item_alone(0, None)
    with pytest.raises(CorruptObject, match="at most 10 samples cannot have 11 beside 0"):
        mean.add(raw(gradients(1)[0]), RAW, Bounds.of(buffers(0)), 11, 0.0, alone)
    with pytest.raises(CorruptObject, match="cannot have 0"):
        mean.add(raw(gradients(1)[0]), RAW, Bounds.of(buffers(0)), 0, 0.0, alone)
    with pytest.raises(WeightsMismatch):
        mean.add(raw(gradients(1)[0]), RAW, Bounds.of({**buffers(0), "more": np.zeros(1)}), 5, 0.0, alone)
    with pytest.raises(ValueError, match="does not exist"):
        PartialMean(LAYOUT, 0)


def test_buffers_without_names_are_runs_of_a_dtype() -> None:
    kinds = ("float32:7", "float64:6", "float16:3", "int64:1", "int32:4", "bool:5", "float32:2")
    assert buffer_kinds(LAYOUT) == kinds
    two = Layout(LAYOUT.parameters, (Entry("a", (3, 2)), Entry("b", (4,)), Entry("c", (), "int64")))
    assert buffer_kinds(two) == ("float32:10", "int64:1")
    assert nameless_layout(N, kinds).buffers_bytes == LAYOUT.buffers_bytes
    for kind in ("complex64:3", "float32", "float32:-1", "float32:³"):
        with pytest.raises(CorruptObject, match="is no kind of buffer"):
            nameless_layout(N, (kind,))


def test_what_workers_measured_is_put_together() -> None:
    mean = PartialMean(LAYOUT, 4)
    seconds = [0.5, None, 0.1, 9.0]
    for index, each in enumerate(seconds):
        told = None if each is None else Measured(
            step_seconds=each, peak_bytes=100 * index, cold_start=index == 0, weights_fetched=index != 2
        )  # fmt: skip
        mean.add(raw(gradients(1)[0]), RAW, Bounds.of(BASE), 1, 0.0, item_alone(index, told))
    part = mean.result()
    assert part is not None
    assert part.reduced == Reduced(
        items=(0, 1, 2, 3), told=3, step_seconds=0.5, peak_bytes=300, cold_starts=1, weights_fetched=2
    )


HEADER = wire.FrameHeader(
    kind=wire.Kind.GRADIENT, run="r", round=1, base_round=1, base_weights="0" * 64, rank=0, incarnation=0, samples=1,
    codec="none", seed=0, elements=0,
)  # fmt: skip


def test_a_frame_says_which_gradients_are_in_it() -> None:
    told = Reduced(
        items=tuple(range(10_000)), told=9, step_seconds=0.25, peak_bytes=1, cold_starts=2, weights_fetched=3
    )
    header = dataclasses.replace(HEADER, extensions=(reduced_extension(told),))
    assert wire.decode_header(wire.encode(header, b"")).reduced == told
    assert wire.decode_header(wire.encode(HEADER, b"")).reduced is None


@pytest.mark.parametrize("value", [b"", bytes(28), bytes(31), bytes(20) + b"\xff" * 8 + bytes(4)])
def test_a_malformed_list_of_gradients_is_refused(value: bytes) -> None:
    header = dataclasses.replace(HEADER, extensions=(Extension(REDUCED, True, value),))
    with pytest.raises(ValueError, match="gradients in it is malformed"):
        wire.encode(header, b"")


def test_whoever_does_not_know_the_list_must_not_read_the_frame() -> None:
    told = Reduced(items=(1,), told=0, step_seconds=0.0, peak_bytes=0, cold_starts=0, weights_fetched=0)
    optional = Extension(REDUCED, False, reduced_extension(told).value)
    with pytest.raises(ValueError, match="malformed"):
        wire.encode(dataclasses.replace(HEADER, extensions=(optional,)), b"")
