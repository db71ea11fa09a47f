"""The sections of the configuration that say how weights change: algorithm, optimizers, learning rate, and the end.

Free of torch: whoever reads a configuration need not be able to train. contract/optimizers.py builds what stands here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from contract.section import Positive, Section

BUILT_IN_ALGORITHMS = ("gradient_averaging", "local_sgd", "diloco")


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be; with `open_above` less than `most`, else at most that."""

    least: float = 0.0
    most: float = math.inf
    open_above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"a number of at least {self.least:g}"
        return f"a number from {self.least:g} to {'below ' if self.open_above else ''}{self.most:g}"


_SHARE, _ANY = Range(0.0, 1.0, open_above=True), Range()
_BETAS = {"beta1": _SHARE, "beta2": _SHARE, "eps": _ANY}

#: Optimizers by name, each with its options beside lr, momentum, nesterov and weight_decay: a range of numbers, or None
#: for a switch. All of them are elementwise: a step on one flat vector equals a step on the model's own tensors.
OPTIMIZERS: Mapping[str, Mapping[str, Range | None]] = {
    "sgd": {"dampening": Range(0.0, 1.0)},
    "adam": {**_BETAS, "amsgrad": None},
    "adamw": {**_BETAS, "amsgrad": None},
    "nadam": {**_BETAS, "momentum_decay": _ANY, "decoupled_weight_decay": None},
    "radam": {**_BETAS, "decoupled_weight_decay": None},
    "adamax": _BETAS,
    "adagrad": {"lr_decay": _ANY, "initial_accumulator_value": _ANY, "eps": _ANY},
    "adadelta": {"rho": _SHARE, "eps": _ANY},
    "rmsprop": {"alpha": _SHARE, "eps": _ANY, "momentum": _SHARE, "centered": None},
    "rprop": {"eta_minus": _SHARE, "eta_plus": Range(1.0), "step_min": _ANY, "step_max": _ANY},
    "asgd": {"lambd": _ANY, "alpha": _ANY, "t0": _ANY},
}
#: The rest of torch.optim, and why it is not here.
REFUSED: Mapping[str, str] = {
    "lbfgs": "it looks at the loss several times per step, and a round has one gradient",
    "muon": "it works on matrices, and a peer's weights are one flat vector",
    "adafactor": "its step depends on whole tensors, and a peer's weights are one flat vector",
    "sparseadam": "it needs sparse gradients, and gradients travel dense",
}


class OptimizerConfig(Section):
    """What takes steps along gradients of the loss: the peers with `gradient_averaging`, else the workers."""

    name: str = "sgd"
    """Optimizer of torch.optim: `sgd`, `adam`, `adamw`, `nadam`, `radam`, `adamax`, `adagrad`, `adadelta`, `rmsprop`,
    `rprop` or `asgd`."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate at the start."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; the others ignore it."""
    nesterov: bool = False
    """SGD looks ahead along its momentum (Nesterov)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty (decoupled for `adamw`)."""
    options: dict[str, bool | float] = Field(default_factory=dict)
    """Further options of this optimizer by torch's names, for example { beta2 = 0.95, eps = 1e-6 }."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Before a step the gradient is scaled down to at most this L2 norm; 0 leaves it as it is."""
    clip_value: Annotated[float, Field(ge=0)] = 0.0
    """Before that, each of its values is cut off at plus and minus this; 0 leaves them as they are."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, value: str) -> str:
        if value in OPTIMIZERS:
            return value
        if value in REFUSED:
            raise ValueError(f"{value} cannot be used here: {REFUSED[value]}; use one of {', '.join(OPTIMIZERS)}")
        raise ValueError(f"optimizer {value!r} is none of {', '.join(OPTIMIZERS)}")

    @model_validator(mode="after")
    def _fitting_options(self) -> OptimizerConfig:
        known = OPTIMIZERS[self.name]
        for option, value in self.options.items():
            if option not in known:
                raise ValueError(f"{self.name} has no option {option}; it has {', '.join(known)}")
            allowed = known[option]
            if allowed is None and not isinstance(value, bool):
                raise ValueError(f"option {option} of {self.name} is {value!r}, but must be true or false")
            if allowed is not None and (isinstance(value, bool) or not math.isfinite(value) or value not in allowed):
                raise ValueError(f"option {option} of {self.name} is {value!r}, but must be {allowed}")
        if self.nesterov and (self.name != "sgd" or not self.momentum or self.options.get("dampening")):
            raise ValueError("nesterov = true needs sgd with a momentum and no dampening")
        if self.weight_decay and self.name == "rprop":
            raise ValueError("rprop goes by the signs of gradients and has no weight_decay")
        return self


class OuterConfig(OptimizerConfig):
    """The peers' step with the averaged update, where workers take steps of their own: `diloco`, and `local_sgd` with
    `average = "updates"`. The defaults are DiLoCo's (Douillard et al. 2023, arXiv 2311.08105)."""

    lr: Annotated[float, Field(gt=0)] = 0.7
    """Learning rate; no schedule changes it. 1.0 without momentum takes the average as it is."""
    nesterov: bool = True
    """SGD looks ahead along its momentum (Nesterov)."""


