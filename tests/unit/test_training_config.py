"""Optimizers, learning rates and algorithms: what can be configured, and in which sentence the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contract import config, training
from contract.algorithms import algorithm, local_steps
from contract.errors import ConfigError
from contract.optimizers import build


def read(**values: Any) -> config.RunConfig:
    return config.from_mapping(values, "here")


@pytest.mark.parametrize("name", training.OPTIMIZERS)
def test_every_optimizer_and_each_of_its_options_is_one_that_torch_takes(name: str) -> None:
    for option, allowed in training.OPTIMIZERS[name].items():
        value = True if allowed is None else allowed.least + 0.3
        found = read(optimizer={"name": name, "options": {option: value}}).optimizer
        build(torch.nn.Parameter(torch.zeros(3)), found)


def test_what_torch_refuses_is_a_mistake_of_the_users() -> None:
    found = read(optimizer={"name": "rprop", "options": {"eta_plus": 1.0}}).optimizer
    with pytest.raises(ConfigError, match="optimizer rprop: Invalid eta"):
        build(torch.nn.Parameter(torch.zeros(3)), found)


def test_what_is_neither_here_nor_refused_does_not_exist() -> None:
    """A release of torch with another optimizer has to be looked at."""
    offered = {name.lower() for name in dir(torch.optim) if name[0].isupper()} - {"optimizer"}
    assert offered == set(training.OPTIMIZERS) | set(training.REFUSED)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        ({"name": "lbfgs"}, "lbfgs cannot be used here: it looks at the loss several times per step"),
        ({"name": "muon"}, "muon cannot be used here: it works on matrices"),
        ({"name": "adamm"}, "optimizer 'adamm' is none of sgd, adam"),
        ({"options": {"beta1": 0.5}}, "sgd has no option beta1; it has dampening"),
        (
            {"name": "adam", "options": {"beta1": 1.0}},
            "option beta1 of adam is 1.0, but must be a number from 0 to below",
        ),
        ({"name": "adam", "options": {"eps": -1.0}}, "option eps of adam is -1.0, but must be a number of at least 0"),
        ({"name": "adam", "options": {"eps": float("nan")}}, "eps"),
        ({"name": "adam", "options": {"eps": True}}, "option eps of adam is True"),
        ({"name": "adam", "options": {"amsgrad": 1.0}}, "amsgrad of adam is 1.0, but must be true or false"),
        ({"name": "adam", "nesterov": True}, "nesterov = true needs sgd with a momentum"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov = true needs sgd with a momentum"),
        ({"name": "rprop", "weight_decay": 0.1}, "rprop goes by the signs of gradients"),
    ],
)
def test_optimizers_that_cannot_be(optimizer: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(optimizer=optimizer)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"algorithm": {"local_steps": 3}}, "workers take no steps with gradient_averaging"),
        ({"algorithm": {"local_epochs": 3}}, "workers take no steps with gradient_averaging"),
        ({"algorithm": {"keep_state": True}}, "workers take no steps with gradient_averaging"),
        (
            {"algorithm": {"name": "diloco"}},
            "'diloco' is optimizer.name = 'adamw' and outer.name = 'sgd' with nesterov",
        ),
        (
            {"algorithm": {"name": "diloco"}, "optimizer": {"name": "adamw"}, "outer": {"nesterov": False}},
            "local_sgd with average = 'updates' takes any two",
        ),
        ({"algorithm": {"name": "local_sgd"}, "mode": "async"}, "which mode = 'async' has not; use 'updates'"),
        (
            {"algorithm": {"name": "local_sgd"}, "compute": {"state_machine": "parallel"}},
            "'parallel' has a branch per batch, but a worker of local_sgd takes all",
        ),
    ],
)
def test_algorithms_that_make_no_sense_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(**values)


def test_each_algorithm_says_who_takes_which_step() -> None:
    sgd = {"lr": 0.02, "momentum": 0.5}
    averaging = read(optimizer=sgd)
    assert algorithm(averaging).peers_step(averaging) is averaging.optimizer
    assert local_steps(averaging, 0.02) is None

    fedavg = read(algorithm={"name": "local_sgd", "local_epochs": 5}, optimizer=sgd)
    step = algorithm(fedavg).peers_step(fedavg)
    assert (step.name, step.lr, step.momentum, step.weight_decay) == ("sgd", 1.0, 0.0, 0.0)
    steps = local_steps(fedavg, 0.01)
    assert steps is not None
    assert (steps.epochs, steps.optimizer.lr, steps.optimizer.momentum) == (5, 0.01, 0.5)

    fedopt = read(algorithm={"name": "local_sgd", "average": "updates"}, outer={"name": "adam", "nesterov": False})
    assert algorithm(fedopt).peers_step(fedopt) is fedopt.outer

    diloco = read(algorithm={"name": "diloco", "local_steps": 7}, optimizer={"name": "adamw"})
    outer = algorithm(diloco).peers_step(diloco)
    assert (outer.name, outer.lr, outer.momentum, outer.nesterov) == ("sgd", 0.7, 0.9, True)
    assert local_steps(diloco, 0.01).steps == 7  # type: ignore[union-attr]
