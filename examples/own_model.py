"""A model of one's own, and data of one's own: what `own_model.toml` ships to peers and workers.

Peers and workers import this file by name, so it needs nothing but what it imports itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class TwoMoonsNet(nn.Module):
    """A small network with batch normalisation for points in the plane. Input (B, features), output (B, classes)."""

    def __init__(self, classes: int, channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def two_moons() -> tuple[Dataset[tuple[Tensor, ...]], Dataset[tuple[Tensor, ...]]]:
    """Two interleaved half circles with noise: 4,000 points for training, 1,000 for the test."""
    draw = torch.Generator().manual_seed(7)
    label = torch.randint(2, (5_000,), generator=draw)
    angle = torch.pi * torch.rand(5_000, generator=draw)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.where(label[:, None] == 0, upper, lower) + 0.1 * torch.randn(5_000, 2, generator=draw)
    return TensorDataset(points[:4_000], label[:4_000]), TensorDataset(points[4_000:], label[4_000:])
