"""The gradient of one batch, or of several, at given weights: the mathematics of every gradient service, pure.

Lambda workers and the peer's own process both add batches to a `GradientMean`, so both give the same numbers. Threads,
memory formats and transport belong to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.averaging import BufferMean, SampleCount
from contract.errors import ModelError, NonFiniteGradient
from contract.objective import forward, refusal
from contract.precision import autocast
from contract.tensors import Buffers, Layout, load, not_finite, parameters_of, read_buffers

#: Values whose sums are kept apart; a prime, so that no usual side of a tensor is a multiple of it.
_COLUMNS = 1_021
ADVICE = "a smaller optimizer.lr or standardised data may help"


def arranged(x: Tensor, channels_last: bool) -> Tensor:
    """Images (N, C, H, W) with their channels last in memory, where that is wanted; anything else as it is.

    The model needs the same: `model.to(memory_format=torch.channels_last)`.
    """
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x


@dataclass(frozen=True)
class BatchGradient:
    """What one batch contributes, or several that are averaged already."""

    gradient: NDArray[np.float32]
    """Gradient (n,) of the loss's mean over the samples, in the layout's order; zeros for parameters without one."""
    buffers: Buffers
    """Buffers after the forward pass, which started from the ones given; of several batches their mean."""
    samples: int
    """Samples: the weight of this gradient in a mean."""
    loss: float
    """The loss's mean over the samples, before any update."""


class ParametersChanged(Exception):
    """A forward pass changed parameters of a model that was to hold them."""


class GradientMean:
    """Sample-weighted mean over batches that all start from the same weights, added up in the order of `add`.

    It holds one gradient (n,), whatever the number of batches: each parameter's is added, and let go, on its own. With
    one batch the result is that batch's gradient, bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        loss_name: str,
        flat: NDArray[np.float32] | None,
        buffers: Buffers,
        samples: int,
        *,
        precision: str = "float32",
    ) -> None:
        """At weights `flat` (n,) and `buffers`, over `samples` samples in all. Raises CorruptObject for none.

        Without `flat` the model's own parameters are the weights, which are then nowhere else in memory: no batch may
        change them, and one that does is told.

        `precision` is that of the forward pass (contract/precision.py); weights and gradients are float32 in any case.
        """
        self._model, self._layout, self._loss_name, self._precision = model, layout, loss_name, precision
        self._flat, self._base = flat, buffers
        self._parameters = parameters_of(model, layout)
        self._held = self._sums() if flat is None else None
        self._count = SampleCount(samples)
        self._buffers = BufferMean(layout, samples)
        self._gradient: NDArray[np.float32] | None = None
        self._loss = 0.0

    def add(self, x: Tensor, y: Tensor, *, seed: int) -> None:
        """Load the weights into the model (of those that it holds the buffers) and add the gradient on the batch x (N,
        …), y (N, …).

        The model trains (train mode); its dropout draws from torch's CPU generator, seeded with `seed` for this call
        and restored afterwards. What is added depends on nothing that the model held before, except non-persistent
        buffers, and the model keeps no gradients.

        Raises NonFiniteGradient when loss or gradient holds NaN or infinity, ModelError when the model refuses the
        batch (among others, BatchNorm with one value per channel) or its loss has no gradient, WeightsMismatch when
        weights and model do not fit, MemoryError when torch runs out of memory, CorruptObject for more samples than
        announced, ConfigError for a precision that this processor lacks, and ParametersChanged. After an error the mean
        is of no use, and a model that held the weights holds them no more.
        """
        samples, model = len(y), self._model
        if samples == 0 or len(x) != samples:
            raise ModelError(f"a batch of {len(x)} inputs and {samples} targets has no gradient")
        self._count.take(samples)
        load(model, self._layout, self._flat, self._base)
        model.train()
        self._forget_gradients()
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.default_generator.manual_seed(seed)
                with autocast(self._precision):
                    _, loss = forward(model, self._loss_name, x, y)
                value = loss.item()
                if not math.isfinite(value):
                    raise NonFiniteGradient(f"the loss of a batch of {samples} samples is {value}; {ADVICE}")
                if not loss.requires_grad:
                    raise ModelError("the loss depends on no parameter that can be trained")
                backward(loss, x, y)
            total = self._take(samples / self._count.total)
        finally:
            self._forget_gradients()
        if self._flat is None and self._sums() != self._held:
            raise ParametersChanged
        if (name := not_finite(self._layout, total)) is not None:
            raise NonFiniteGradient(f"the gradient of {name} holds NaN or infinity; {ADVICE}")
        self._buffers.add(read_buffers(model, self._layout), samples)
        self._loss += samples / self._count.total * value

    def result(self) -> BatchGradient:
        """The mean. Raises CorruptObject while samples are missing."""
        self._count.check_complete()
        assert self._gradient is not None  # there is at least one sample
        return BatchGradient(self._gradient, self._buffers.result(self._base), self._count.total, self._loss)

    def _take(self, weight: float) -> NDArray[np.float32]:
        """Move the model's gradients, times `weight`, into the sum; gives the sum so far."""
        first = self._gradient is None
        if self._gradient is None:
            self._gradient = np.empty(self._layout.elements, np.float32)
        for entry, view in self._layout.views(self._gradient):
            parameter, total = self._parameters[entry.name], torch.from_numpy(view)
            if parameter.grad is None:
                if first:
                    total.zero_()
                continue
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            if not first:
                total.add_(gradient, alpha=weight)
            elif weight == 1.0:
                total.copy_(gradient)
            else:
                torch.mul(gradient, weight, out=total)
            parameter.grad = None  # so that two whole gradients are never in memory
        return self._gradient

    def _forget_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def _sums(self) -> tuple[bytes, ...]:
        """What tells changed parameters from equal ones, at less cost than a copy: sums of their bits as integers."""
        return tuple(_column_sums(parameter.detach().numpy()) for parameter in self._parameters.values())


def _column_sums(values: NDArray[np.float32]) -> bytes:
    """Sums of the values' bits as they lie in memory, in rows of `_COLUMNS`: what one value is replaced by shows, and
    so do values that change places, as they do in a parameter that is shifted or mirrored."""
    bits = values.ravel("K").view(np.uint32)
    whole = len(bits) - len(bits) % _COLUMNS
    sums = bits[:whole].reshape(-1, _COLUMNS).sum(axis=0, dtype=np.uint32)
    sums[: len(bits) - whole] += bits[whole:]
    return bytes(sums)


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
    """The gradient of one batch x (N, …), y (N, …) at weights `flat` (n,) and `buffers`; see `GradientMean.add`."""
    if not len(y):
        raise ModelError(f"a batch of {len(x)} inputs and 0 targets has no gradient")
    mean = GradientMean(model, layout, loss_name, flat, buffers, len(y), precision=precision)
    mean.add(x, y, seed=seed)
    return mean.result()


def backward(loss: Tensor, x: Tensor, y: Tensor) -> None:
    """The gradients of a batch's loss. Raises ModelError, MemoryError."""
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except MemoryError:
        raise
    except Exception as error:  # an autograd function of the user's may raise anything
        raise refusal(error, x, y) from error