class AlgorithmConfig(Section):
    """What a round does with its batches."""

    name: Literal["gradient_averaging", "local_sgd", "diloco"] = "gradient_averaging"
    """`gradient_averaging` (the paper): one step with the mean of all gradients. `local_sgd`: each worker takes steps
    of its own with [optimizer], then their results are averaged by samples (FedAvg, McMahan et al. 2017, arXiv
    1602.05629). `diloco`: AdamW in the workers, and [outer], Nesterov's SGD, with the averaged update."""
    local_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that a worker takes in a round, one batch each; 0 takes `local_epochs`."""
    local_epochs: Positive = 1
    """Passes of a worker over its batches of a round, each in an order of its own."""
    average: Literal["weights", "updates"] = "weights"
    """`local_sgd`: the next weights are the average of the workers' `weights`; or the average of their `updates` is
    what [outer] takes a step with. It is the update that travels either way."""
    keep_state: bool = False
    """A worker's optimizer goes on in the next round with the moments that it has, instead of beginning anew."""


class SchedulerConfig(Section):
    """The learning rate of [optimizer] over the rounds."""

    name: Literal["plateau", "constant", "cosine", "linear", "step"] = "plateau"
    """`plateau`: torch's ReduceLROnPlateau on the validation loss. `cosine` and `linear` fall from lr to `min_lr` at
    the epoch limit, `step` multiplies by `factor` every `step_rounds`."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises evenly over so many rounds at the start, whatever comes then."""
    step_rounds: Positive = 100
    """Rounds between two reductions of `step`."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """`plateau` multiplies the learning rate by this when the validation loss stops falling, `step` every so often."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Validations without improvement before `plateau` does."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    """The learning rate never falls below this, the warm-up aside."""


class EarlyStoppingConfig(Section):
    """When to end before the epoch limit."""

    patience: Annotated[int, Field(ge=0)] = 6
    """Validations without improvement before training stops; 0 turns early stopping off."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """An improvement smaller than this does not count."""


def check_algorithm(
    algorithm: AlgorithmConfig, optimizer: OptimizerConfig, outer: OuterConfig, mode: str, state_machine: str
) -> None:
    """Raises ValueError for an algorithm that makes no sense with these settings of the run."""
    name = algorithm.name
    if name == "gradient_averaging":
        if algorithm.local_steps or algorithm.local_epochs > 1 or algorithm.keep_state:
            raise ValueError(f"algorithm: workers take no steps with {name}; use local_sgd or diloco")
        return
    if name == "diloco" and not (optimizer.name == "adamw" and outer.name == "sgd" and outer.nesterov):
        raise ValueError(
            "algorithm.name = 'diloco' is optimizer.name = 'adamw' and outer.name = 'sgd' with nesterov; local_sgd "
            "with average = 'updates' takes any two"
        )
    if state_machine == "parallel":
        raise ValueError(
            f"compute.state_machine = 'parallel' has a branch per batch, but a worker of {name} takes all batches of "
            "its round; use 'auto'"
        )
    if mode == "async" and name == "local_sgd" and algorithm.average == "weights":
        raise ValueError(
            "algorithm.average = 'weights' needs weights that all have started from, which mode = 'async' has not; use "
            "'updates'"
        )
