"""Learning rate, early stopping and the best weights, from a sequence of validation losses."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from contract.config import EarlyStoppingConfig, SchedulerConfig
from peer_agent.convergence import Convergence, Decision

LOSSES = [1.0, 0.8, 0.9, 0.7, 0.75, 0.74, 0.73, 0.72, 0.71, 0.705]


def sgd() -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.4)


def convergence(
    losses: list[float], *, patience: int = 0, min_delta: float = 0.0, scheduler: SchedulerConfig | None = None
) -> tuple[Convergence, list[Decision]]:
    found = Convergence(
        sgd(), scheduler or SchedulerConfig(patience=100), EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    )
    return found, [found.observe(f"w{index}", loss) for index, loss in enumerate(losses)]


def test_the_lowest_loss_names_the_best_weights_and_the_first_of_equals_wins() -> None:
    found, decisions = convergence([1.0, 0.7, 0.9, 0.7, 0.8])
    assert (found.best_weights, found.best_loss) == ("w1", 0.7)
    assert [d.improved for d in decisions] == [True, True, False, False, False]


def test_before_the_first_validation_nothing_is_best() -> None:
    found, _ = convergence([])
    assert (found.best_weights, found.best_loss, found.lr) == ("", None, 0.4)


def test_early_stopping_counts_validations_without_improvement() -> None:
    _, decisions = convergence([1.0, 0.9, 0.95, 0.91, 0.85, 0.9, 0.9, 0.86, 0.87], patience=3)
    assert [d.stop for d in decisions] == [""] * 7 + ["early_stopping"] * 2


def test_an_improvement_below_min_delta_does_not_count_but_can_be_the_best() -> None:
    found, decisions = convergence([1.0, 0.99, 0.985], patience=2, min_delta=0.1)
    assert decisions[-1].stop == "early_stopping"
    assert found.best_weights == "w2"


def test_patience_zero_never_stops() -> None:
    _, decisions = convergence([1.0] * 50)
    assert {d.stop for d in decisions} == {""}


def test_the_learning_rate_is_torchs_own_scheduler() -> None:
    optimizer = sgd()
    torchs = ReduceLROnPlateau(optimizer, factor=0.5, patience=1, min_lr=0.05)
    expected = []
    for loss in LOSSES:
        torchs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    _, decisions = convergence(LOSSES, scheduler=SchedulerConfig(factor=0.5, patience=1, min_lr=0.05))
    assert [d.lr for d in decisions] == expected
    assert [d.lr_reduced for d in decisions] == [b < a for a, b in zip([0.4, *expected], expected, strict=False)]
    assert any(d.lr_reduced for d in decisions)
