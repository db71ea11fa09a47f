"""Stochastic rounding as statistics: fixed seeds, stated thresholds, and the probability of a false alarm.

Letters: m values, and 20,000 seeds over which each value's mean and squared error are taken.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

import qsgd_compress as q
from qsgd_compress.rounding import bucket_uniforms

SEEDS = 20_000
SIZE = 10_240  # the standard deviation of that many z-scores is itself known to 0.7 %


@dataclass(frozen=True)
class Sample:
    x_m: NDArray[np.float64]
    step_m: NDArray[np.float64]  # the scale of each value's bucket
    sum_m: NDArray[np.float64]  # of the errors
    square_m: NDArray[np.float64]  # of the squared errors
    row_products: float  # of neighbouring rows' errors in units of a step: they share a hash

    @property
    def variance_m(self) -> NDArray[np.float64]:
        """What rounding to the two neighbouring levels must have: step**2 * p * (1 - p)."""
        p_m = np.mod(self.x_m / self.step_m, 1.0)
        return self.step_m**2 * p_m * (1 - p_m)


def gradient(size: int, seed: int) -> NDArray[np.float32]:
    """Heavy-tailed: normal values whose scale changes by layers, some of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size) * np.exp(rng.standard_normal(-(-size // 1_024)).repeat(1_024)[:size])
    x[rng.random(size) < 0.1] = 0.0
    return x.astype(np.float32)


@functools.cache
def sample(bits: int, norm: str) -> Sample:
    x_m = gradient(SIZE, 5)
    sum_m, square_m, products = np.zeros(SIZE), np.zeros(SIZE), 0.0
    decoded_m, error_m = np.empty(SIZE, np.float32), np.empty(SIZE)
    step_m = np.frombuffer(q.encode(x_m, bits=bits, norm=norm), np.float32, SIZE // 512, 40).repeat(512).astype(float)
    for seed in range(SEEDS):
        q.decode(q.encode(x_m, bits=bits, norm=norm, seed=seed), SIZE, out=decoded_m)
        np.subtract(decoded_m, x_m, out=error_m, dtype=np.float64)
        np.add(sum_m, error_m, out=sum_m)
        if seed % 20 == 0:
            rows = (error_m / step_m).reshape(-1, 2, 16)
            products += float((rows[:, 0] * rows[:, 1]).sum())
        np.multiply(error_m, error_m, out=error_m)
        np.add(square_m, error_m, out=square_m)
    return Sample(x_m.astype(float), step_m, sum_m, square_m, products)


@pytest.mark.parametrize(("bits", "norm"), [(4, "max"), (8, "l2")])
def test_rounding_is_unbiased_value_by_value(bits, norm):
    s = sample(bits, norm)
    # Where fewer than 50 of the 20,000 roundings differ from the rest, a z-score is not normal; the sum below has them.
    often_m = SEEDS * s.variance_m > 50 * s.step_m**2
    z_m = s.sum_m[often_m] / np.sqrt(SEEDS * s.variance_m[often_m])
    assert often_m.mean() > 0.85
    assert abs(z_m.std() - 1) < 0.02  # 3 standard errors
    assert np.abs(z_m).max() < 6  # 2e-9 for each value
    assert abs(z_m.mean()) < 5 / np.sqrt(z_m.size)
    assert abs(s.sum_m.sum() / np.sqrt(SEEDS * s.variance_m.sum())) < 5


@pytest.mark.parametrize(("bits", "norm"), [(4, "max"), (8, "l2")])
def test_variance_is_that_of_rounding_to_two_neighbours(bits, norm):
    s = sample(bits, norm)
    assert abs(s.square_m.sum() / (SEEDS * s.variance_m.sum()) - 1) < 0.01


def test_values_that_share_a_hash_are_rounded_independently():
    s = sample(4, "max")
    variance = (s.variance_m / s.step_m**2).reshape(-1, 2, 16)
    spread = np.sqrt(SEEDS / 20 * (variance[:, 0] * variance[:, 1]).sum())
    assert abs(s.row_products / spread) < 5


@pytest.mark.parametrize("bits", [4, 8])
def test_l2_variance_is_under_the_bound_of_the_paper(bits):
    """Lemma 3.1 of arXiv 1610.02132 for every bucket: E|Q(x) - x|^2 <= min(n / s^2, sqrt(n) / s) |x|^2."""
    buckets, n, levels = 8, 128, 2 ** (bits - 1) - 1
    x = gradient(buckets * n, 6)
    error_b = np.zeros(buckets)
    for seed in range(2_000):
        y = q.decode(q.encode(x, bits=bits, bucket_size=n, norm="l2", seed=seed), x.size)
        error_b += ((y.astype(float) - x).reshape(buckets, n) ** 2).sum(axis=1) / 2_000
    square_b = (x.astype(float).reshape(buckets, n) ** 2).sum(axis=1)
    assert (error_b < min(n / levels**2, np.sqrt(n) / levels) * square_b).all()


@pytest.mark.parametrize("peers", [4, 16])
def test_errors_of_peers_with_their_own_seeds_average_out(peers):
    x = gradient(100_000, 7)
    one = np.linalg.norm(q.decode(q.encode(x, seed=1), x.size) - x)
    mean = np.zeros_like(x)
    q.accumulate_many([q.encode(x, seed=seed) for seed in range(peers)], mean, [1 / peers] * peers)
    assert np.linalg.norm(mean - x) / one == pytest.approx(1 / np.sqrt(peers), rel=0.02)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.25), (8, 0.015)])
def test_error_on_a_heavy_tailed_gradient(bits, most):
    x = gradient(1_000_000, 8)
    assert np.mean((x - x.mean()) ** 4) / x.var() ** 2 > 30  # kurtosis; 3 is normal
    y = q.decode(q.encode(x, bits=bits, seed=9), x.size)
    assert np.linalg.norm(y - x) / np.linalg.norm(x) < most


class TestCounterHash:
    """u is 24 bits wide; each statistic is a z-score or a chi-square with its threshold beside it."""

    WIDTH = 2.0**24

    def centred(self, seed: int, first: int = 0, count: int = 2_048, bucket_size: int = 512) -> NDArray[np.float64]:
        return (bucket_uniforms(seed, first, count, bucket_size) + 0.5) / self.WIDTH - 0.5

    def correlation(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """As a z-score: the products of two independent uniforms have variance 1/144."""
        return float((a * b).sum() / np.sqrt(a.size / 144))

    @pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1])
    @pytest.mark.parametrize("shift", [0, 8, 16])
    def test_every_byte_of_u_is_uniform(self, seed, shift):
        u = bucket_uniforms(seed, 0, 2_048, 512)
        counts = np.bincount((u >> shift & 0xFF).reshape(-1).astype(np.int64), minlength=256)
        chi_square = ((counts - u.size / 256) ** 2).sum() / (u.size / 256)
        assert abs(chi_square - 255) / np.sqrt(2 * 255) < 5

    def test_every_position_of_a_bucket_is_uniform(self):
        u_nb = self.centred(3, count=8_192)
        assert np.abs(u_nb.mean(axis=0) / np.sqrt(1 / 12 / len(u_nb))).max() < 5
        spread_b = (u_nb**2).mean(axis=0) * 12  # its standard error is sqrt(0.8 / n)
        assert np.abs((spread_b - 1) / np.sqrt(0.8 / len(u_nb))).max() < 5

    @pytest.mark.parametrize("distance", [1, 2, 15, 16, 17, 32, 64, 128, 256])
    def test_positions_do_not_depend_on_each_other(self, distance):
        u_nb = self.centred(4)
        assert abs(self.correlation(u_nb[:, distance:], u_nb[:, :-distance])) < 5

    def test_every_pair_of_positions_is_uncorrelated(self):
        u_nb = self.centred(5, count=16_384, bucket_size=128)
        z_bb = (u_nb.T @ u_nb) * 12 / np.sqrt(len(u_nb))
        off = z_bb[~np.eye(128, dtype=bool)]
        assert np.abs(off).max() < 6
        assert abs(off.std() - 1) < 0.02

    def test_two_positions_fill_the_square(self):
        u_nb = bucket_uniforms(6, 0, 8_192, 128).astype(np.int64) >> 20
        for other in (1, 16, 32):  # the lane beside, the row of the same hash, the row of the next hash
            counts = np.bincount((u_nb[:, :-other] * 16 + u_nb[:, other:]).reshape(-1), minlength=256)
            chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
            assert abs(chi_square - 255) / np.sqrt(2 * 255) < 6

    @pytest.mark.parametrize("other", [1, 2, 2**31, 2**32, 2**63, 0x9E3779B97F4A7C15])
    def test_seeds_that_are_alike_share_nothing(self, other):
        """The last one is the step between buckets: unmixed, one seed would repeat the other shifted by a bucket."""
        a_nb, b_nb = self.centred(7), self.centred(7 + other)
        assert abs(self.correlation(a_nb, b_nb)) < 5
        assert abs(self.correlation(a_nb[1:], b_nb[:-1])) < 5
        assert abs(self.correlation(a_nb[:-1], b_nb[1:])) < 5

    def test_buckets_share_nothing(self):
        a_nb = self.centred(8)
        for distance in (1, 2, 16, 1_024):
            assert abs(self.correlation(a_nb[distance:], a_nb[:-distance])) < 5
        far_nb = self.centred(8, first=2**32)
        assert abs(self.correlation(a_nb, far_nb)) < 5

    @pytest.mark.parametrize("bit", [0, 7, 31, 32, 45, 63])
    def test_a_flipped_bit_of_the_seed_flips_half_of_every_bit(self, bit):
        flipped = bucket_uniforms(9, 0, 512, 512) ^ bucket_uniforms(9 ^ 1 << bit, 0, 512, 512)
        share = np.array([(flipped >> k & 1).mean() for k in range(24)])
        assert np.abs((share - 0.5) / np.sqrt(0.25 / flipped.size)).max() < 5
