"""Values in, values out: sizes and contents at the edges, sums, threads, arguments, and traps others fell into."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qsgd_compress as q

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149


def normal(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def within_a_step(x: NDArray[np.float32], **options: object) -> NDArray[np.float32]:
    """The decoded values, each within one step of its bucket; the steps are read from the frame."""
    frame = q.encode(x, **options)
    info = q.inspect(frame)
    y = q.decode(frame, x.size)
    step = np.frombuffer(frame, np.float32, -(-x.size // info.bucket_size), 40).repeat(info.bucket_size)[: x.size]
    error = np.abs(y.astype(float) - x.astype(float))
    assert (error <= step.astype(float) * (1 + 1e-5)).all()
    assert y.dtype == np.float32
    assert y.shape == x.shape
    return y


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("norm", ["max", "l2"])
class TestEdges:
    @pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1_023, 1_024, 1_025])
    def test_sizes(self, size, bits, norm):
        within_a_step(normal(size), bits=bits, norm=norm)
        within_a_step(normal(size), bits=bits, norm=norm, bucket_size=128)

    @pytest.mark.parametrize("bucket_size", [2**k for k in range(7, 17)])
    @pytest.mark.parametrize("over", [-1, 0, 1])
    def test_bucket_sizes(self, bucket_size, over, bits, norm):
        within_a_step(normal(bucket_size + over), bits=bits, norm=norm, bucket_size=bucket_size)

    @pytest.mark.parametrize("size", [2**17 - 1, 2**17 + 1, 2**18 + 700])
    def test_sizes_around_the_chunk_of_work(self, size, bits, norm):
        within_a_step(normal(size), bits=bits, norm=norm)

    @pytest.mark.parametrize("zero", [0.0, -0.0])
    def test_zeros_are_zeros(self, zero, bits, norm):
        y = q.decode(q.encode(np.full(1_500, zero, np.float32), bits=bits, norm=norm), 1_500)
        assert (y.view(np.uint32) == 0).all()

    def test_zeros_among_others_stay_zeros(self, bits, norm):
        x = normal(4_096)
        x[::3] = 0
        for seed in range(20):
            assert not q.decode(q.encode(x, bits=bits, norm=norm, seed=seed), x.size)[::3].any()

    @pytest.mark.parametrize("factor", [1, 2, 3, 6, 7, 100, 127, 128, 2**23, 2**24 - 1])
    def test_subnormals(self, factor, bits, norm):
        rng = np.random.default_rng(factor)
        x = (rng.integers(-factor, factor + 1, 700) * SMALLEST).astype(np.float32)
        within_a_step(x, bits=bits, norm=norm)
        mean = np.zeros(700)
        for seed in range(400):
            mean += q.decode(q.encode(x, bits=bits, norm=norm, seed=seed), 700).astype(float) / 400
        levels, width = 2 ** (bits - 1) - 1, factor if norm == "max" else factor * np.sqrt(512)
        assert np.abs(mean - x).max() < 6 * 0.5 / 20 * max(width / levels + 1, 1) * SMALLEST

    def test_a_lone_subnormal_bucket_among_ordinary_ones(self, bits, norm):
        x = normal(1_536)
        x[512:1_024] *= np.float32(2.0**-140)
        y = within_a_step(x, bits=bits, norm=norm)
        assert y[512:1_024].any()

    @pytest.mark.parametrize("exponent", [-149, -127, -126, -108, -105, -104, -98, -97, -94, -93, -60, 60, 120, 127])
    def test_every_magnitude(self, exponent, bits, norm):
        x = (normal(600).astype(float) * 2.0**exponent).clip(-LARGEST, LARGEST)
        within_a_step(x.astype(np.float32), bits=bits, norm=norm)

    def test_largest_floats(self, bits, norm):
        x = np.full(600, LARGEST, np.float32)
        x[::2] = -LARGEST
        y = within_a_step(x, bits=bits, norm=norm)
        assert np.isfinite(y).all()
        assert (np.sign(y) == np.sign(x)).mean() > 0.9

    @pytest.mark.parametrize("value", [1.0, -1.0, 0.1, LARGEST, -LARGEST, SMALLEST, 2.0**-126, 1e-40])
    def test_all_equal(self, value, bits, norm):
        y = within_a_step(np.full(513, value, np.float32), bits=bits, norm=norm)
        if norm == "max" and abs(value) > 2.0**-126:  # a subnormal scale is too coarse to have the value on a level
            np.testing.assert_allclose(y, np.float32(value), rtol=3e-7)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [0, 511, 512, 1_299, 200_000, 299_999])
    def test_what_is_not_finite_is_refused_with_its_place(self, bad, at, bits, norm):
        x = normal(max(at + 1, 1_300))
        x[at] = bad
        x[at + 1 :][-1:] = np.nan  # a later one does not win
        for threads in (1, 4):
            with pytest.raises(q.NonFiniteGradient, match=rf"value {at} is") as caught:
                q.encode(x, bits=bits, norm=norm, threads=threads)
            assert caught.value.index == at
        assert copy.copy(caught.value).index == at, "an error that crosses processes is rebuilt from its arguments"


@pytest.mark.usefixtures("in_form")
class TestTraps:
    """What published implementations get wrong (facts of this format's design; each was met in the wild)."""

    @pytest.mark.parametrize(("bits", "ratio"), [(4, 7.85), (8, 3.95)])
    def test_codes_are_packed(self, bits, ratio):
        assert 4 * 1_000_000 / len(q.encode(normal(1_000_000), bits=bits)) > ratio

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("entropy", [None, "zstd"])
    def test_the_top_level_survives(self, bits, entropy):
        x = np.zeros(512, np.float32)
        x[3], x[400] = 2.0, -2.0
        for seed in range(50):
            y = q.decode(q.encode(x, bits=bits, seed=seed, entropy=entropy), 512)
            np.testing.assert_allclose(y[[3, 400]], [2.0, -2.0], rtol=3e-7)

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("norm", ["max", "l2"])
    @pytest.mark.parametrize("entropy", [None, "zstd"])
    @pytest.mark.parametrize("size", [1, 512, 10_000])
    def test_an_all_zero_gradient_is_one(self, bits, norm, entropy, size):
        frame = q.encode(np.zeros(size, np.float32), bits=bits, norm=norm, entropy=entropy)
        assert (q.decode(frame, size).view(np.uint32) == 0).all()
        acc = normal(size)
        q.accumulate(frame, acc, 3.0)
        np.testing.assert_array_equal(acc, normal(size))

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("norm", ["max", "l2"])
    def test_a_bucket_of_zeros_among_others_is_one(self, bits, norm):
        x = normal(3_000)
        x[512:1_024] = 0
        y = within_a_step(x, bits=bits, norm=norm)
        assert not y[512:1_024].any()
        assert y[:512].any()

    def test_zero_and_one_have_codes_of_their_own(self):
        x = np.zeros(512, np.float32)
        x[0], x[1], x[2] = 7.0, 1.0, -1.0
        np.testing.assert_array_equal(q.decode(q.encode(x), 512), x)

    @pytest.mark.parametrize("bits", [4, 8])
    def test_every_level_has_a_code(self, bits):
        levels = 2 ** (bits - 1) - 1
        x = np.arange(-levels, levels + 1, dtype=np.float32)
        np.testing.assert_array_equal(q.decode(q.encode(x, bits=bits), x.size), x)


class TestSums:
    @pytest.mark.parametrize("weight", [1.0, 0.25, -3.7, 1e-30, 0.0])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_accumulate_adds_the_weighted_values(self, weight, bits):
        x, acc = normal(3_001), normal(3_001, 1)
        frame = q.encode(x, bits=bits)
        scale = np.frombuffer(frame, np.float32, 6, 40)
        code = np.rint(q.decode(frame, 3_001) / scale.repeat(512)[:3_001]).astype(np.float32)
        step = (scale.astype(np.float64) * weight).astype(np.float32)
        want = acc + code * step.repeat(512)[:3_001]
        q.accumulate(frame, acc, weight=weight)
        np.testing.assert_array_equal(acc, want)

    def test_onto_zeros_it_is_decode(self):
        frame, acc = q.encode(normal(2_000)), np.zeros(2_000, np.float32)
        q.accumulate(frame, acc)
        np.testing.assert_array_equal(acc, q.decode(frame, 2_000))

    @pytest.mark.parametrize("size", [0, 1, 300_000])
    def test_many_is_one_after_the_other_whatever_the_frames(self, size):
        forms = [
            {"bits": 4},
            {"bits": 8, "bucket_size": 128},
            {"bits": 4, "bucket_size": 65_536, "norm": "l2"},
            {"bits": 8, "entropy": "zstd"},
        ]
        frames = [q.encode(normal(size, k), seed=k, **form) for k, form in enumerate(forms)]
        weights = [0.1, 2.0, -1.5, 0.7]
        one, many, threaded = (np.ones(size, np.float32) for _ in range(3))
        for frame, weight in zip(frames, weights, strict=True):
            q.accumulate(frame, one, weight)
        q.accumulate_many(frames, many, weights)
        q.accumulate_many(frames, threaded, weights, threads=3)
        np.testing.assert_array_equal(one, many)
        np.testing.assert_array_equal(one, threaded)

    def test_no_frames_change_nothing(self):
        acc = normal(10)
        q.accumulate_many([], acc, [])
        np.testing.assert_array_equal(acc, normal(10))

    def test_out_is_the_array_that_comes_back(self):
        out = np.empty(1_000, np.float32)
        assert q.decode(q.encode(normal(1_000)), 1_000, out=out) is out

    def test_a_sum_past_the_largest_float_is_infinite_without_a_warning(self):
        acc = np.full(3, LARGEST, np.float32)
        q.accumulate(q.encode(np.full(3, LARGEST, np.float32)), acc, weight=1e10)
        assert np.isinf(acc).all()

    def test_a_caller_who_traps_underflow_does_not_stop_the_codec(self):
        x = np.array([1.0, 1e-40, 1e-38, -1e-45], np.float32)
        with np.errstate(all="raise"):
            acc = np.ones(4, np.float32)
            q.accumulate(q.encode(x), acc, weight=1e-42)
            q.decode(q.encode(x * np.float32(1)), 4)


class TestThreads:
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("norm", ["max", "l2"])
    @pytest.mark.parametrize("size", [1, 100_000, 262_144, 300_001])
    def test_bytes_and_values_do_not_depend_on_them(self, bits, norm, size):
        x = normal(size)
        frame = q.encode(x, bits=bits, norm=norm, seed=6)
        values, total = q.decode(frame, size), np.ones(size, np.float32)
        q.accumulate(frame, total, 0.3)
        for threads in (2, 3, 7):
            assert q.encode(x, bits=bits, norm=norm, seed=6, threads=threads) == frame
            np.testing.assert_array_equal(q.decode(frame, size, threads=threads), values)
            acc = np.ones(size, np.float32)
            q.accumulate(frame, acc, 0.3, threads=threads)
            np.testing.assert_array_equal(acc, total)


@settings(max_examples=150, deadline=None)
@given(
    pattern=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=100),
    size=st.integers(0, 3_000),
    bits=st.sampled_from([4, 8]),
    norm=st.sampled_from(["max", "l2"]),
    bucket_size=st.sampled_from([128, 512, 1_024]),
    entropy=st.sampled_from([None, "zstd"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_finite_vector_comes_back_within_a_step(pattern, size, bits, norm, bucket_size, entropy, seed):
    x = np.resize(np.array(pattern, np.float32), size)
    within_a_step(x, bits=bits, norm=norm, bucket_size=bucket_size, entropy=entropy, seed=seed)


class TestArguments:
    @pytest.mark.parametrize(
        "options",
        [
            {"bits": 2},
            {"bits": 16},
            {"bucket_size": 64},
            {"bucket_size": 500},
            {"bucket_size": 2**17},
            {"bucket_size": -512},
            {"norm": "l1"},
            {"entropy": "gzip"},
            {"seed": -1},
            {"seed": 2**64},
            {"threads": 0},
        ],
    )
    def test_an_impossible_option_is_a_value_error(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            q.encode(normal(10), **options)

    @pytest.mark.parametrize("name", ["bits", "bucket_size", "seed", "threads"])
    def test_integers_are_integers(self, name):
        with pytest.raises(TypeError):
            q.encode(normal(10), **{name: 4.0})

    def test_numpy_integers_are_integers_too(self):
        assert q.encode(normal(10), seed=np.uint64(2**63), bits=np.int8(4)) == q.encode(normal(10), seed=2**63)

    @pytest.mark.parametrize("x", [[1.0], np.zeros(3), np.zeros(3, np.int32), np.zeros(3, ">f4"), None])
    def test_only_float32_arrays(self, x):
        with pytest.raises(TypeError, match="float32"):
            q.encode(x)
        with pytest.raises(TypeError, match="float32"):
            q.accumulate(q.encode(normal(3)), x)

    @pytest.mark.parametrize("x", [np.zeros((3, 3), np.float32), np.zeros(8, np.float32)[::2], np.float32(3)[...]])
    def test_only_one_contiguous_dimension(self, x):
        with pytest.raises(ValueError, match="one-dimensional"):
            q.encode(x)

    def test_a_read_only_gradient_is_fine_and_a_read_only_target_is_not(self):
        x = normal(10)
        x.flags.writeable = False
        frame = q.encode(x)
        with pytest.raises(ValueError, match="writable"):
            q.decode(frame, 10, out=x)
        with pytest.raises(ValueError, match="writable"):
            q.accumulate(frame, x)

    def test_weights_match_frames_and_are_finite(self):
        frame, acc = q.encode(normal(10)), np.zeros(10, np.float32)
        with pytest.raises(ValueError, match="weights"):
            q.accumulate_many([frame], acc, [1.0, 2.0])
        for weight in (np.nan, np.inf):
            with pytest.raises(ValueError, match="finite"):
                q.accumulate(frame, acc, weight)

    def test_a_blob_is_a_buffer(self):
        with pytest.raises(TypeError, match="bytes"):
            q.decode("text", 3)

    def test_the_input_is_left_alone(self):
        x = normal(5_000)
        q.encode(x, norm="l2", threads=2)
        np.testing.assert_array_equal(x, normal(5_000))

    def test_without_zstandard_one_sentence_says_what_to_install(self, monkeypatch):
        frame = q.encode(normal(10), entropy="zstd")
        monkeypatch.setitem(sys.modules, "zstandard", None)
        assert q.encode(normal(10), entropy="zstd") == frame, "the encoder is the package's own"
        with pytest.raises(ImportError, match=r"qsgd-compress\[zstd\]"):
            q.decode(frame, 10)

    def test_the_backend_has_a_name(self):
        assert q.backend() in ("native", "numpy")

    def test_errors_are_one_family(self):
        for kind in (q.CorruptFrame, q.NonFiniteGradient, q.SizeMismatch):
            assert issubclass(kind, q.QsgdError)
