"""The codecs as the rest of the code sees them; QSGD's own tests are in vendor/qsgd_compress."""

from __future__ import annotations

import tracemalloc
import typing
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from contract.codec import CODECS, NAMES, GradientCodec, codec
from contract.config import ComputeConfig, ExchangeConfig
from contract.errors import ConfigError, CorruptObject, NonFiniteGradient

F32 = NDArray[np.float32]
ALL = list(CODECS.values())
PLAIN = [codec("none"), codec("fp16")]
SIZES = [0, 1, 511, 512, 513, 3_000]


def gradient(size: int, seed: int = 1) -> F32:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def name_of(tested: GradientCodec) -> str:
    return tested.name


def test_every_configurable_codec_exists() -> None:
    exchange = typing.get_args(ExchangeConfig.model_fields["codec"].annotation)
    compute = typing.get_args(ComputeConfig.model_fields["gradient_codec"].annotation)
    assert set(exchange) == set(NAMES) == set(CODECS)
    assert set(compute) <= set(NAMES)
    assert [tested.name for tested in ALL] == list(NAMES)


def test_an_unknown_codec_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="codec 'gzip' is none of none, fp16, qsgd8, qsgd4"):
        codec("gzip")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("tested", "bytes_per_value", "overhead", "error"),
    [
        (codec("none"), 4, 0, 0.0),
        (codec("fp16"), 2, 0, 2**-11),
        (codec("qsgd8"), 1, 120, 0.02),
        (codec("qsgd4"), 0.5, 120, 0.3),
    ],
    ids=NAMES,
)
def test_size_and_error_are_as_promised(
    tested: GradientCodec, bytes_per_value: float, overhead: int, error: float, size: int
) -> None:
    x = gradient(size)
    blob = tested.encode(x, seed=7)
    # QSGD: 40 bytes of header, one scale per bucket of 512, codes padded to groups of 16 words.
    assert size * bytes_per_value <= len(blob) <= size * bytes_per_value * 1.02 + overhead
    back = tested.decode(blob, size)
    assert back.dtype == np.float32
    assert back.shape == (size,)
    assert np.linalg.norm(back - x) <= error * np.linalg.norm(x)


