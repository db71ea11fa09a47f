"""Losses by name, the forward pass that every part of the system shares, and evaluation.

Shapes: a batch is x (N, …) and y, (N,) int64 class labels or (N, …) float32 numbers; a model answers with

    loss           outputs                    y
    cross_entropy  (N, K) logits              (N,) labels
    nll            (N, K) log-probabilities   (N,) labels
    mse            (N, …) numbers             (N, …) numbers, as many
    bce            (N, …) logits              (N, …) numbers from 0 to 1, as many: several labels may hold at once
    own            whatever it takes          either

Every loss is the mean over the samples of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.errors import ConfigError, DataError, ModelError, PeerlessError
from contract.importing import imported

LossFunction = Callable[[Tensor, Tensor], Tensor]


def _as_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """`outputs` in the shape of `targets`: torch pairs (N, 1) with (N,) to N x N differences. Raises ModelError."""
    if len(outputs) != len(targets) or outputs.numel() != targets.numel():
        raise ModelError(
            f"the model answers with shape {list(outputs.shape)}, but the targets have shape {list(targets.shape)}"
        )
    return outputs.reshape(targets.shape)


#: Built-in losses by their name in a configuration: (outputs, targets) -> mean over samples, a tensor without axes.
LOSSES: Mapping[str, LossFunction] = {
    "cross_entropy": lambda outputs, targets: functional.cross_entropy(outputs, targets),
    "nll": lambda outputs, targets: functional.nll_loss(outputs, targets),
    "mse": lambda outputs, targets: functional.mse_loss(_as_targets(outputs, targets), targets),
    "bce": lambda outputs, targets: functional.binary_cross_entropy_with_logits(_as_targets(outputs, targets), targets),
}


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a data set."""

    loss: float
    """Mean over the samples; NaN or infinity where the model gives that."""
    accuracy: float | None
    """Share, 0 to 1, of samples whose largest output is at the target, and for `bce` of labels told rightly; None where
    targets are numbers."""
    samples: int


def loss_function(name: str) -> LossFunction:
    """The loss called `name`. Raises ConfigError, and ModelError where an own one cannot be imported."""
    if ":" in name:
        return _own(name)
    try:
        return LOSSES[name]
    except KeyError:
        known = ", ".join(LOSSES)
        raise ConfigError(f"loss {name!r} is none of {known}, nor of the form package.module:callable") from None


def _own(name: str) -> LossFunction:
    function = imported(name, "loss")

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = function(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(f"loss {name} returned {found}, but must return one number, the mean over the samples")
        return loss

    return checked


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
    loss_sum, right, samples = 0.0, 0.0, 0
    told = True
    model.eval()
    try:
        with torch.inference_mode():
            for x, y in batches:
                outputs, loss = forward(model, loss_name, x, y)
                loss_sum += float(loss) * len(y)
                found = _right(loss_name, outputs, y)
                told, right = told and found is not None, right + (found or 0.0)
                samples += len(y)
    finally:
        for module, training in modes:
            module.training = training
    if samples == 0:
        raise DataError("there are no samples to evaluate the model on")
    return Evaluation(loss_sum / samples, right / samples if told else None, samples)


def _right(loss_name: str, outputs: Tensor, y: Tensor) -> float | None:
    """How many samples the model answers rightly; None where that cannot be said."""
    if y.is_floating_point():
        if loss_name != "bce":
            return None
        labels = (_as_targets(outputs, y) > 0) == (y > 0.5)  # probability a half is logit 0
        return float(labels.sum()) / (y.numel() // len(y))
    if y.ndim == 1 and outputs.ndim == 2:
        return float((outputs.argmax(1) == y).sum())
    return None
