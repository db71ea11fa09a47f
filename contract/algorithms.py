"""What a round does with its batches: the training algorithms, one form for all.

A round is the same in each of them. Workers turn batches into one vector (n,) per peer, which is compressed, exchanged,
committed to and averaged by samples; then every peer takes a step with the average. An algorithm says two things: what
a worker's vector is, and which step the peers take.

    gradient_averaging   the gradient at the round's weights                   a step of [optimizer]
    local_sgd            weights before its steps of [optimizer] minus after   the average is subtracted, or [outer]
    diloco               the same, with AdamW                                  a step of [outer]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from contract.config import OptimizerConfig, RunConfig
from contract.local_steps import LocalSteps
from contract.optimizers import Described
from contract.training import BUILT_IN_ALGORITHMS

#: The mean of the workers' weights is the round's weights minus the mean of their updates.
AVERAGE = OptimizerConfig(name="sgd", lr=1.0, momentum=0.0)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One way of training."""

    local: bool
    """Whether workers take steps of their own, one batch after the other."""
    peers_step: Callable[[RunConfig], OptimizerConfig]
    """The step that every peer takes with the average."""


ALGORITHMS: Mapping[str, Algorithm] = {
    "gradient_averaging": Algorithm(local=False, peers_step=lambda config: config.optimizer),
    "local_sgd": Algorithm(
        local=True, peers_step=lambda config: AVERAGE if config.algorithm.average == "weights" else config.outer
    ),
    "diloco": Algorithm(local=True, peers_step=lambda config: config.outer),
}


def algorithm(config: RunConfig) -> Algorithm:
    """The one that a run is configured for."""
    return ALGORITHMS[config.algorithm.name]


def local_steps(config: RunConfig, lr: float) -> LocalSteps | None:
    """What workers do with a round's batches at the learning rate `lr`; None where they only compute gradients."""
    if not algorithm(config).local:
        return None
    return LocalSteps(
        optimizer=Described.of(config.optimizer, lr),
        steps=config.algorithm.local_steps,
        epochs=config.algorithm.local_epochs,
        keep_state=config.algorithm.keep_state,
    )


if ALGORITHMS.keys() != set(BUILT_IN_ALGORITHMS):
    raise TypeError("contract/algorithms.py and contract/training.py know different algorithms")
