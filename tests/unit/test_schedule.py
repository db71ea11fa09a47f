"""The learning rate by round: against torch's own schedules, and what warm-up and floor do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from contract.config import EarlyStoppingConfig, SchedulerConfig
from contract.optimizers import idle
from peer_agent.convergence import Convergence
from peer_agent.schedule import rate

ROUNDS, LR, FLOOR = 20, 0.4, 0.01


def rates(name: Any, **settings: Any) -> list[float]:
    config = SchedulerConfig(name=name, min_lr=FLOOR, **settings)
    return [rate(config, LR, round, ROUNDS) for round in range(ROUNDS + 3)]


def torchs(make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    schedule, found = make(optimizer), []
    for _ in range(ROUNDS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_torchs() -> None:
    cosine = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS, eta_min=FLOOR))
    assert rates("cosine")[:ROUNDS] == pytest.approx(cosine, rel=1e-6)
    linear = torchs(lambda o: lr_scheduler.LinearLR(o, 1.0, FLOOR / LR, ROUNDS))
    assert rates("linear")[:ROUNDS] == pytest.approx(linear, rel=1e-6)
    step = torchs(lambda o: lr_scheduler.StepLR(o, 3, 0.8))
    assert rates("step", step_rounds=3, factor=0.8)[:ROUNDS] == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_they_end_at_the_floor_and_stay_there(name: str) -> None:
    assert rates(name)[ROUNDS:] == pytest.approx([FLOOR] * 3)


def test_a_step_never_goes_below_the_floor() -> None:
    assert rates("step", step_rounds=2, factor=0.1)[4:] == [FLOOR] * (ROUNDS - 1)


@pytest.mark.parametrize("name", ["plateau", "constant"])
def test_the_rest_leave_it_as_it_is_to_the_bit(name: str) -> None:
    assert rates(name) == [LR] * (ROUNDS + 3)


@pytest.mark.parametrize("name", ["plateau", "constant", "cosine", "linear", "step"])
def test_a_warm_up_rises_evenly_to_what_comes_after_it(name: str) -> None:
    found = rates(name, warmup_rounds=4)
    assert found[:5] == pytest.approx([LR / 5, 2 * LR / 5, 3 * LR / 5, 4 * LR / 5, LR])


def test_a_rate_below_the_floor_is_its_own_floor() -> None:
    assert rate(SchedulerConfig(name="cosine", min_lr=0.5), LR, ROUNDS, ROUNDS) == LR


def test_a_plateau_reduces_what_the_warm_up_leads_to() -> None:
    """The rate of one round's step is no rate that a plateau multiplies."""
    optimizer = idle(LR)
    convergence = Convergence(optimizer, SchedulerConfig(warmup_rounds=3, patience=0), EarlyStoppingConfig(), ROUNDS)
    convergence.observe("a", 1.0)
    convergence.pace(0)
    assert optimizer.param_groups[0]["lr"] == LR / 4
    decision = convergence.observe("b", 1.0)
    assert (decision.lr, decision.lr_reduced, convergence.rate(3)) == (LR / 2, True, LR / 2)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
def test_validation_losses_change_no_other_schedule(name: Any) -> None:
    convergence = Convergence(idle(LR), SchedulerConfig(name=name, patience=0), EarlyStoppingConfig(), ROUNDS)
    assert not any(convergence.observe("a", 1.0).lr_reduced for _ in range(5))
    assert convergence.rate(0) == LR
