"""A model with everything that weights can consist of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.tensors import Buffers, Layout, flatten, read_buffers

Weights = tuple[Layout, NDArray[np.float32], Buffers]


class Mixed(nn.Module):
    """Parameters of several shapes, tied ones, and buffers of several dtypes, one of them not persistent."""

    scratch: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("table", torch.arange(4, dtype=torch.float64) / 3)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def mixed(seed: int = 0) -> Mixed:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Mixed()
        with torch.no_grad():
            for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean):
                assert tensor is not None
                tensor.normal_()
    return model


def values(model: nn.Module) -> Weights:
    layout = Layout.of(model)
    return layout, flatten(model, layout), read_buffers(model, layout)
