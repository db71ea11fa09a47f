"""Every instruction set against NumPy, bit for bit: frames, decoded values and sums, at any address in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qsgd_compress as q
from qsgd_compress import codec
from qsgd_compress.body import Body
from qsgd_compress.frame import Geometry
from qsgd_compress.threads import Threads

F32 = NDArray[np.float32]
LARGEST = float(np.finfo(np.float32).max)
TINY = 2.0**-149


def some_bits(rng: np.random.Generator, size: int) -> F32:
    """Any finite pattern of bits."""
    x = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    x[x & 0x7F800000 == 0x7F800000] ^= 1 << 30
    return x.view(np.float32)


CONTENTS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy-tailed": lambda rng, n: np.clip(rng.standard_t(1, n) * 1e-4, -1e30, 1e30),
    "sparse": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "zeros": lambda rng, n: np.zeros(n),
    "negative zeros": lambda rng, n: np.full(n, -0.0),
    "subnormal": lambda rng, n: rng.integers(-(1 << 23), 1 << 23, n) * TINY,
    "smallest": lambda rng, n: rng.integers(-3, 4, n) * TINY,
    "largest": lambda rng, n: rng.choice([-LARGEST, LARGEST], n),
    "equal": lambda rng, n: np.full(n, np.float32(rng.standard_normal() * 2.0 ** rng.integers(-140, 120))),
    "scaled": lambda rng, n: rng.uniform(-1, 1, n) * 2.0 ** rng.integers(-149, 128),
    "any bits": some_bits,
}


@st.composite
def vectors(draw: st.DrawFn, size: int | None = None) -> F32:
    """Runs of different contents, many of them a bucket long, so that buckets unlike each other are neighbours."""
    if size is None:
        around = st.builds(
            lambda border, off: border + off,
            st.sampled_from([64, 128, 256, 512, 1_024, 4_096, 8_192, 65_536]),
            st.sampled_from([-1, 0, 1]),
        )
        size = draw(st.one_of(st.integers(0, 3_000), around, st.integers(69_000, 72_000)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    kinds = draw(st.lists(st.sampled_from(sorted(CONTENTS)), min_size=1, max_size=6))
    run = draw(st.sampled_from([128, 512, 1_000, 4_096, 65_536]))
    x = np.empty(size, np.float32)
    for at, start in enumerate(range(0, size, run)):
        x[start : start + run] = CONTENTS[kinds[at % len(kinds)]](rng, len(x[start : start + run]))
    return x


FORMATS = st.fixed_dictionaries(
    {
        "bits": st.sampled_from([4, 8]),
        "bucket_size": st.sampled_from([2**k for k in range(7, 17)]),
        "norm": st.sampled_from(["max", "l2"]),
        "seed": st.integers(0, 2**64 - 1),
        "entropy": st.sampled_from([None, None, "zstd"]),
    }
)
WEIGHTS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.125, 5e-324, 1e-42, -1e-45, 1e10, 1e300, -1.7e308]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def same(one: F32, other: F32) -> bool:
    """Equal bits, the sign of a zero included; but any NaN for any other: IEEE 754 leaves their bits open."""
    bits_equal = one.view(np.uint32) == other.view(np.uint32)
    return bool((bits_equal | (np.isnan(one) & np.isnan(other))).all())


@settings(max_examples=100, deadline=None)
@given(x=vectors(), options=FORMATS, threads=st.integers(1, 5))
def test_frames_and_values(arithmetic, smallest_share, instruction_set, x, options, threads):
    with arithmetic("numpy"):
        frame = q.encode(x, **options)
        values = q.decode(frame, x.size)
    with arithmetic(instruction_set), smallest_share(1 << 10):
        assert q.encode(x, **options, threads=threads) == frame
        assert same(q.decode(frame, x.size, threads=threads), values)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), acc=vectors(), threads=st.integers(1, 5))
def test_sums_of_unlike_frames(arithmetic, smallest_share, instruction_set, data, acc, threads):
    options = data.draw(st.lists(FORMATS, min_size=1, max_size=5))
    weights = [data.draw(WEIGHTS) for _ in options]
    overflowing = data.draw(st.booleans())
    if acc.size and overflowing:  # infinities meet infinities, and NaN comes of it
        acc[:: 1 + acc.size // 50] = np.inf
    with arithmetic("numpy"):
        frames = [q.encode(data.draw(vectors(acc.size)), **form) for form in options]
        one_by_one, together = acc.copy(), acc.copy()
        for frame, weight in zip(frames, weights, strict=True):
            q.accumulate(frame, one_by_one, weight)
        q.accumulate_many(frames, together, weights)
    assert same(together, one_by_one)
    with arithmetic(instruction_set), smallest_share(1 << 10):
        mine = acc.copy()
        q.accumulate_many(frames, mine, weights, threads=threads)
        assert same(mine, together)
        for frame, weight in zip(frames, weights, strict=True):
            q.accumulate(frame, acc, weight, threads=threads)
        assert same(acc, together)


def test_infinite_and_undefined_sums(arithmetic, instruction_set):
    """weight * scale leaves float32: its products with a code of zero are NaN, the others infinities."""
    x = np.array([LARGEST, -LARGEST, 0.0, LARGEST / 7] * 100, np.float32)
    results = []
    for form in ("numpy", instruction_set):
        acc = np.tile(np.array([1.0, np.inf], np.float32), 200)
        with arithmetic(form):
            q.accumulate(q.encode(x), acc, weight=1e300)
        results.append(acc)
    assert np.isnan(results[0][2::4]).all()
    assert (results[0][::4] == np.inf).all()
    assert np.isnan(results[0][1::4]).all(), "infinity less infinity"
    assert same(*results)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_sizes_around_groups_and_buckets(arithmetic, instruction_set, bits, norm):
    x = CONTENTS["normal"](np.random.default_rng(1), 400).astype(np.float32)
    for size in [*range(70), *range(120, 140), *range(180, 200), *range(250, 260), *range(310, 330), 383, 384, 385]:
        frames, sums = [], []
        for form in ("numpy", instruction_set):
            acc = np.ones(size, np.float32)
            with arithmetic(form):
                frames.append(q.encode(x[:size], bits=bits, norm=norm, bucket_size=128))
                q.accumulate(frames[-1], acc, weight=-0.3)
            sums.append(acc)
        assert frames[0] == frames[1]
        assert same(*sums)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("at", [0, 1, 15, 16, 63, 64, 500, 2_047])
def test_each_finds_the_reserved_code_wherever_it_is(in_form, bits, at):
    """Reached without checksums: `check` looks at the codes as they stand."""
    frame = q.encode(np.zeros(2_048, np.float32), bits=bits)
    codes = bytearray(frame[40 + 16 :])
    geometry = Geometry(2_048, bits, 512)
    group, within = divmod(at, geometry.group_size)
    word = 64 * group + 4 * (within % 16)
    value = int.from_bytes(codes[word : word + 4], "little") | ((1 << bits) - 1) << bits * (within // 16)
    codes[word : word + 4] = value.to_bytes(4, "little")
    scales = memoryview(frame)[40:56]
    assert codec._BACKEND.check(Body(geometry, scales, memoryview(codes), 1.0), Threads(1))[0]
    assert not codec._BACKEND.check(Body(geometry, scales, memoryview(frame)[56:], 1.0), Threads(1))[0]


def placed(values: F32, offset: int) -> F32:
    """A copy of `values` that begins `offset` bytes past a border of 64."""
    memory = np.empty(values.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + values.nbytes].view(np.float32)
    view[:] = values
    return view


class TestAddresses:
    """Vectors and frames anywhere in memory: slices of larger arrays, messages behind a header of odd length."""

    @pytest.mark.parametrize("offset", [*range(0, 64, 4), 1, 2, 3, 7, 13, 63])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_vectors(self, in_form, bits, offset):
        x = some_bits(np.random.default_rng(3), 1_337)
        x[:512] = CONTENTS["normal"](np.random.default_rng(4), 512)
        frame, there = q.encode(x, bits=bits), placed(x, offset)
        assert there.ctypes.data % 64 == offset
        assert q.encode(there, bits=bits) == frame
        assert q.encode(there, bits=bits, norm="l2") == q.encode(x, bits=bits, norm="l2")
        want = q.decode(frame, x.size)
        assert same(q.decode(frame, x.size, out=placed(x, offset)), want)
        acc, total = placed(np.ones(x.size, np.float32), offset), np.ones(x.size, np.float32)
        q.accumulate(frame, acc, 0.7)
        q.accumulate(frame, total, 0.7)
        assert same(acc, total)

    @pytest.mark.parametrize("offset", range(0, 64, 3))
    @pytest.mark.parametrize("bits", [4, 8])
    def test_frames(self, in_form, bits, offset):
        x = CONTENTS["normal"](np.random.default_rng(5), 1_337).astype(np.float32)
        frame = q.encode(x, bits=bits, bucket_size=128)
        memory = np.empty(len(frame) + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        memory[start : start + len(frame)] = np.frombuffer(frame, np.uint8)
        there = memory[start : start + len(frame)].data
        assert same(q.decode(there, x.size), q.decode(frame, x.size))
        acc, total = np.ones(x.size, np.float32), np.ones(x.size, np.float32)
        q.accumulate_many([there, frame], acc, [0.7, -2.0])
        q.accumulate_many([frame, there], total, [0.7, -2.0])
        assert same(acc, total)