@pytest.mark.parametrize("size", [*SIZES, 63, 64, 65, 127, 128, 129, 1_023, 1_025])
@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_the_length_of_a_payload_is_known_before(tested: GradientCodec, size: int) -> None:
    assert len(tested.encode(gradient(size), seed=7)) == tested.encoded_bytes(size)
    assert len(tested.encode(np.zeros(size, np.float32), seed=7)) == tested.encoded_bytes(size)


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_the_same_seed_gives_the_same_bytes(tested: GradientCodec) -> None:
    x = gradient(700)
    assert tested.encode(x, 3) == tested.encode(x.copy(), 3)
    assert (tested.encode(x, 3) == tested.encode(x, 4)) == (tested in PLAIN)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_out_and_accumulate_agree_with_decode(tested: GradientCodec, size: int) -> None:
    blob = tested.encode(gradient(size), seed=5)
    expected = tested.decode(blob, size)
    out = np.full(size, 9, np.float32)
    assert tested.decode(memoryview(blob), size, out) is out
    assert np.array_equal(out, expected)
    for weight in (1.0, 0.25, 1 / 3):
        acc = gradient(size, seed=2)
        want = acc + expected * np.float32(weight)
        tested.accumulate(memoryview(blob), acc, weight)
        # QSGD rounds weight * scale first: two roundings more, each of half a unit in the last place.
        assert np.allclose(acc, want, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_many_are_accumulated_as_one_after_the_other(tested: GradientCodec) -> None:
    size, weights = 3_000, (0.25, 1 / 3, -2.0)
    blobs = [tested.encode(gradient(size, seed), seed) for seed in range(3)]
    want, got = gradient(size, seed=9), gradient(size, seed=9)
    for blob, weight in zip(blobs, weights, strict=True):
        tested.accumulate(blob, want, weight)
    tested.accumulate_many(blobs, got, weights)
    assert got.tobytes() == want.tobytes()
    with pytest.raises(CorruptObject):
        tested.accumulate_many([blobs[0], blobs[1][:-1], blobs[2]], got, weights)
    with pytest.raises(ValueError, match="finite"):
        tested.accumulate_many(blobs, got, (1.0, float("inf"), 1.0))
    assert got.tobytes() == want.tobytes()
    tested.accumulate_many([], got, [])
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_a_check_passes_what_can_be_decoded_and_makes_no_values(tested: GradientCodec) -> None:
    for size in SIZES:
        tested.check(memoryview(tested.encode(gradient(size), seed=5)), size)
    size = 1 << 20
    blob = tested.encode(gradient(size), seed=5)
    tracemalloc.start()
    tested.check(blob, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size  # a quarter of what the values take


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_a_flipped_bit_fails_the_check_where_it_fails_decoding(tested: GradientCodec) -> None:
    blob = tested.encode(gradient(130), seed=5)
    for at in range(0, len(blob), 3):
        damaged = bytearray(blob)
        damaged[at] ^= 0x40
        assert _outcome(lambda: tested.check(damaged, 130)) == _outcome(lambda: tested.decode(damaged, 130))  # noqa: B023


def _outcome(act: Callable[[], object]) -> str:
    """What it says against a payload; empty where it takes it."""
    try:
        act()
    except CorruptObject as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_a_decoded_gradient_is_its_owners(tested: GradientCodec) -> None:
    blob = bytearray(tested.encode(gradient(600), seed=5))
    back = tested.decode(blob, 600)
    before = back.copy()
    back += 0.0
    blob[-1] ^= 0xFF
    assert np.array_equal(back, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 599])
@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_a_gradient_that_is_not_finite_is_refused_with_its_position(
    tested: GradientCodec, position: int, value: float
) -> None:
    x = gradient(600)
    x[position] = value
    with pytest.raises(NonFiniteGradient, match=f"value {position} is"):
        tested.encode(x, seed=1)


def test_the_position_is_right_beyond_the_first_chunk() -> None:
    x = np.zeros((1 << 18) * 2 + 5, np.float32)
    x[-2] = np.nan
    with pytest.raises(NonFiniteGradient, match=f"value {x.size - 2} is nan"):
        codec("none").encode(x, seed=1)
    x[-2] = 1.0
    acc = np.zeros_like(x)
    codec("fp16").accumulate(codec("fp16").encode(x, 1), acc, 2.0)
    assert np.array_equal(acc, 2 * x)


@pytest.mark.parametrize("tested", PLAIN, ids=name_of)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_payload_that_is_not_finite_is_corrupt(tested: GradientCodec, value: float) -> None:
    blob = np.array([1.0, value], "<f4" if tested.name == "none" else "<f2").tobytes()
    acc = np.ones(2, np.float32)
    with pytest.raises(CorruptObject, match="NaN or infinity"):
        tested.decode(blob, 2)
    with pytest.raises(CorruptObject, match="NaN or infinity"):
        tested.check(blob, 2)
    with pytest.raises(CorruptObject, match="NaN or infinity"):
        tested.accumulate(blob, acc, 1.0)
    assert acc.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_a_payload_of_another_size_is_corrupt_and_changes_nothing(tested: GradientCodec) -> None:
    blob = tested.encode(gradient(600), seed=1)
    out, acc = np.ones(599, np.float32), np.ones(601, np.float32)
    for wrong in (blob[:-1], blob + b"\0", b""):
        with pytest.raises(CorruptObject):
            tested.decode(wrong, 600)
        with pytest.raises(CorruptObject):
            tested.check(wrong, 600)
    with pytest.raises(CorruptObject):
        tested.decode(blob, 599, out)
    with pytest.raises(CorruptObject):
        tested.accumulate(blob, acc, 1.0)
    assert np.array_equal(out, np.ones(599, np.float32))
    assert np.array_equal(acc, np.ones(601, np.float32))


def test_a_qsgd_payload_of_other_bits_is_corrupt() -> None:
    blob = codec("qsgd8").encode(gradient(600), seed=1)
    with pytest.raises(CorruptObject, match="encoded with 8 bits"):
        codec("qsgd4").decode(blob, 600)
    with pytest.raises(CorruptObject, match="encoded with 8 bits"):
        codec("qsgd4").check(blob, 600)
    with pytest.raises(CorruptObject, match="encoded with 8 bits"):
        codec("qsgd4").accumulate(blob, np.zeros(600, np.float32), 1.0)


@pytest.mark.parametrize("tested", ALL, ids=name_of)
def test_wrong_arguments_are_the_callers_mistake(tested: GradientCodec) -> None:
    blob = tested.encode(gradient(4), seed=1)
    with pytest.raises(TypeError):
        tested.encode(np.zeros(4), seed=1)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        tested.encode(np.zeros((2, 2), np.float32), seed=1)
    with pytest.raises(ValueError, match="room for 3 values, but 4 are expected"):
        tested.decode(blob, 4, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="finite"):
        tested.accumulate(blob, np.zeros(4, np.float32), float("nan"))


def test_fp16_saturates_and_rounds_to_nearest() -> None:
    x = np.array([1e30, -1e30, 65_504, 65_519, 65_520, 1 + 2**-11, 1e-30, -0.0], np.float32)
    back = codec("fp16").decode(codec("fp16").encode(x, seed=0), x.size)
    assert back.tolist() == [65_504, -65_504, 65_504, 65_504, 65_504, 1.0, 0.0, 0.0]
    assert np.signbit(back[-1])


def test_none_is_little_endian_float32() -> None:
    assert codec("none").encode(np.array([1.0, -2.0], np.float32), 0) == bytes.fromhex("0000803f000000c0")


vectors = hnp.arrays(
    np.float32, st.integers(0, 70), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)


@settings(max_examples=100)
@given(x=vectors)
def test_none_keeps_every_bit(x: F32) -> None:
    assert codec("none").decode(codec("none").encode(x, 0), x.size).tobytes() == x.tobytes()


@settings(max_examples=100)
@given(x=vectors)
def test_every_codec_takes_every_finite_gradient(x: F32) -> None:
    for tested in ALL:
        back = tested.decode(tested.encode(x, seed=1), x.size)
        assert np.isfinite(back).all()
        assert not back[x == 0].any(), "zero stays zero"
