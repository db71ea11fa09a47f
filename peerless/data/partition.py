"""Who gets which sample: the test and validation sets, and one disjoint partition per peer. Indices only.

Everything is drawn from the run's seed, each draw under a name of its own, so that changing one setting does not
reshuffle what it has nothing to do with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contract.errors import DataError
from contract.seeds import public_seed

Indices = NDArray[np.int64]


def split_off(indices: Indices, count: int, seed: int, name: str) -> tuple[Indices, Indices]:
    """(`count` of the indices, the rest), both ascending: drawn by (seed, name), at random, not stratified by label.

    Raises ValueError for a count outside of 0 to the number of indices.
    """
    if not 0 <= count <= len(indices):
        raise ValueError(f"{count} of {len(indices)} samples cannot be drawn")
    shuffled = indices[_permutation(len(indices), seed, name)]
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


def partition_sizes(samples: int, peers: int, relative: Sequence[float] = ()) -> tuple[int, ...]:
    """Samples per peer, in proportion to `relative` (equal where empty); they sum to `samples`.

    Each peer has at least one. Fractions go to the largest remainders, lower ranks first. Raises DataError for more
    peers than samples.
    """
    if peers > samples:
        raise DataError(
            f"{peers} peers cannot share {samples} training samples; lower peers, data.validation_samples or "
            "data.test_fraction, or raise data.train_samples"
        )
    weights = np.asarray(relative or [1.0] * peers, dtype=np.float64)
    if len(weights) != peers:
        raise DataError(f"data.sizes names {len(weights)} partitions, but there are {peers} peers")
    # One sample each comes first, so that a tiny share is not rounded away; the rest goes by weight.
    weights = weights / weights.max()  # first, because the sum of large ones could overflow
    share = weights / weights.sum() * samples
    counts = np.maximum(np.floor(share).astype(np.int64), 1)
    while counts.sum() > samples:
        counts[np.argmax(np.where(counts > 1, counts - share, -np.inf))] -= 1
    order = np.argsort(-(share - counts), kind="stable")
    for position in range(int(samples - counts.sum())):
        counts[order[position % peers]] += 1
    return tuple(int(count) for count in counts)


def iid(indices: Indices, sizes: Sequence[int], seed: int) -> tuple[Indices, ...]:
    """Shuffled samples, dealt out: every peer's partition is a random sample of the whole."""
    shuffled = indices[_permutation(len(indices), seed, "partition")]
    return _cut(shuffled, sizes)


def label_shards(
    indices: Indices, labels: NDArray[np.int64], sizes: Sequence[int], shards_per_peer: int, seed: int
) -> tuple[Indices, ...]:
    """Samples sorted by label and cut into shards, `shards_per_peer` of them for each peer (McMahan et al., 2017).

    `labels` belongs to `indices`. A peer's shards are as long as its size asks, so unequal sizes combine with it. Which
    samples of a label are in which shard is drawn by the seed, and so is a partition's inner order. A peer with fewer
    samples than shards gets fewer shards.
    """
    shuffle = _permutation(len(indices), seed, "partition")
    by_label = indices[shuffle][np.argsort(labels[shuffle], kind="stable")]
    shards = [
        (rank, length)
        for rank, size in enumerate(sizes)
        for length in partition_sizes(size, min(shards_per_peer, size))
    ]
    dealt = [shards[position] for position in _permutation(len(shards), seed, "shards")]
    pieces = _cut(by_label, [length for _, length in dealt])
    parts = []
    for rank, size in enumerate(sizes):
        own = np.concatenate([piece for (owner, _), piece in zip(dealt, pieces, strict=True) if owner == rank])
        # Otherwise the batches of a partition would hold one label each.
        parts.append(own[_permutation(size, seed, "partition order", rank)])
    return tuple(parts)


def _cut(indices: Indices, sizes: Sequence[int]) -> tuple[Indices, ...]:
    ends = np.cumsum(sizes)
    return tuple(indices[end - size : end] for end, size in zip(ends, sizes, strict=True))


def _permutation(count: int, seed: int, *names: str | int) -> Indices:
    return np.random.default_rng(public_seed(seed, "data", *names)).permutation(count)
