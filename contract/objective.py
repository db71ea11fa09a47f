"""Losses by name, the forward pass that every part of the system shares, and evaluation.

Shapes: a batch is x (N, …) and y (N,) int64 class indices; a model answers with logits (N, K) for `cross_entropy`,
log-probabilities (N, K) for `nll`. Every loss is the mean over the samples of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.errors import ConfigError, DataError, ModelError, PeerlessError

LossFunction = Callable[[Tensor, Tensor], Tensor]

#: Losses by their name in a configuration: (outputs, targets) -> mean over samples, a tensor without axes.
LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": lambda outputs, targets: functional.cross_entropy(outputs, targets),
    "nll": lambda outputs, targets: functional.nll_loss(outputs, targets),
}


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a data set."""

    loss: float
    """Mean over the samples; NaN or infinity where the model gives that."""
    accuracy: float
    """Share of samples, 0 to 1, whose largest output is at the target."""
    samples: int


def loss_function(name: str) -> LossFunction:
    """The loss called `name`. Raises ConfigError."""
    try:
        return LOSSES[name]
    except KeyError:
        raise ConfigError(f"loss {name!r} is none of {', '.join(LOSSES)}") from None


def forward(model: nn.Module, loss_name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and loss of one batch, in whatever mode the model is.

    Raises ModelError when the model or the loss refuses the batch or the model doesn't return a tensor, MemoryError
    when torch ran out of memory.
    """
    function = loss_function(loss_name)
    try:
        outputs = model(x)
        if not isinstance(outputs, Tensor):
            raise ModelError(f"the model returned {type(outputs).__name__}, but must return one tensor")
        return outputs, function(outputs, y)
    except (PeerlessError, MemoryError):
        raise
    except Exception as error:  # the user's code may raise anything; it is told, never swallowed
        raise refusal(error, x, y) from error


def refusal(error: Exception, x: Tensor, y: Tensor) -> Exception:
    """What to raise for what torch or the model raised on a batch: ModelError or MemoryError."""
    text = str(error).strip().partition("\n")[0]
    if "DefaultCPUAllocator" in text:  # torch reports memory on CPUs as a plain RuntimeError
        return MemoryError(text)
    if "more than 1 value per channel" in text:
        return ModelError(
            f"batch normalisation cannot train on a batch of shape {list(x.shape)}, which leaves one value per "
            "channel; use a batch_size above 1 and give every peer at least two samples"
        )
    return ModelError(
        f"the model failed on a batch of shape {list(x.shape)} with targets of shape {list(y.shape)}: "
        f"{type(error).__name__}: {text}"
    )


def evaluate(model: nn.Module, loss_name: str, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Loss and accuracy over all samples of `batches`, each weighted alike whatever the sizes of the batches.

    Runs in evaluation mode without gradients and leaves every module in the mode in which it was. Raises DataError when
    there are no samples, ModelError as `forward` does.
    """
    modes = [(module, module.training) for module in model.modules()]
    loss_sum, correct, samples = 0.0, 0, 0
    model.eval()
    try:
        with torch.inference_mode():
            for x, y in batches:
                outputs, loss = forward(model, loss_name, x, y)
                loss_sum += float(loss) * len(y)
                correct += int((outputs.argmax(1) == y).sum())
                samples += len(y)
    finally:
        for module, training in modes:
            module.training = training
    if samples == 0:
        raise DataError("there are no samples to evaluate the model on")
    return Evaluation(loss_sum / samples, correct / samples, samples)
