"""Learning rate, early stopping and the best weights, from a sequence of validation losses."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from contract import jsonform
from contract.config import EarlyStoppingConfig, SchedulerConfig
from contract.errors import CorruptObject
from peer_agent.convergence import Convergence, ConvergenceState, Decision

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


def fresh() -> Convergence:
    return Convergence(sgd(), SchedulerConfig(patience=1, min_lr=0.01), EarlyStoppingConfig(patience=4, min_delta=0.05))


@given(st.lists(st.floats(0, 2), max_size=20), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_going_on_from_a_state_decides_as_never_having_stopped(losses: list[float], interruption: int) -> None:
    whole = fresh()
    expected = [whole.observe(f"w{index}", loss) for index, loss in enumerate(losses)]
    found, decisions = fresh(), []
    for index, loss in enumerate(losses):
        if index == interruption:
            blob = jsonform.dumps(jsonform.to_dict(found.state()))
            found = fresh()
            found.load(jsonform.from_dict(ConvergenceState, json.loads(blob), "state"))
        decisions.append(found.observe(f"w{index}", loss))
    assert decisions == expected
    assert found.state() == whole.state()
    assert vars_of(found) == vars_of(whole)


def vars_of(found: Convergence) -> dict[str, object]:
    """Everything in it, torch's scheduler included: a field that a state forgets would show here."""
    plain = {name: value for name, value in vars(found).items() if name not in ("_optimizer", "_plateau")}
    return plain | found._plateau.state_dict()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": -0.1}, "not negative"),
        ({"validations": -1}, "not negative"),
        ({"without_improvement": -1}, "not negative"),
        ({"best_loss": 0.5}, "come together"),
        ({"best_weights": "ab"}, "come together"),
        ({"lr": "0.1"}, "lr is str"),
        ({"validations": True}, "validations is bool"),
    ],
)
def test_a_state_that_nothing_leads_to_is_refused(change: dict[str, object], sentence: str) -> None:
    value = jsonform.to_dict(fresh().state()) | change
    with pytest.raises(CorruptObject, match=sentence):
        jsonform.from_dict(ConvergenceState, value, "state")
