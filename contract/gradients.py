"""The gradient of one batch at given weights: the mathematics of every gradient service, pure.

Lambda workers and the peer's own process both call `batch_gradient`, so both give the same numbers. Threads, memory
formats and transport belong to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import ModelError, NonFiniteGradient
from contract.objective import forward, refusal
from contract.precision import autocast
from contract.tensors import Buffers, Layout, flat_gradient, load, not_finite, read_buffers

ADVICE = "a smaller optimizer.lr or standardised data may help"


@dataclass(frozen=True)
class BatchGradient:
    """What one batch contributes."""

    gradient: NDArray[np.float32]
    """Gradient (n,) of the loss's mean over the batch, in the layout's order; zeros for parameters without one."""
    buffers: Buffers
    """Buffers after the forward pass, which started from the ones given."""
    samples: int
    """Samples in the batch: the weight of this gradient in a mean."""
    loss: float
    """The loss's mean over the batch, before any update."""


def batch_gradient(
    model: nn.Module,
    layout: Layout,
    loss_name: str,
    flat: NDArray[np.float32],
    buffers: Buffers,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    precision: str = "float32",
) -> BatchGradient:
    """Load weights `flat` (n,) and `buffers` into `model`, and compute the gradient on the batch x (N, …), y (N, …).

    `precision` is that of the forward pass (contract/precision.py); weights and gradients are float32 in any case. The
    model trains (train mode); its dropout draws from torch's CPU generator, seeded with `seed` for this call and
    restored afterwards. The result depends on nothing that the model held before, except non-persistent buffers, and
    the model keeps no gradients.

    Raises NonFiniteGradient when loss or gradient holds NaN or infinity, ModelError when the model refuses the batch
    (among others, BatchNorm with one value per channel) or its loss has no gradient, WeightsMismatch when weights and
    model do not fit, MemoryError when torch runs out of memory, ConfigError for a precision that this processor lacks.
    """
    samples = len(y)
    if samples == 0 or len(x) != samples:
        raise ModelError(f"a batch of {len(x)} inputs and {samples} targets has no gradient")
    load(model, layout, flat, buffers)
    model.train()
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(seed)
            with autocast(precision):
                _, loss = forward(model, loss_name, x, y)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteGradient(f"the loss of a batch of {samples} samples is {value}; {ADVICE}")
            if not loss.requires_grad:
                raise ModelError("the loss depends on no parameter that can be trained")
            backward(loss, x, y)
        gradient = flat_gradient(model, layout)
    finally:
        model.zero_grad(set_to_none=True)
    if (name := not_finite(layout, gradient)) is not None:
        raise NonFiniteGradient(f"the gradient of {name} holds NaN or infinity; {ADVICE}")
    return BatchGradient(gradient, read_buffers(model, layout), samples, value)


def backward(loss: Tensor, x: Tensor, y: Tensor) -> None:
    """The gradients of a batch's loss. Raises ModelError, MemoryError."""
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except MemoryError:
        raise
    except Exception as error:  # an autograd function of the user's may raise anything
        raise refusal(error, x, y) from error
