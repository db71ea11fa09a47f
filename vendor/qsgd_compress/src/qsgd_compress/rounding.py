"""The random numbers of stochastic rounding: a counter hash, so that any part of a frame can be made on its own.

Letters: n buckets, r pairs of rows in a bucket, l = 16 lanes. All arithmetic wraps modulo 2**32 or 2**64.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .frame import LANES

U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]

FRACTION_BITS = 24
_STREAM = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: consecutive buckets are far apart before mixing
_MASK_64 = (1 << 64) - 1
_COUNTER = np.uint32(0x9E3779B9)  # 2**32 / golden ratio, odd
# The multipliers and shifts of "lowbias32" (C. Wellons, hash-prospector), a search for the least avalanche bias.
_FIRST = np.uint32(0x7FEB352D)
_SECOND = np.uint32(0x846CA68B)


def _mix(z: int) -> int:
    """The finaliser of SplitMix64 (Steele et al. 2014, variant 13 of D. Stafford), on a Python integer."""
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK_64
    return z ^ z >> 31


def bucket_keys(seed: int, first: int, count: int) -> tuple[U32, U32]:
    """Two key words for each of `count` buckets from `first`: each (count,) uint32.

    The seed is mixed before the bucket is added, so that seeds that differ by a multiple of the step share no streams.
    """
    start = (_mix((seed + _STREAM) & _MASK_64) + first * _STREAM) & _MASK_64
    z: U64 = np.arange(count, dtype=np.uint64) * np.uint64(_STREAM) + np.uint64(start)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z & np.uint64(0xFFFFFFFF)).astype(np.uint32), (z >> np.uint64(32)).astype(np.uint32)


def counters(bucket_size: int) -> U32:
    """The multiplied counters of one bucket, (bucket_size / 2,) uint32: the part of the hash that no key enters."""
    return np.arange(bucket_size // 2, dtype=np.uint32) * _COUNTER


def hash_pairs(key_low_n: U32, key_high_n: U32, counter: U32, out: U32, spare: U32) -> U32:
    """One 32-bit hash for each pair of values: `out` and `spare` are (n, bucket_size / 2) uint32, `out` is returned."""
    np.add(key_low_n[:, None], counter, out=out)
    np.right_shift(out, 16, out=spare)
    np.bitwise_xor(out, spare, out=out)
    np.multiply(out, _FIRST, out=out)
    np.bitwise_xor(out, key_high_n[:, None], out=out)
    np.right_shift(out, 15, out=spare)
    np.bitwise_xor(out, spare, out=out)
    np.multiply(out, _SECOND, out=out)
    np.right_shift(out, 16, out=spare)
    return np.bitwise_xor(out, spare, out=out)


def uniforms(hash_nrl: U32, out_nr2l: U32, spare_nrl: U32) -> U32:
    """Two 24-bit uniforms from each hash, for the even and the odd row of its pair.

    The even row takes the upper 24 bits, the odd row the upper 24 bits of the hash turned by 16: each is uniform on all
    of its 24 bits, and their upper 16 bits share none.
    """
    even: Any = out_nr2l[:, :, 0, :]
    odd: Any = out_nr2l[:, :, 1, :]
    np.right_shift(hash_nrl, 8, out=even)
    np.bitwise_and(hash_nrl, np.uint32(0xFFFF), out=spare_nrl)
    np.left_shift(spare_nrl, 8, out=spare_nrl)
    np.right_shift(hash_nrl, 24, out=odd)
    np.bitwise_or(odd, spare_nrl, out=odd)
    return out_nr2l


def bucket_uniforms(seed: int, first: int, count: int, bucket_size: int) -> U32:
    """The uniforms in [0, 2**24) of whole buckets, (count, bucket_size) uint32; for tests and for reading."""
    low, high = bucket_keys(seed, first, count)
    half = (count, bucket_size // 2)
    spare = np.empty(half, np.uint32)
    hashed = hash_pairs(low, high, counters(bucket_size), np.empty(half, np.uint32), spare)
    out = np.empty((count, bucket_size // (2 * LANES), 2, LANES), np.uint32)
    rows = (count, bucket_size // (2 * LANES), LANES)
    return uniforms(hashed.reshape(rows), out, spare.reshape(rows)).reshape(count, bucket_size)
