"""Preprocessing as in the paper: min-max, standardisation, normalisation, with the training set's statistics only.

Shapes: B samples of a block; x is (B, C, H, W) or (B, F). Statistics are per channel C, and per feature F for vectors.
Nothing is kept preprocessed in memory: a fitted `Transform` is applied to one batch at a time, because 50,000 images
at 224 pixels would be 30 GB of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from peerless.data.dataset import Values

StepName = Literal["min_max", "standardise", "normalise"]
#: float32 bytes of a block while statistics are taken.
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Affine:
    """(x - center) / spread, per channel. Both are (C,) float32; several steps in a row are one of these."""

    center: NDArray[np.float32]
    spread: NDArray[np.float32]

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        x -= self.center.reshape(shape)
        x /= self.spread.reshape(shape)
        return x


@dataclass(frozen=True)
class UnitNorm:
    """Each sample divided by its L2 norm; a sample of zeros stays."""

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = x.reshape(len(x), -1)
        norm = np.linalg.norm(flat, axis=1).astype(np.float32)
        flat /= np.where(norm > 0, norm, np.float32(1))[:, None]
        return x


@dataclass(frozen=True)
class Transform:
    """What turns raw samples into a model's input: resize, then the steps in order."""

    image_size: int
    """Height and width in pixels to resize to (bilinear, antialiased); 0 keeps the size."""
    steps: tuple[Affine | UnitNorm, ...]

    def apply(self, raw: Values) -> NDArray[np.float32]:
        """A new float32 array of `raw` (B, C, H, W) or (B, F); `raw` is not touched."""
        x = np.array(raw, dtype=np.float32, order="C")
        if self.image_size and x.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            resized = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode="bilinear", antialias=True)
            x = resized.contiguous().numpy()
        for step in self.steps:
            x = step.apply(x)
        return x


def fit(x: Values, training: NDArray[np.int64], steps: Sequence[StepName], image_size: int = 0) -> Transform:
    """The transform whose statistics are those of `x[training]`, after resizing and after the steps before.

    Deviations are those of the population. A channel that is constant over the training set becomes 0. Validation and
    test samples may end up outside of [0, 1] under `min_max`, as they bring no statistics of their own.
    """
    fitted: list[Affine | UnitNorm] = []
    waiting: list[StepName] = []  # steps that one pass over the data serves
    for step in steps:
        if step != "normalise":
            waiting.append(step)
            continue
        if waiting:
            fitted.append(_affine(x, training, waiting, Transform(image_size, tuple(fitted))))
            waiting = []
        fitted.append(UnitNorm())
    if waiting:
        fitted.append(_affine(x, training, waiting, Transform(image_size, tuple(fitted))))
    return Transform(image_size, tuple(fitted))


def _affine(x: Values, training: NDArray[np.int64], steps: Sequence[StepName], before: Transform) -> Affine:
    """`steps`, none of them `normalise`, as one map: ((x - a) / r - b) / s = (x - (a + b r)) / (r s)."""
    low, high, mean, deviation = _statistics(x, training, before)
    constant = low == high
    center, spread = np.zeros_like(mean), np.ones_like(mean)
    for step in steps:
        # low … deviation are those of x; a step sees them through the map so far.
        if step == "min_max":
            shift, scale = (low - center) / spread, (high - low) / spread
        else:
            shift, scale = (mean - center) / spread, deviation / spread
        center = center + shift * spread
        spread = spread * np.where(constant, 1.0, scale)
    return Affine(center.astype(np.float32), spread.astype(np.float32))


def _statistics(
    x: Values, training: NDArray[np.int64], before: Transform
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Minimum, maximum, mean and deviation of each channel, (C,) float64, block by block (Chan et al.'s merge)."""
    count, low, high = 0, np.array(np.inf), np.array(-np.inf)
    mean, squares = np.array(0.0), np.array(0.0)
    for block in _blocks(x, training, before):
        values = block.reshape(*block.shape[:2], -1).astype(np.float64)  # (B, C, pixels)
        more = values.shape[0] * values.shape[2]
        low, high = np.minimum(low, values.min(axis=(0, 2))), np.maximum(high, values.max(axis=(0, 2)))
        block_mean = values.mean(axis=(0, 2))
        values -= block_mean[:, None]
        np.square(values, out=values)
        distance = block_mean - mean
        squares = squares + values.sum(axis=(0, 2)) + distance**2 * (count * more / (count + more))
        mean = mean + distance * (more / (count + more))
        count += more
    return low, high, mean, np.sqrt(squares / count)


def _blocks(x: Values, training: NDArray[np.int64], before: Transform) -> Iterator[NDArray[np.float32]]:
    pixels = before.image_size**2 if before.image_size and x.ndim == 4 else int(np.prod(x.shape[2:]))
    samples = max(1, _BLOCK_BYTES // (4 * x.shape[1] * pixels))
    for start in range(0, len(training), samples):
        yield before.apply(x[training[start : start + samples]])
