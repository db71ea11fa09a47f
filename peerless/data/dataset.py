"""A data set in memory, as every source hands it over: raw values, checked once, before anything is computed from them.

Shapes: N samples; images are (N, C, H, W) with C channels, feature vectors are (N, F).
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Samples with integer labels. Raises DataError where the parts do not fit each other."""

    train_x: Values
    """(N, C, H, W) or (N, F), uint8 or float32, as the source has it: not preprocessed."""
    train_y: NDArray[np.int64]
    """(N,) labels in [0, classes)."""
    test_x: Values | None
    """Like `train_x`, or None where the source brings no test set; `prepare` then splits one off."""
    test_y: NDArray[np.int64] | None
    """(M,) labels, or None together with `test_x`."""
    classes: int
    """Number of classes."""
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

    def _check(self, part: str, x: Values, y: NDArray[np.int64]) -> None:
        where = f"{self.provenance}: the {part}"
        if x.dtype not in (np.uint8, np.float32) or y.dtype != np.int64:
            raise DataError(f"{where} has samples of type {x.dtype} and labels of type {y.dtype}")
        if x.ndim not in (2, 4) or y.ndim != 1:
            raise DataError(f"{where} has samples of shape {x.shape} and labels of shape {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{where} has {len(x)} samples, but {len(y)} labels")
        if x.size == 0:
            raise DataError(f"{where} is empty")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.classes:
            wrong = low if low < 0 else high
            raise DataError(f"{where} has the label {wrong}, outside 0 to {self.classes - 1}")
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


def count_classes(*labels: NDArray[np.int64] | None, where: str) -> int:
    """The highest label plus one. Raises DataError where the labels cannot be class numbers."""
    highest = max((0, *(int(y.max()) for y in labels if y is not None and y.size)))
    if highest >= MOST_CLASSES:
        raise DataError(f"{where}: the labels go up to {highest}; number the classes from 0")
    return highest + 1
