"""Data of a peer that joins a run under way: through the very preprocessing that the run's own data went through.

The statistics are those of the run's training set, for a model has seen nothing else. They lie beside the run's
configuration in S3 (`Places.preprocessing`), with what further data must be like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from contract.config import RunConfig
from contract.errors import CorruptObject, DataError
from contract.records import Record
from contract.seeds import public_seed
from peerless.data.dataset import Dataset
from peerless.data.prepared import Prepared
from peerless.data.preprocess import Affine, Transform, UnitNorm


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a transform: (x - center) / spread per channel, or each sample to unit norm where both are empty."""

    center: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Record):
    """What the data of a run are like, and what was done to them. Raises ValueError for statistics that cannot be."""

    NAME: ClassVar[str] = "record of a run's preprocessing"

    version: int = 1
    sample_shape: tuple[int, ...]
    """(C, H, W) or (F,), after resizing."""
    classes: int
    names: tuple[str, ...]
    """One per class, or empty."""
    image_size: int
    """To which images are resized; 0 keeps them."""
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            sizes = {len(step.center), len(step.spread)}
            if sizes != {0} and sizes != {self.sample_shape[0]}:
                raise ValueError(f"statistics of {sizes} channels, but samples have {self.sample_shape[0]}")
            if not all(map(math.isfinite, (*step.center, *step.spread))) or 0.0 in step.spread:
                raise ValueError("statistics by which nothing can be divided")

    @classmethod
    def of(cls, prepared: Prepared) -> Preprocessing:
        """What a run's data went through. Every number is a float32, so that JSON gives it back bit for bit."""
        steps = tuple(
            Step(center=tuple(map(float, step.center)), spread=tuple(map(float, step.spread)))
            if isinstance(step, Affine)
            else Step()
            for step in prepared.transform.steps
        )
        return cls(
            sample_shape=prepared.sample_shape,
            classes=prepared.classes,
            names=prepared.names,
            image_size=prepared.transform.image_size,
            steps=steps,
        )

    @property
    def transform(self) -> Transform:
        """To be applied to further samples."""
        return Transform(self.image_size, tuple(_fitted(step) for step in self.steps))

    def shape_of(self, dataset: Dataset) -> tuple[int, ...]:
        """The shape that samples of `dataset` have after resizing."""
        raw = dataset.train_x.shape[1:]
        return (raw[0], self.image_size, self.image_size) if self.image_size and len(raw) == 3 else raw


def prepare_newcomer(config: RunConfig, made: Preprocessing, dataset: Dataset, *, train_samples: int = 0) -> Prepared:
    """`dataset`'s training samples, `train_samples` of them where that is not 0, as the one partition of a new peer.

    Its order is drawn by the run's seed. A test set that it brings is not used. Raises DataError, one sentence, where
    the data do not fit the run's.
    """
    shape, where = made.shape_of(dataset), dataset.provenance
    if shape != made.sample_shape:
        raise DataError(f"{where} has samples of shape {shape}, and the run was started with {made.sample_shape}")
    dataset.check_loss(config.loss)
    dataset = _with_labels_of(made, dataset)
    samples = len(dataset.train_x)
    if train_samples > samples:
        raise DataError(f"data.train_samples is {train_samples}, but {where} has only {samples} training samples")
    order = np.random.default_rng(public_seed(config.seed, "data", "newcomer", samples)).permutation(samples)
    nothing = np.zeros(0, np.int64)
    return Prepared(
        dataset=dataset,
        transform=made.transform,
        batch_size=config.batch_size,
        partitions=(order[: train_samples or samples],),
        validation=nothing,
        test=nothing,
        channels=shape[0],
        image_size=shape[1] if len(shape) == 3 else 1,
        sample_shape=shape,
    )


def _with_labels_of(made: Preprocessing, dataset: Dataset) -> Dataset:
    """The data set with the run's numbers for its classes: by name where both name them, else as they are."""
    where, labels = dataset.provenance, dataset.train_y
    if not dataset.labelled:
        if dataset.classes != made.classes:
            raise DataError(f"{where} has {dataset.classes} numbers per target, and the run has {made.classes}")
        return replace(dataset, test_x=None, test_y=None)
    if made.names and dataset.names:
        unknown = sorted(set(dataset.names) - set(made.names))
        if unknown:
            raise DataError(f"{where} has the class {unknown[0]!r}, which the run does not know")
        labels = np.array([made.names.index(name) for name in dataset.names], np.int64)[labels]
    highest = int(labels.max())
    if highest >= made.classes:
        raise DataError(
            f"{where} has the label {highest}, and the run has {made.classes} classes: 0 to {made.classes - 1}"
        )
    return replace(dataset, train_y=labels, test_x=None, test_y=None, classes=made.classes, names=made.names)


def _fitted(step: Step) -> Affine | UnitNorm:
    if not step.center:
        return UnitNorm()
    return Affine(_float32(step.center), _float32(step.spread))


def _float32(values: tuple[float, ...]) -> NDArray[np.float32]:
    found = np.array(values, np.float32)
    if not np.array_equal(found, np.array(values)):
        raise CorruptObject("statistics of a run's preprocessing that are no float32")
    return found
