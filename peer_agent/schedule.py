"""The learning rate of a round, from its number alone. Pure, so that all peers agree and checkpoints need no more."""

from __future__ import annotations

import math

from contract.config import SchedulerConfig


def rate(config: SchedulerConfig, lr: float, round: int, rounds: int) -> float:
    """The learning rate of `round` in a run of at most `rounds`; `lr` is the one at the start, or what the plateaus so
    far have left of it.

    It never falls below `min_lr`, or `lr` where that is smaller. In the warm-up of W rounds, round t has (t + 1) / (W +
    1) of the rate that comes after it.
    """
    warmup = config.warmup_rounds
    if round < warmup:
        return lr * (round + 1) / (warmup + 1)
    floor = min(config.min_lr, lr)
    past = round - warmup
    left = 1.0 - min(1.0, past / max(1, rounds - warmup))
    match config.name:
        case "cosine":
            return floor + (lr - floor) * (1.0 - math.cos(math.pi * left)) / 2
        case "linear":
            return floor + (lr - floor) * left
        case "step":
            return max(floor, lr * config.factor ** (past // config.step_rounds))
        case _:  # constant, and plateau: what the validation losses have led to
            return lr
