"""Seeds: stable for ever, and never shared by accident."""

from __future__ import annotations

import itertools

import pytest

from contract.seeds import peer_seed, public_seed, round_seed

SECRET = b"0123456789abcdef"


def test_golden_values() -> None:
    # A changed value would break the repeatability of every recorded run.
    assert public_seed(1, "order", 0, 0) == 6_945_648_241_287_708_244
    assert peer_seed(SECRET, "mask", 3) == 457_320_976_414_680_449
    assert round_seed("mnist-1", 7, "shard", 2) == 7_253_226_789_835_385_768


def test_no_two_purposes_share_a_seed() -> None:
    seeds = [public_seed(s, what, rank, t) for s, what, rank, t in itertools.product((0, 1), "ab", range(9), range(40))]
    seeds += [round_seed("run", t, "a", rank) for t, rank in itertools.product(range(40), range(9))]
    seeds += [peer_seed(SECRET, "a", rank) for rank in range(9)]
    assert len(set(seeds)) == len(seeds)


def test_parts_are_kept_apart() -> None:
    parted = [("ab", "c"), ("a", "bc"), ("a", "b", "c"), ("abc",), (1, 2), (12,), ("1", "2"), ("12",), ("1", 2), ()]
    assert len({public_seed(1, *names) for names in parted}) == len(parted)


def test_seeds_have_63_bits_and_use_them() -> None:
    seeds = [public_seed(1, index) for index in range(2_000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert 850 < ones < 1_150, f"bit {bit}: six standard deviations are 134"


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        peer_seed(b"short")
