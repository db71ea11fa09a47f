"""When to lower the learning rate, when to stop, and which weights were best: from validation losses, and nothing else.

In synchronous mode the losses come from commit records, so all peers decide alike and nobody is stranded (invariant 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from contract.config import EarlyStoppingConfig, SchedulerConfig
from peer_agent.schedule import rate

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


@dataclass(frozen=True, kw_only=True)
class ConvergenceState:
    """What `Convergence` knows beside its configuration, in numbers that JSON can carry: None where torch has infinity.

    Raises ValueError for what no sequence of validations leads to.
    """

    lr: float
    plateau_best: float | None
    """The loss that the scheduler measures against."""
    plateau_bad_validations: int
    """Validations without improvement since then, or since the last reduction."""
    plateau_cooldown: int
    validations: int
    """Validations so far."""
    reference: float | None
    """The loss that early stopping measures against."""
    without_improvement: int
    """Validations without improvement since then."""
    best_loss: float | None
    best_weights: str
    """Hash (hex) of the best weights; empty before the first validation."""

    def __post_init__(self) -> None:
        counters = self.plateau_bad_validations, self.plateau_cooldown, self.validations, self.without_improvement
        if self.lr < 0 or min(counters) < 0:
            raise ValueError("a learning rate and counts of validations are not negative")
        if (self.best_loss is None) != (not self.best_weights):
            raise ValueError("the best loss and the best weights come together")


class Convergence:
    """The learning rate of `optimizer`, early stopping, and the best weights by validation loss."""

    def __init__(
        self, optimizer: Optimizer, scheduler: SchedulerConfig, early_stopping: EarlyStoppingConfig, rounds: int = 0
    ) -> None:
        """`rounds` is the run's limit, towards which some schedules go."""
        self._optimizer, self._scheduler, self._rounds = optimizer, scheduler, rounds
        self._plateau = ReduceLROnPlateau(
            optimizer, mode="min", factor=scheduler.factor, patience=scheduler.patience, min_lr=scheduler.min_lr
        )
        self._early_stopping = early_stopping
        self._reference = math.inf  # the loss that an improvement is measured against
        self._without_improvement = 0
        self.lr = float(optimizer.param_groups[0]["lr"])
        """The learning rate at the start, or what the plateaus so far have left of it."""
        self.best_loss: float | None = None
        """Lowest validation loss so far."""
        self.best_weights = ""
        """Hash of the weights that had it; empty before the first validation."""

    def rate(self, round: int) -> float:
        """The learning rate of a round's steps."""
        return rate(self._scheduler, self.lr, round, self._rounds)

    def pace(self, round: int) -> None:
        """Let the optimizer take its step of `round` with the rate of that."""
        self._set(self.rate(round))

    def observe(self, weights_sha256: str, loss: float) -> Decision:
        """Take in the validation loss of the weights of that hash."""
        before = self.lr
        self._set(before)
        if self._scheduler.name == "plateau":
            self._plateau.step(loss)
        self.lr = float(self._optimizer.param_groups[0]["lr"])
        improved = self.best_loss is None or loss < self.best_loss
        if improved:
            self.best_loss, self.best_weights = loss, weights_sha256
        return Decision(improved, self.lr, self.lr < before, self._stop(loss))

    def state(self) -> ConvergenceState:
        """Everything that the losses so far have led to; the same on all peers."""
        return ConvergenceState(
            lr=self.lr,
            plateau_best=_finite(self._plateau.best),
            plateau_bad_validations=self._plateau.num_bad_epochs,
            plateau_cooldown=self._plateau.cooldown_counter,
            validations=self._plateau.last_epoch,
            reference=_finite(self._reference),
            without_improvement=self._without_improvement,
            best_loss=self.best_loss,
            best_weights=self.best_weights,
        )

    def load(self, state: ConvergenceState) -> None:
        """Go on from `state`; patience, factor and the like stay those of this object's configuration."""
        self.lr = state.lr
        self._set(state.lr)
        self._plateau.best = _infinite(state.plateau_best)
        self._plateau.num_bad_epochs = state.plateau_bad_validations
        self._plateau.cooldown_counter = state.plateau_cooldown
        self._plateau.last_epoch = state.validations
        self._plateau._last_lr = [state.lr for _ in self._optimizer.param_groups]
        self._reference, self._without_improvement = _infinite(state.reference), state.without_improvement
        self.best_loss, self.best_weights = state.best_loss, state.best_weights

    def _set(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def _stop(self, loss: float) -> str:
        gain = self._reference - loss
        if gain > 0 and gain >= self._early_stopping.min_delta:
            self._reference, self._without_improvement = loss, 0
            return ""
        self._without_improvement += 1
        patience = self._early_stopping.patience
        return EARLY_STOPPING if 0 < patience <= self._without_improvement else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
