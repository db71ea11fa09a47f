"""A data set in memory, as every source hands it over: raw values, checked once, before anything is computed from them.

Shapes: N samples; images are (N, C, H, W) with C channels, feature vectors are (N, F). Targets are class labels, (N,)
int64, or numbers, (N, …) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import DataError

#: More classes than this are taken for a mistake, such as identifiers or measurements given as labels.
MOST_CLASSES = 100_000

#: Samples, uint8 or float32.
Values = NDArray[Any]
#: Labels, (N,) int64, or numbers, (N, …) float32.
Targets = NDArray[Any]
#: Built-in losses by what they take.
_OF_LABELS, _OF_NUMBERS = ("cross_entropy", "nll"), ("mse", "bce")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Samples with labels or numbers as targets. Raises DataError where the parts do not fit each other."""

    train_x: Values
    """(N, C, H, W) or (N, F), uint8 or float32, as the source has it: not preprocessed."""
    train_y: Targets
    """(N,) int64 labels in [0, classes), or (N, …) float32 numbers."""
    test_x: Values | None
    """Like `train_x`, or None where the source brings no test set; `prepare` then splits one off."""
    test_y: Targets | None
    """Like `train_y`, or None together with `test_x`."""
    classes: int
    """Number of classes; where targets are numbers, how many there are per sample."""
    names: tuple[str, ...]
    """One name per class, or empty where the source has none."""
    provenance: str
    """Where the samples came from, for people: source, files or package."""

    def __post_init__(self) -> None:
        if (self.test_x is None) != (self.test_y is None):
            raise DataError(f"{self.provenance}: the test set has only one of samples and labels")
        if self.names and len(self.names) != self.classes:
            raise DataError(f"{self.provenance}: {len(self.names)} class names for {self.classes} classes")
        if self.classes < 1:
            raise DataError(f"{self.provenance}: there is no class")
        self._check("training set", self.train_x, self.train_y)
        if self.test_x is not None and self.test_y is not None:
            self._check("test set", self.test_x, self.test_y)
            if self.test_x.shape[1:] != self.train_x.shape[1:]:
                raise DataError(
                    f"{self.provenance}: samples of the test set have shape {self.test_x.shape[1:]}, "
                    f"those of the training set {self.train_x.shape[1:]}"
                )

    @property
    def labelled(self) -> bool:
        """Whether targets are labels of classes."""
        return self.train_y.dtype == np.int64

    @property
    def target_bytes(self) -> int:
        """Bytes of one sample's target."""
        return int(self.train_y.nbytes // len(self.train_y))

    def check_loss(self, loss: str) -> None:
        """Raise DataError where the built-in loss of this name cannot take these targets; an own one takes any."""
        kind = "labels" if self.labelled else f"numbers of shape {self.train_y.shape[1:]}"
        if loss in _OF_LABELS and not self.labelled:
            raise DataError(
                f"{self.provenance}: the targets are {kind} per sample, but loss {loss} takes labels, which are whole "
                "numbers of shape (N,); use mse or bce"
            )
        if loss in _OF_NUMBERS and self.labelled:
            raise DataError(
                f"{self.provenance}: the targets are {kind}, but loss {loss} takes numbers; use cross_entropy, or give "
                "floating-point targets"
            )
        if loss == "bce" and any(y is not None and (y.min() < 0 or y.max() > 1) for y in (self.train_y, self.test_y)):
            raise DataError(f"{self.provenance}: loss bce takes targets from 0 to 1, and some are outside of that")

    def _check(self, part: str, x: Values, y: Targets) -> None:
        where = f"{self.provenance}: the {part}"
        if x.dtype not in (np.uint8, np.float32) or y.dtype not in (np.int64, np.float32):
            raise DataError(f"{where} has samples of type {x.dtype} and targets of type {y.dtype}")
        if y.dtype != self.train_y.dtype:
            raise DataError(f"{where} has targets of type {y.dtype}, the training set of type {self.train_y.dtype}")
        if x.ndim not in (2, 4) or y.ndim < 1 or (self.labelled and y.ndim != 1):
            raise DataError(f"{where} has samples of shape {x.shape} and targets of shape {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{where} has {len(x)} samples, but {len(y)} {'labels' if self.labelled else 'targets'}")
        if x.size == 0:
            raise DataError(f"{where} is empty")
        if self.labelled:
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.classes:
                wrong = low if low < 0 else high
                raise DataError(f"{where} has the label {wrong}, outside 0 to {self.classes - 1}")
        elif y.shape[1:] != self.train_y.shape[1:] or y[0].size != self.classes:
            raise DataError(f"{where} has targets of shape {y.shape}, and {self.classes} numbers were announced")
        elif not _finite(y):
            raise DataError(f"{where} has targets that are NaN or infinite; remove those samples")
        if x.dtype == np.float32 and not _finite(x):
            raise DataError(f"{where} holds NaN or infinite values; remove those samples or fill them in")


def _finite(x: Values) -> bool:
    # Sample by sample blocks, because a mask of the whole array would cost a quarter of its memory again.
    return all(bool(np.isfinite(x[start : start + 4096]).all()) for start in range(0, len(x), 4096))


def label_array(y: NDArray[Any], where: str) -> NDArray[np.int64]:
    """(N,) int64 labels from an array of integers of shape (N,) or (N, 1); `where` names it in the DataError."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be whole numbers of shape (N,), but are {y.dtype} of shape {y.shape}")
    return y.astype(np.int64)


def target_array(y: NDArray[Any], where: str) -> Targets:
    """(N,) int64 labels of whole numbers of shape (N,) or (N, 1); (N, …) float32 of floating-point numbers, and of
    several whole numbers or booleans per sample, which say of each label whether it holds. Raises DataError."""
    several = y.ndim > 1 and y.shape[1:] != (1,)
    if y.dtype.kind == "f" or (several and y.dtype.kind in "iub"):
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which Dataset refuses
            return np.ascontiguousarray(y, np.float32)
    return label_array(y, where)


def sample_array(x: NDArray[Any], where: str) -> Values:
    """uint8 stays, other real numbers become float32 and bool becomes 0 and 1; anything else is a DataError."""
    if x.dtype == np.uint8 or x.dtype == np.float32:
        return x
    if x.dtype == np.bool_:
        return x.astype(np.uint8)
    if x.dtype.kind in "iuf":
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which Dataset refuses
            return x.astype(np.float32)
    raise DataError(f"{where}: samples must be numbers, but are {x.dtype}")


def count_classes(*labels: Targets | None, where: str) -> int:
    """The highest label plus one; of numbers how many there are per sample. Raises DataError where labels cannot be
    class numbers."""
    first = next(y for y in labels if y is not None)
    if first.dtype != np.int64:
        return int(np.prod(first.shape[1:]))
    highest = max((0, *(int(y.max()) for y in labels if y is not None and y.size)))
    if highest >= MOST_CLASSES:
        raise DataError(f"{where}: the labels go up to {highest}; number the classes from 0")
    return highest + 1
