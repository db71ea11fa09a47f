"""Steps that one worker takes with its own batches, one after the other, and the update that they come to. Pure.

Shapes: n parameters; flat (n,) float32 are the weights that the worker starts from, and its *update* is `flat` minus
the weights after its last step, (n,) float32: it points where a gradient would, so the rest of the round treats it as
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import ModelError, NonFiniteGradient
from contract.gradients import ADVICE, BatchGradient, backward
from contract.keys import Place
from contract.objective import forward
from contract.optimizers import Described, Moments, build, check_moments, clip, moments, set_moments
from contract.precision import autocast
from contract.seeds import public_seed
from contract.tensors import Buffers, Layout, load, not_finite, read_buffers


@dataclass(frozen=True, kw_only=True)
class LocalSteps:
    """What a worker does with its batches of a round."""

    optimizer: Described
    """With the learning rate of the round."""
    steps: int
    """Steps, one batch each; 0 takes `epochs`."""
    epochs: int
    """Passes over the batches."""
    keep_state: bool = False
    """The optimizer's moments stay for the next round."""
    begins_with: Place | None = None
    """The moments that an earlier round left, in S3; None to begin anew."""
    leaves: Place | None = None
    """Where those go that the last step leaves."""
    batches: tuple[int, ...] = ()
    """All batches of an invocation on Lambda, by their positions in the peer's manifest: whole references to thousands
    of them would not fit an execution's input. The item of the map names the first one."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.epochs < 1:
            raise ValueError(f"{self.steps} steps or {self.epochs} passes are no work for a worker")

    def count(self, batches: int) -> int:
        """Steps that a worker takes with so many batches."""
        return self.steps or self.epochs * batches


@dataclass(frozen=True)
class LocalUpdate(BatchGradient):
    """What one worker contributes: `gradient` is its update, `loss` the mean over its steps, weighted by samples;
    `samples` is the size of its local data, its weight in the mean, however often its steps came by each sample."""

    moments: Moments = field(default_factory=dict)
    """What its optimizer keeps after the last step."""


def local_update(
    model: nn.Module,
    layout: Layout,
    loss_name: str,
    flat: NDArray[np.float32],
    buffers: Buffers,
    data: Sequence[tuple[Tensor, Tensor]],
    steps: LocalSteps,
    *,
    seed: int,
    precision: str = "float32",
    kept: Mapping[str, NDArray[np.float32]] | None = None,
) -> LocalUpdate:
    """Load weights `flat` (n,) and `buffers` into `model` and take `steps` with the batches `data`, x (N, …) and y (N,
    …) each. The optimizer begins with the moments `kept`, where there are any.

    Each pass takes the batches in an order of its own, drawn from `seed`; so is dropout. The result depends on nothing
    that the model held before, except non-persistent buffers, and the model keeps neither gradients nor memory of it.

    Raises NonFiniteGradient when a loss or the update holds NaN or infinity, CorruptObject for moments of another
    optimizer, and otherwise what `batch_gradient` does.
    """
    samples = sum(len(y) for _, y in data)
    if not data or any(len(x) != len(y) or not len(y) for x, y in data):
        raise ModelError(f"{len(data)} batches with {samples} targets are nothing to take steps with")
    load(model, layout, flat, buffers)
    model.train()
    loss_sum, seen = 0.0, 0
    with _one_vector(model, layout, flat) as vector, torch.random.fork_rng(devices=[]), torch.enable_grad():
        assert vector.grad is not None
        optimizer = build(vector, steps.optimizer)
        if kept:
            check_moments(optimizer, kept, layout.elements, "a worker's optimizer")
            set_moments(optimizer, kept)
        torch.default_generator.manual_seed(seed)
        for x, y in _in_order(data, steps, seed):
            vector.grad.zero_()
            with autocast(precision):
                _, loss = forward(model, loss_name, x, y)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteGradient(f"the loss of a batch of {len(y)} samples is {value}; {ADVICE}")
            if not loss.requires_grad:
                raise ModelError("the loss depends on no parameter that can be trained")
            backward(loss, x, y)
            clip(vector.grad, steps.optimizer)
            optimizer.step()
            with torch.no_grad():  # the one vector decays as a whole, frozen parts included
                for part in layout.frozen:
                    vector[part] = torch.from_numpy(flat[part])
            loss_sum, seen = loss_sum + value * len(y), seen + len(y)
        update = flat - vector.detach().numpy()
        after = read_buffers(model, layout)
        left = moments(optimizer) if steps.keep_state else {}
    if (name := not_finite(layout, update)) is not None:
        raise NonFiniteGradient(f"the steps of a worker drove {name} to NaN or infinity; {ADVICE}")
    return LocalUpdate(update, after, samples, loss_sum / seen, left)


def _in_order(data: Sequence[tuple[Tensor, Tensor]], steps: LocalSteps, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch of each step."""
    count = steps.count(len(data))
    for start in range(0, count, len(data)):
        order = sorted(range(len(data)), key=lambda at: public_seed(seed, "order", start, at))
        for at in order[: count - start]:
            yield data[at]


@contextmanager
def _one_vector(model: nn.Module, layout: Layout, flat: NDArray[np.float32]) -> Iterator[nn.Parameter]:
    """While this lasts the model's parameters and gradients are parts of one vector (n,), a copy of `flat`."""
    vector = nn.Parameter(torch.from_numpy(flat.copy()))
    vector.grad = torch.zeros_like(vector)
    parameters = dict(model.named_parameters())
    own = [(parameter, parameter.data) for parameter in parameters.values()]
    start = 0
    try:
        for entry in layout.parameters:
            parameter, part = parameters[entry.name], slice(start, start + entry.elements)
            parameter.data = vector.data[part].view(entry.shape)
            parameter.grad = vector.grad[part].view(entry.shape) if entry.trainable else None
            start += entry.elements
        yield vector
    finally:
        for parameter, data in own:
            parameter.data, parameter.grad = data, None
