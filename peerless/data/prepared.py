"""A data set divided among the peers and ready to be sent: indices into the raw samples, and a fitted transform.

Shapes: a batch is x (B, C, H, W) or (B, F) float32 and y (B,) int64 labels or (B, …) float32 numbers. Batches are made
when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contract.config import BUILT_IN_MODELS, RunConfig
from contract.errors import DataError
from contract.modelspec import ModelSpec
from peerless.data.dataset import Dataset
from peerless.data.partition import Indices, iid, label_shards, partition_sizes, split_off
from peerless.data.preprocess import Transform, fit

#: S3's limit for one PUT. The validation set is one object.
_MOST_OBJECT_BYTES = 5 * 10**9

#: Without data.validation_samples a tenth of the training set is kept apart, but no more than this.
MOST_VALIDATION_SAMPLES = 5_000

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Disjoint sets of samples: a partition per peer, validation, test."""

    dataset: Dataset
    transform: Transform
    """Fitted on all partitions together, and on nothing else."""
    batch_size: int
    """Samples per batch. The last batch of a partition holds the remainder; a single sample left over joins the batch
    before instead, because batch normalisation cannot train on one sample."""
    partitions: tuple[Indices, ...]
    """Indices into `dataset.train_x` by rank, in the order of the batches."""
    validation: Indices
    """Indices into `dataset.train_x`."""
    test: Indices
    """Indices into `dataset.test_x`, or into `train_x` where the source brought no test set."""
    channels: int
    """Channels of an image; for feature vectors the number of features."""
    image_size: int
    """Height (and for built-in models width) in pixels; 1 for feature vectors."""
    sample_shape: tuple[int, ...]
    """Shape of one x: (C, H, W) or (F,)."""

    @property
    def classes(self) -> int:
        """Number of classes; where targets are numbers, how many there are per sample."""
        return self.dataset.classes

    @property
    def names(self) -> tuple[str, ...]:
        """One name per class, or empty."""
        return self.dataset.names

    @property
    def samples(self) -> tuple[int, ...]:
        """Training samples by rank."""
        return tuple(len(part) for part in self.partitions)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches by rank."""
        return tuple(batch_count(len(part), self.batch_size) for part in self.partitions)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample with its target, as it is sent."""
        return 4 * int(np.prod(self.sample_shape)) + self.dataset.target_bytes

    def model_spec(self, config: RunConfig) -> ModelSpec:
        """The configured model for these data. Of feature vectors each feature is a channel of one pixel."""
        return ModelSpec(
            name=config.model,
            classes=self.classes,
            channels=self.channels,
            image_size=self.image_size,
            options=dict(config.model_options),
        )

    def batch(self, rank: int, index: int) -> Batch:
        """Batch `index` of a peer. Raises IndexError where there is none."""
        if not 0 <= index < self.batches[rank]:
            raise IndexError(f"rank {rank} has {self.batches[rank]} batches, no batch {index}")
        start = index * self.batch_size
        last = index == self.batches[rank] - 1
        return self._take(self.partitions[rank][start : None if last else start + self.batch_size])

    def validation_set(self) -> Batch:
        """The whole validation set as one batch."""
        return self._take(self.validation)

    def test_batches(self, batch_size: int = 1_000) -> Iterator[Batch]:
        """The test set, for the final evaluation by whoever launched the run; it is sent nowhere."""
        for start in range(0, len(self.test), batch_size):
            yield self._take(self.test[start : start + batch_size], test=True)

    def _take(self, indices: Indices, *, test: bool = False) -> Batch:
        x, y = self.dataset.train_x, self.dataset.train_y
        if test and self.dataset.test_x is not None and self.dataset.test_y is not None:
            x, y = self.dataset.test_x, self.dataset.test_y
        return torch.from_numpy(self.transform.apply(x[indices])), torch.from_numpy(y[indices])


def batch_count(samples: int, batch_size: int) -> int:
    """Batches of a partition: the remainder is one of its own, unless it is a single sample, which joins another."""
    whole, remainder = divmod(samples, batch_size)
    return whole if remainder == 0 or (remainder == 1 and whole) else whole + 1


def prepare(config: RunConfig, dataset: Dataset) -> Prepared:
    """Split, partition and fit the preprocessing as `config.data` says, all by `config.seed`; nothing is written.

    In this order: the test set, where the source brings none; the validation set; `train_samples` of the rest; the
    partitions. Raises DataError where the samples do not suffice or do not suit the model.
    """
    data, seed = config.data, config.seed
    dataset.check_loss(config.loss)
    if data.partition == "label_shards" and not dataset.labelled:
        raise DataError(f"data.partition is label_shards, but the targets of {dataset.provenance} are no labels")
    shape = _sample_shape(config, dataset)
    remaining = np.arange(len(dataset.train_x), dtype=np.int64)
    if dataset.test_x is None:
        test_samples = max(1, round(len(remaining) * data.test_fraction))
        test, remaining = split_off(remaining, test_samples, seed, "test")
    else:
        test = np.arange(len(dataset.test_x), dtype=np.int64)
    validation_samples = data.validation_samples or min(max(1, len(remaining) // 10), MOST_VALIDATION_SAMPLES)
    if validation_samples >= len(remaining):
        raise DataError(
            f"data.validation_samples is {validation_samples}, but {dataset.provenance} has only {len(remaining)} "
            "training samples; lower it"
        )
    validation, remaining = split_off(remaining, validation_samples, seed, "validation")
    if data.train_samples > len(remaining):
        raise DataError(
            f"data.train_samples is {data.train_samples}, but only {len(remaining)} samples are left beside "
            "validation; lower it, or set it to 0 to use all"
        )
    if data.train_samples:
        remaining, _ = split_off(remaining, data.train_samples, seed, "training")
    sizes = partition_sizes(len(remaining), config.peers, data.sizes)
    if data.partition == "iid":
        partitions = iid(remaining, sizes, seed)
    else:
        partitions = label_shards(remaining, dataset.train_y[remaining], sizes, data.shards_per_peer, seed)
    prepared = Prepared(
        dataset=dataset,
        transform=fit(dataset.train_x, remaining, data.preprocess, data.image_size),
        batch_size=config.batch_size,
        partitions=partitions,
        validation=validation,
        test=test,
        channels=shape[0],
        image_size=shape[1] if len(shape) == 3 else 1,
        sample_shape=shape,
    )
    if len(validation) * prepared.sample_bytes > _MOST_OBJECT_BYTES:
        raise DataError(
            f"the validation set has {len(validation) * prepared.sample_bytes / 1e9:.1f} GB, more than one S3 object "
            "can take in one request (5 GB); lower data.validation_samples or data.image_size"
        )
    return prepared


def _sample_shape(config: RunConfig, dataset: Dataset) -> tuple[int, ...]:
    """Shape of a sample after resizing: (C, H, W) or (F,)."""
    raw = dataset.train_x.shape[1:]
    size = config.data.image_size
    if len(raw) == 1:
        if size:
            raise DataError(f"data.image_size is {size}, but {dataset.provenance} has feature vectors, not images")
        return raw
    if size:
        return (raw[0], size, size)
    if raw[1] != raw[2] and config.model in BUILT_IN_MODELS:
        raise DataError(
            f"{dataset.provenance} has images of {raw[1]} x {raw[2]} pixels, and the model {config.model} takes square "
            f"ones; set data.image_size, for example to {max(raw[1:])}"
        )
    return raw
