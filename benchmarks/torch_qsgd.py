"""QSGD as one would write it in torch: what the codec's speed at 8 bits is compared with.

Vectorised over all buckets, one thread, torch's own generator. Two forms of the same arithmetic: `encode` states the
paper's formula and lets torch allocate what it needs; `InPlace` is tuned, keeps its memory from one call to the next
and makes fewer passes. Both are unbiased and have the error of the codec's 8 bits.

Neither packs, checks for NaN, nor makes a checksum and a frame; all of that the codec does in its time.

Shapes: n buckets of b values; the last one is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Levels on each side of zero, so that a code fits an int8.
LEVELS = 127


@dataclass(frozen=True)
class Encoded:
    """A compressed vector."""

    codes_nb: Tensor
    """int8, from -LEVELS to LEVELS."""
    scale_n1: Tensor
    """float32: what one level is worth."""
    size: int
    """Values without the filling."""


def encode(x: Tensor, bucket_size: int, generator: torch.Generator) -> Encoded:
    """Quantise `x` (size,) float32: sign(x) * (floor(l) + 1 with probability l - floor(l)), l = |x| * LEVELS / norm.

    The norm is a bucket's largest magnitude; a bucket of zeros gets codes of zero.
    """
    x_nb = functional.pad(x, (0, -x.numel() % bucket_size)).view(-1, bucket_size)
    magnitude_nb = x_nb.abs()
    scale_n1 = magnitude_nb.amax(dim=1, keepdim=True) / LEVELS
    level_nb = magnitude_nb / _divisor(scale_n1)
    low_nb = level_nb.floor()
    random_nb = torch.rand(level_nb.shape, generator=generator)
    low_nb += random_nb < level_nb - low_nb
    low_nb.clamp_(max=LEVELS)  # the division may round a bucket's largest value up beyond LEVELS
    return Encoded((low_nb * x_nb.sign()).to(torch.int8), scale_n1, x.numel())


def decode(encoded: Encoded) -> Tensor:
    """The (size,) float32 values."""
    return (encoded.codes_nb.float() * encoded.scale_n1).view(-1)[: encoded.size]


def accumulate(encoded: Encoded, acc: Tensor, weight: float = 1.0) -> None:
    """acc (size,) += weight * decode(encoded)."""
    acc.add_(decode(encoded), alpha=weight)


class InPlace:
    """Memory for vectors of `size` values, and `encode` with as few passes over it as torch allows.

    floor(x * LEVELS / norm + u) needs neither magnitudes nor signs for the codes, because it rounds negative values
    with the right probabilities too.
    """

    def __init__(self, size: int, bucket_size: int) -> None:
        self.size = size
        self._level_nb = torch.zeros(-(-size // bucket_size), bucket_size)
        self._other_nb = torch.zeros_like(self._level_nb)
        self._codes_nb = torch.zeros_like(self._level_nb, dtype=torch.int8)

    def encode(self, x: Tensor, generator: torch.Generator) -> Encoded:
        """Quantise `x` (size,). The codes stay valid until the next call."""
        level_nb, other_nb = self._level_nb, self._other_nb
        level_nb.view(-1)[: self.size].copy_(x)
        level_nb.view(-1)[self.size :].zero_()
        scale_n1 = torch.abs(level_nb, out=other_nb).amax(dim=1, keepdim=True) / LEVELS
        other_nb.uniform_(generator=generator)
        level_nb.div_(_divisor(scale_n1)).add_(other_nb).floor_().clamp_(-LEVELS, LEVELS)
        self._codes_nb.copy_(level_nb)
        return Encoded(self._codes_nb, scale_n1, self.size)


def _divisor(scale_n1: Tensor) -> Tensor:
    return torch.where(scale_n1 > 0, scale_n1, 1.0)
