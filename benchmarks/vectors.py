"""The float32 vectors that benchmarks of the exchange average, and the model whose gradients they stand for.

n is the number of values; every rank has a vector (n,) of its own, the same in every process and on every machine.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

F32 = NDArray[np.float32]

#: What a run's configuration calls the model.
MODEL = "benchmarks.vectors:Vector"
#: Values that share a scale, as a layer's do.
BLOCK = 1 << 16


class Vector(nn.Module):
    """A model that is one vector (elements,) of parameters, zero at first; its logits are the first of them."""

    def __init__(self, classes: int, elements: int) -> None:
        super().__init__()
        self.classes = classes
        self.values = nn.Parameter(torch.zeros(elements))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) for N samples, whatever they are."""
        return self.values[: self.classes].expand(len(x), self.classes)


def gradient(rank: int, elements: int) -> F32:
    """(elements,) float32, normal, each block of BLOCK values times a log-normal scale that all ranks share."""
    values = np.random.default_rng((1, rank)).standard_normal(elements, np.float32)
    scales = np.random.default_rng(0)
    for start in range(0, elements, BLOCK):
        values[start : start + BLOCK] *= np.float32(scales.lognormal())
    return values


def exact_mean(peers: int, elements: int) -> NDArray[np.float64]:
    """(elements,) float64: the unweighted mean of all ranks' vectors."""
    total = np.zeros(elements, np.float64)
    for rank in range(peers):
        total += gradient(rank, elements)
    return total / peers


def relative_error(values: NDArray[np.floating], exact: NDArray[np.floating]) -> float:
    """Euclidean distance of `values` from `exact`, relative to the length of `exact`."""
    return float(np.linalg.norm(values.astype(np.float64) - exact) / np.linalg.norm(exact))
