"""When to lower the learning rate, when to stop, and which weights were best: from validation losses, and nothing else.

In synchronous mode the losses come from commit records, so all peers decide alike and nobody is stranded (invariant 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from contract.config import EarlyStoppingConfig, SchedulerConfig

EARLY_STOPPING = "early_stopping"


@dataclass(frozen=True)
class Decision:
    """What one validation led to."""

    improved: bool
    """The best loss so far."""
    lr: float
    """Learning rate from here on."""
    lr_reduced: bool
    stop: str
    """`early_stopping`, or empty to go on."""


class Convergence:
    """torch's ReduceLROnPlateau on `optimizer`, early stopping, and the best weights by validation loss."""

    def __init__(self, optimizer: Optimizer, scheduler: SchedulerConfig, early_stopping: EarlyStoppingConfig) -> None:
        self._optimizer = optimizer
        self._plateau = ReduceLROnPlateau(
            optimizer, mode="min", factor=scheduler.factor, patience=scheduler.patience, min_lr=scheduler.min_lr
        )
        self._early_stopping = early_stopping
        self._reference = math.inf  # the loss that an improvement is measured against
        self._without_improvement = 0
        self.best_loss: float | None = None
        """Lowest validation loss so far."""
        self.best_weights = ""
        """Hash of the weights that had it; empty before the first validation."""

    @property
    def lr(self) -> float:
        """The learning rate now."""
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, weights_sha256: str, loss: float) -> Decision:
        """Take in the validation loss of the weights of that hash."""
        before = self.lr
        self._plateau.step(loss)
        improved = self.best_loss is None or loss < self.best_loss
        if improved:
            self.best_loss, self.best_weights = loss, weights_sha256
        return Decision(improved, self.lr, self.lr < before, self._stop(loss))

    def _stop(self, loss: float) -> str:
        gain = self._reference - loss
        if gain > 0 and gain >= self._early_stopping.min_delta:
            self._reference, self._without_improvement = loss, 0
            return ""
        self._without_improvement += 1
        patience = self._early_stopping.patience
        return EARLY_STOPPING if 0 < patience <= self._without_improvement else ""
