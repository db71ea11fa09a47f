"""Partitions: disjoint, complete, of the sizes asked for, and decided by the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contract.errors import DataError
from peerless.data.partition import iid, label_shards, partition_sizes, split_off

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def sizes_of(draw) -> tuple[int, ...]:
    peers = draw(st.integers(1, 12))
    samples = draw(st.integers(peers, 300))
    relative = draw(st.one_of(st.just([]), st.lists(st.floats(1e-6, 1e6), min_size=peers, max_size=peers)))
    return partition_sizes(samples, peers, relative)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 40), st.integers(1, 1_000), st.data())
def test_sizes_sum_up_and_keep_their_proportion(peers, samples, data):
    assume(peers <= samples)
    relative = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=peers, max_size=peers))
    sizes = partition_sizes(samples, peers, relative)
    assert sum(sizes) == samples
    assert min(sizes) >= 1
    shares = np.array(relative) / sum(relative) * samples
    if shares.min() >= 1:  # else the guaranteed sample of the smallest is taken from the others
        assert np.abs(np.array(sizes) - shares).max() <= 1 + 1e-9
    equal = partition_sizes(samples, peers)
    assert sum(equal) == samples
    assert max(equal) - min(equal) <= 1
    assert list(equal) == sorted(equal, reverse=True), "lower ranks get the remainder"


def test_sizes_of_the_configurations_example():
    assert partition_sizes(80, 4, [4, 2, 1, 1]) == (40, 20, 10, 10)
    assert partition_sizes(55_000, 4) == (13_750,) * 4
    assert partition_sizes(10, 4, [1, 1, 1, 1]) == (3, 3, 2, 2)
    assert partition_sizes(5, 4, [1000, 1, 1, 1]) == (2, 1, 1, 1)
    assert partition_sizes(4, 2, [1e308, 1.7e308]) == (1, 3)


def test_more_peers_than_samples_is_the_users_mistake():
    assert partition_sizes(3, 3, [9, 1, 1]) == (1, 1, 1)
    with pytest.raises(DataError, match="4 peers cannot share 3 training samples; lower peers"):
        partition_sizes(3, 4)
    with pytest.raises(DataError, match="names 2 partitions"):
        partition_sizes(30, 4, [1, 2])


@settings(deadline=None)  # a busy machine is no failure
@given(sizes_of(), SEEDS, SEEDS)
def test_iid_is_a_partition_by_seed(sizes, seed, other):
    indices = np.arange(1_000, 1_000 + sum(sizes))
    parts = iid(indices, sizes, seed)
    assert tuple(map(len, parts)) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), indices)
    for part, again in zip(parts, iid(indices, sizes, seed), strict=True):
        np.testing.assert_array_equal(part, again)
    if len(indices) > 20 and seed != other:  # 20! orders: never the same by chance
        assert not np.array_equal(np.concatenate(parts), np.concatenate(iid(indices, sizes, other)))


@settings(deadline=None)  # a busy machine is no failure
@given(sizes_of(), st.integers(1, 5), SEEDS, st.data())
def test_label_shards_are_a_partition_by_seed(sizes, shards, seed, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=sum(sizes), max_size=sum(sizes))), dtype=np.int64)
    indices = np.arange(500, 500 + sum(sizes))
    parts = label_shards(indices, labels, sizes, shards, seed)
    assert tuple(map(len, parts)) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), indices)
    for part, again in zip(parts, label_shards(indices, labels, sizes, shards, seed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_label_shards_give_each_peer_few_labels_in_mixed_order():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
    indices = np.arange(400)
    dealt = set()
    for seed in range(20):
        parts = label_shards(indices, labels, partition_sizes(400, 5), 2, seed)
        held = [np.unique(labels[part]) for part in parts]
        assert all(len(each) <= 2 for each in held)  # 10 shards of 40, one label each
        assert {int(label) for each in held for label in each} == set(range(10))
        dealt.add(tuple(tuple(map(int, each)) for each in held))
        first = next(part for part, each in zip(parts, held, strict=True) if len(each) == 2)
        assert len(np.unique(labels[first[:20]])) == 2, "the first batch mixes the partition's labels"
    assert len(dealt) > 10, "the seed decides who gets which labels"
    mixed = iid(indices, partition_sizes(400, 5), 0)
    assert all(len(np.unique(labels[part])) == 10 for part in mixed)


def test_label_shards_respect_unequal_sizes():
    labels = np.repeat(np.arange(4), 100)
    parts = label_shards(np.arange(400), labels, partition_sizes(400, 2, [3, 1]), 1, seed=1)
    assert [len(part) for part in parts] == [300, 100]
    assert [len(np.unique(labels[part])) for part in parts] == [3, 1]


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 60), SEEDS, st.data())
def test_a_set_split_off_is_disjoint_from_the_rest(total, seed, data):
    count = data.draw(st.integers(0, total))
    indices = np.arange(total) * 3
    taken, rest = split_off(indices, count, seed, "validation")
    assert len(taken) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([taken, rest])), indices)
    again, _ = split_off(indices, count, seed, "validation")
    np.testing.assert_array_equal(taken, again)


def test_draws_of_different_names_and_impossible_counts():
    one, _ = split_off(np.arange(1_000), 100, 1, "test")
    two, _ = split_off(np.arange(1_000), 100, 1, "validation")
    assert not np.array_equal(one, two)
    for count in (-1, 11):
        with pytest.raises(ValueError, match="cannot be drawn"):
            split_off(np.arange(10), count, 1, "test")
