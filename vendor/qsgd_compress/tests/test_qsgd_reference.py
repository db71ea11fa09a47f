"""The encoder against a second reading of README.md: one value at a time, in Python integers and exact fractions."""

from __future__ import annotations

import struct
from fractions import Fraction

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qsgd_compress as q

LARGEST = Fraction((1 << 24) - 1) * 2**104
M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def nearest(x: Fraction) -> np.float32:
    """The correctly rounded float32, found from a float64 guess and its two neighbours."""
    guess = np.float32(float(x))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    finite = [y for y in around if np.isfinite(y)]
    return min(finite, key=lambda y: (abs(Fraction(float(y)) - x), int(y.view(np.uint32)) & 1))


def below(x: Fraction) -> np.float32:
    y = nearest(x)
    return np.nextafter(y, np.float32(0)) if Fraction(float(y)) > x else y


def mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def uniform(seed: int, bucket: int, e: int) -> int:
    step = 0x9E3779B97F4A7C15
    key = mix64((mix64((seed + step) & M64) + bucket * step) & M64)
    row, lane = divmod(e, 16)
    v = ((key & M32) + (row // 2 * 16 + lane) * 0x9E3779B9) & M32
    v = ((v ^ (v >> 16)) * 0x7FEB352D) & M32
    v ^= key >> 32
    v = ((v ^ (v >> 15)) * 0x846CA68B) & M32
    v ^= v >> 16
    if row % 2:
        v = ((v << 16) | (v >> 16)) & M32
    return v >> 8


def norm_of(values: list[float], norm: str) -> float:
    if norm == "max":
        return max(abs(value) for value in values)
    lanes = [0.0] * 16
    for e, value in enumerate(values):
        lanes[e % 16] += value * value
    for width in (8, 4, 2, 1):
        lanes = [lanes[j] + lanes[j + width] for j in range(width)]
    return float(np.sqrt(np.float64(lanes[0])))


def scale_and_factor(norm: float, levels: int) -> tuple[np.float32, np.float32, int]:
    top = below(Fraction(float(LARGEST)) / levels)
    if norm == 0:
        return np.float32(0), np.float32(0), 0
    scale = nearest(Fraction(min(norm / levels, float(top))))
    if float(scale) * levels < norm and scale < top:
        scale = np.nextafter(scale, np.float32(np.inf))
    lift = 64 if float(scale) < 2.0**-100 else 0
    factor = 2.0**24 / (float(scale) * 2.0**lift) if scale < top else levels * 2.0**24 / float(LARGEST)
    return scale, below(Fraction(factor)), lift


def encode(x: np.ndarray, bits: int, bucket_size: int, norm: str, seed: int) -> bytes:
    levels, per_word = (1 << (bits - 1)) - 1, 32 // bits
    scales: list[np.float32] = []
    words = [0] * (16 * -(-x.size // (16 * per_word)))
    codes = [levels] * (len(words) * per_word)
    for i, value in enumerate(x):
        bucket, e = divmod(i, bucket_size)
        if e == 0:
            scale, factor, lift = scale_and_factor(norm_of([float(v) for v in x[i : i + bucket_size]], norm), levels)
            scales.append(scale)
        fixed = int((value * np.float32(2.0**lift)) * factor)
        codes[i] = levels + ((fixed + uniform(seed, bucket, e)) >> 24)
    for i, code in enumerate(codes):
        group, rest = divmod(i, 16 * per_word)
        k, j = divmod(rest, 16)
        words[16 * group + j] |= code << (bits * k)
    body = struct.pack(f"<{len(scales)}f{len(words)}I", *scales, *words)
    flags = 1 if norm == "l2" else 0
    header = b"QSG1" + struct.pack("<BBBB", 1, flags, bits, bucket_size.bit_length() - 1)
    header += struct.pack("<QQQI", x.size, seed, 4 * len(words), google_crc32c.value(body))
    return header + struct.pack("<I", google_crc32c.value(header)) + body


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1.0, 1.0, width=32)
tiny = st.integers(-(2**25), 2**25).map(lambda k: k * 2.0**-149)
patterns = st.one_of(*(st.lists(kind, min_size=1, max_size=150) for kind in (finite, ordinary, tiny)))


@settings(max_examples=100, deadline=None)
@given(
    pattern=patterns,
    size=st.integers(0, 700),
    bits=st.sampled_from([4, 8]),
    norm=st.sampled_from(["max", "l2"]),
    bucket_size=st.sampled_from([128, 256]),
    seed=st.integers(0, M64),
)
def test_encoder_writes_what_the_specification_says(pattern, size, bits, norm, bucket_size, seed):
    x = np.resize(np.array(pattern, np.float32), size)
    assert q.encode(x, bits=bits, bucket_size=bucket_size, norm=norm, seed=seed) == encode(
        x, bits, bucket_size, norm, seed
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("norm", ["max", "l2"])
def test_specification_holds_over_many_magnitudes_in_larger_buckets(bits, norm):
    rng = np.random.default_rng(11)
    x = (rng.standard_normal(2_500) * 2.0 ** rng.integers(-150, 127, 2_500)).astype(np.float32)
    x[600:1_100] = rng.standard_normal(500).astype(np.float32)
    assert q.encode(x, bits=bits, norm=norm, seed=77) == encode(x, bits, 512, norm, 77)
    ends = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 2.0**-149, 0.0, -0.0], np.float32)
    assert q.encode(ends, bits=bits, norm=norm) == encode(ends, bits, 512, norm, 0)
