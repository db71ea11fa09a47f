"""The sample-weighted mean of gradients and buffers."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contract.averaging import WeightedMean
from contract.codec import codec
from contract.errors import CorruptObject, WeightsMismatch
from contract.tensors import Buffers, Entry, Layout

LAYOUT = Layout(
    (Entry("w", (3, 2)), Entry("b", (2,))),
    (
        Entry("mean", (2,)),
        Entry("wide", (2,), "float64"),
        Entry("seen", (), "int64"),
        Entry("index", (2,), "int32"),
        Entry("on", (2,), "bool"),
    ),
)


def buffers(
    mean: tuple[float, float] = (0.0, 0.0),
    wide: tuple[float, float] = (0.0, 0.0),
    seen: int = 4,
    index: tuple[int, int] = (3, 1),
    on: tuple[bool, bool] = (True, False),
) -> Buffers:
    return {
        "mean": np.array(mean, np.float32),
        "wide": np.array(wide, np.float64),
        "seen": np.array(seen, np.int64),
        "index": np.array(index, np.int32),
        "on": np.array(on),
    }


def gradients(count: int, size: int = LAYOUT.elements) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(5)
    return [random.standard_normal(size).astype(np.float32) for _ in range(count)]


def averaged(
    contributions: list[tuple[NDArray[np.float32], Buffers, int]], base: Buffers, name: str = "none"
) -> tuple[NDArray[np.float32], Buffers]:
    mean = WeightedMean(LAYOUT, sum(samples for _, _, samples in contributions))
    for gradient, own, samples in contributions:
        mean.add(codec(name).encode(gradient, seed=samples), codec(name), own, samples)
    return mean.result(base)


def test_gradients_are_weighted_by_samples() -> None:
    samples = (128, 128, 37, 1)
    made = gradients(4)
    got, _ = averaged([(g, buffers(), s) for g, s in zip(made, samples, strict=True)], buffers())
    expected = np.average(np.stack(made).astype(np.float64), axis=0, weights=samples)
    # Four products and additions in float32: at most 8 roundings of half an ulp of the largest term.
    bound = 8 * np.finfo(np.float32).eps / 2 * np.abs(np.stack(made)).max()
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= bound
    assert np.abs(np.mean(made, axis=0) - expected).max() > 1000 * bound  # an unweighted mean would not pass


def test_one_contribution_comes_back_as_it_was() -> None:
    (gradient,) = gradients(1)
    got, after = averaged([(gradient, buffers(mean=(1.5, 2.5), seen=5), 7)], buffers())
    assert np.array_equal(got, gradient)
    assert after["mean"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("name", ["none", "fp16", "qsgd8", "qsgd4"])
def test_every_codec_is_decoded_into_the_mean(name: str) -> None:
    made, samples = gradients(3), (5, 3, 9)
    decoded = [
        codec(name).decode(codec(name).encode(g, seed=s), LAYOUT.elements).astype(np.float64)
        for g, s in zip(made, samples, strict=True)
    ]
    got, _ = averaged([(g, buffers(), s) for g, s in zip(made, samples, strict=True)], buffers(), name)
    expected = np.average(decoded, axis=0, weights=samples)
    # Three products and additions in float32, and one more product where QSGD applies its scale: 8 roundings.
    assert np.abs(got - expected).max() <= 8 * np.finfo(np.float32).eps / 2 * np.abs(decoded).max()


def test_the_order_decides_the_bits_and_the_same_order_repeats_them() -> None:
    made = gradients(6)
    contributions = [(g, buffers(), 3 + k) for k, g in enumerate(made)]
    first, _ = averaged(contributions, buffers())
    again, _ = averaged(contributions, buffers())
    assert first.tobytes() == again.tobytes()


def test_float_buffers_are_averaged_in_float64_and_cast() -> None:
    one, three = buffers(mean=(1.0, 10.0), wide=(0.1, 1e300)), buffers(mean=(2.0, 30.0), wide=(0.2, 3e300))
    _, after = averaged([(gradients(1)[0], one, 1), (gradients(1)[0], three, 3)], buffers())
    assert after["mean"].dtype == np.float32
    assert after["mean"].tolist() == [1.75, 25.0]
    assert after["wide"].dtype == np.float64
    assert after["wide"] == pytest.approx([0.175, 2.5e300], rel=4 * np.finfo(np.float64).eps)


def test_floats_on_which_all_agree_stay_exact_through_many_rounds() -> None:
    samples = (3, 7, 11)
    # 0.9 is a value for which the weighted sum alone, divided by the total, misses by an ulp.
    assert sum(0.9 * count for count in samples) / sum(samples) != 0.9
    constant = buffers(mean=(float(np.float32(0.1)), -np.inf), wide=(0.9, 1 / 3))
    state = constant
    for _ in range(20):
        _, state = averaged([(gradients(1)[0], state, count) for count in samples], state)
    assert state["mean"].tobytes() == constant["mean"].tobytes()
    assert state["wide"].tobytes() == constant["wide"].tobytes()


def test_counters_advance_by_one_per_round_and_constants_stay() -> None:
    base = buffers(seen=4, index=(3, 1), on=(True, False))
    ran = buffers(seen=5, index=(3, 1), on=(True, True))
    _, after = averaged([(g, ran, 8) for g in gradients(3)], base)
    assert after["seen"] == 5
    assert after["seen"].dtype == np.int64
    assert after["seen"].shape == ()
    assert after["index"].tolist() == [3, 1]
    assert after["index"].dtype == np.int32
    assert after["on"].tolist() == [True, True]
    assert after["on"].dtype == np.bool_


@pytest.mark.parametrize("counts", [(5, 4), (4, 5), (9, 4), (9, 12)])
def test_a_counter_advances_by_one_whoever_changed_it_and_how_far(counts: tuple[int, int]) -> None:
    _, after = averaged([(gradients(1)[0], buffers(seen=count), 2) for count in counts], buffers(seen=4))
    assert after["seen"] == 5


def test_two_levels_agree_on_the_counter() -> None:
    base = buffers(seen=4)
    peers = [averaged([(g, buffers(seen=5), 8) for g in gradients(3)], base)[1] for _ in range(4)]
    _, after = averaged([(gradients(1)[0], peer, 24) for peer in peers], base)
    assert after["seen"] == 5


def test_base_buffers_are_left_alone() -> None:
    base = buffers()
    before = {name: value.tobytes() for name, value in base.items()}
    _, after = averaged([(gradients(1)[0], buffers(seen=5, on=(False, False)), 8)], base)
    for value in after.values():
        value[...] = 1
    assert {name: value.tobytes() for name, value in base.items()} == before


def _add(mean: WeightedMean, samples: int, **changes: Any) -> None:
    payload = codec("none").encode(gradients(1)[0], seed=0)
    mean.add(changes.get("payload", payload), codec("none"), changes.get("buffers", buffers()), samples)


def test_samples_have_to_add_up() -> None:
    for total in (0, -1):
        with pytest.raises(CorruptObject, match=f"mean over {total} samples"):
            WeightedMean(LAYOUT, total)
    for samples in (0, -3):
        with pytest.raises(CorruptObject, match=f"stands for {samples} samples"):
            _add(WeightedMean(LAYOUT, 10), samples)
    mean = WeightedMean(LAYOUT, 10)
    with pytest.raises(CorruptObject, match="hold 0 samples, but 10"):
        mean.result(buffers())
    _add(mean, 6)
    with pytest.raises(CorruptObject, match="hold 6 samples, but 10"):
        mean.result(buffers())
    with pytest.raises(CorruptObject, match="hold at least 11 samples, but 10"):
        _add(mean, 5)
    _add(mean, 4)
    mean.result(buffers())


def test_contributions_of_another_size_are_refused() -> None:
    mean = WeightedMean(LAYOUT, 10)
    with pytest.raises(CorruptObject):
        _add(mean, 5, payload=bytes(4 * LAYOUT.elements - 4))
    with pytest.raises(WeightsMismatch, match="buffers lack wide"):
        _add(mean, 5, buffers={name: value for name, value in buffers().items() if name != "wide"})


def test_a_scale_changes_the_gradient_and_neither_weight_nor_buffers() -> None:
    made, own = gradients(2), buffers(mean=(1.0, 2.0))
    mean, scaled = WeightedMean(LAYOUT, 8), WeightedMean(LAYOUT, 8)
    for samples, gradient, scale in ((5, made[0], 0.5), (3, made[1], 1.0)):
        mean.add(codec("none").encode(gradient * np.float32(scale), 0), codec("none"), own, samples)
        scaled.add(codec("none").encode(gradient, 0), codec("none"), own, samples, scale)
    (expected, _), (got, after) = mean.result(buffers()), scaled.result(buffers())
    assert got.tobytes() == expected.tobytes()  # a half is exact
    assert after["mean"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["none", "fp16", "qsgd8", "qsgd4"])
def test_payloads_that_wait_for_each_other_change_no_bit(name: str) -> None:
    size, samples = 3_000, (5, 3, 9, 1, 2, 7, 4)
    layout = Layout((Entry("w", (size,)),), ())
    mean, one_by_one = WeightedMean(layout, sum(samples)), np.zeros(size, np.float32)
    for k, (gradient, count) in enumerate(zip(gradients(7, size), samples, strict=True)):
        used = codec("none") if k == 4 else codec(name)
        payload = used.encode(gradient, seed=k)
        mean.add(payload, used, {}, count)
        used.accumulate(payload, one_by_one, count / sum(samples))
    got, _ = mean.result({})
    assert got.tobytes() == one_by_one.tobytes()


def test_a_payload_that_does_not_decode_is_refused_at_once() -> None:
    layout = Layout((Entry("w", (3_000,)),), ())
    mean, payload = WeightedMean(layout, 10), codec("qsgd4").encode(gradients(1, 3_000)[0], seed=1)
    mean.add(payload, codec("qsgd4"), {}, 5)
    with pytest.raises(CorruptObject):
        mean.add(payload[:-1] + bytes([payload[-1] ^ 1]), codec("qsgd4"), {}, 5)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("none", "be5986fb1f8b9ffc387cec769334381ed26576037856c1fece402917a81ce798"),
        ("fp16", "75ac59770a9eee31b6474bde1b83b15d536c87c4625f00759fb3572283c56ed0"),
        ("qsgd8", "0e053a1447f7b04f497cfc7bfd35cd4089c06b51cf65d0277209caa13c854c37"),
        ("qsgd4", "0cae6191dad331d1d9e1132a059a62e9012d477b03316da1b3f26c857982de0c"),
    ],
)
def test_the_bits_of_the_mean_do_not_change(name: str, sha256: str) -> None:
    """Golden: a run that is repeated with a later release ends with the same weights (invariant 8)."""
    samples = (128, 37, 1, 96)
    layout = Layout((Entry("w", (3000,)),), (Entry("mean", (5,)),))
    mean = WeightedMean(layout, sum(samples))
    for k, count in enumerate(samples):
        values = ((np.arange(3005) * 7919 + k * 104_729) % 20_011 - 10_005) / 977
        gradient, own = values[:3000].astype(np.float32), {"mean": values[3000:].astype(np.float32)}
        mean.add(codec(name).encode(gradient, k), codec(name), own, count)
    gradient, after = mean.result({"mean": np.zeros(5, np.float32)})
    assert hashlib.sha256(gradient.tobytes() + after["mean"].tobytes()).hexdigest() == sha256


def test_memory_does_not_grow_with_contributions() -> None:
    size = 1 << 20
    layout = Layout((Entry("w", (size,)),))
    payload = codec("qsgd8").encode(gradients(1, size)[0], seed=1)
    tracemalloc.start()
    try:
        mean = WeightedMean(layout, 16)
        mean.add(payload, codec("qsgd8"), {}, 1)
        tracemalloc.reset_peak()
        for _ in range(15):
            mean.add(payload, codec("qsgd8"), {}, 1)
        mean.result({})
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One accumulator of 4 bytes a value; decoding in chunks may take as much again, sixteen gradients would not fit.
    assert held < 1.25 * 4 * size
    assert peak < 2.5 * 4 * size
