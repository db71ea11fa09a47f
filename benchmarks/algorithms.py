"""Rounds to 97% on MNIST, four peers: local SGD and DiLoCo against one averaged gradient per round.

All take equal samples per round, all try the same learning rates, each counts with the one that needs the fewest rounds
in the mean over the seeds. A rate that has needed as many rounds as a lower one did with all its seeds is given up, and
a run that has not arrived after `ROUNDS` rounds counts with these. Gradients and updates are compressed to 4 bits, as
is usual here. What is done is kept (`benchmarks.in_process.state_folder`): a benchmark that was stopped goes on. The
test set decides when a run has arrived, and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.in_process import InProcess, fewer, state_folder
from benchmarks.reporting import Figure
from contract.config import DataConfig, RunConfig
from peerless import data

TARGET, ROUNDS = 0.97, 150
SEEDS, RATES = (1, 2, 3), (1e-3, 2e-3, 5e-3, 1e-2)
#: Samples per peer and round, whatever the batch size, and rounds in which a peer has seen its partition once.
PEERS, SAMPLES, ROUNDS_PER_PASS = 4, 2_048, 6
#: The batch of a worker's own step; a gradient's batches only bound memory, as their mean is what counts.
STEP, PIECE = 32, 512
LOCAL: dict[str, Any] = {"batch_size": STEP, "batches_per_round": SAMPLES // STEP}
FORMS: dict[str, dict[str, Any]] = {
    "gradient_averaging": {
        "batch_size": PIECE,
        "batches_per_round": SAMPLES // PIECE,
        "algorithm": {"name": "gradient_averaging"},
        "optimizer": {"name": "adam"},
    },
    "local_sgd": {**LOCAL, "algorithm": {"name": "local_sgd"}, "optimizer": {"name": "adam"}},
    "diloco": {**LOCAL, "algorithm": {"name": "diloco"}, "optimizer": {"name": "adamw"}},
}
COMMON: dict[str, Any] = {
    "peers": PEERS,
    "model": "cnn",
    "data": {"validation_samples": 5_000, "train_samples": PEERS * ROUNDS_PER_PASS * SAMPLES},
    "scheduler": {"name": "constant"},
    "compute": {"service": "local"},
    "exchange": {"codec": "qsgd4"},
}


class UnequalWorkError(Exception):
    """The algorithms did not take equal samples in each round, so rounds say nothing."""


def run() -> list[Figure]:
    """Train with every algorithm, rate and seed, as far as that has not been done, and give the figures."""
    digits, folder = data.load(DataConfig(source="mnist"), log=_tell), state_folder("algorithms")
    rounds = {}
    for form in FORMS:
        rounds[form] = best(functools.partial(_rounds, folder, digits, form))
    figures = [Figure(name="samples_per_round", value=PEERS * SAMPLES, unit="samples", better="neither")]
    for form, (rate, count) in rounds.items():
        figures.append(Figure(name=f"rounds_{form}", value=count, unit=f"rounds to {TARGET:.0%}", better="lower"))
        figures.append(Figure(name=f"rate_{form}", value=rate, unit="learning rate", better="neither"))
    than = rounds["gradient_averaging"][1]
    return figures + [fewer(f"{form}_fewer_rounds", rounds[form][1], than) for form in ("local_sgd", "diloco")]


def best(rounds: Callable[[float, int, int], int]) -> tuple[float, float]:
    """The learning rate with the fewest rounds in the mean over the seeds, and that mean; of equals the lowest.

    `rounds` gives those of a rate, a seed and a limit; it is asked for no more than what decides.
    """
    rate, fewest = RATES[0], sum(rounds(RATES[0], seed, ROUNDS) for seed in SEEDS)
    for other in RATES[1:]:
        total = 0
        for seed in SEEDS:
            total += rounds(other, seed, min(ROUNDS, fewest - total))
            if total >= fewest:
                break
        if total < fewest:
            rate, fewest = other, total
    return rate, fewest / len(SEEDS)


def _rounds(folder: Path, digits: data.Dataset, form: str, rate: float, seed: int, limit: int) -> int:
    return taken(folder, digits, configuration(form, rate, seed), rounds=limit)


def configuration(form: str, rate: float, seed: int) -> RunConfig:
    """One run's."""
    values = {**COMMON, **FORMS[form], "seed": seed}
    values["optimizer"] = {**values["optimizer"], "lr": rate}
    return RunConfig.model_validate(values)


def taken(folder: Path, digits: data.Dataset, config: RunConfig, target: float = TARGET, rounds: int = ROUNDS) -> int:
    """Rounds that a run takes, `rounds` at most; from the folder, where one of just these settings has gone so far."""
    key = hashlib.sha256(f"{config.to_json()} {target}".encode()).hexdigest()[:16]
    place = folder / f"{config.algorithm.name}-{key}.json"
    found = json.loads(place.read_text())["accuracy_by_round"] if place.exists() else []
    if len(found) < rounds and (not found or found[-1] < target):
        found = train(config, digits, target, rounds)
        done = {"accuracy_by_round": found, "config": config.model_dump(mode="json")}
        place.with_suffix(".new").write_text(json.dumps(done))
        place.with_suffix(".new").replace(place)
    return min(len(found), rounds)


def train(config: RunConfig, digits: data.Dataset, target: float, rounds: int) -> list[float]:
    """Test accuracy after each round, until it reaches `target` or the rounds are over. Raises UnequalWorkError."""
    torch.set_num_threads(config.compute.threads)
    prepared = data.prepare(config, digits)
    test = list(prepared.test_batches())
    peers = InProcess(config, prepared.model_spec(config), prepared.samples, prepared.batches, prepared.batch)
    found: list[float] = []
    expected = config.peers * config.batches_per_round * config.batch_size
    while len(found) < rounds and (not found or found[-1] < target):
        samples = peers.round(len(found))
        if samples != expected:
            raise UnequalWorkError(f"round {len(found)} took {samples} samples, not {expected}")
        found.append(peers.accuracy(test))
        what = f"{config.algorithm.name}, {config.optimizer.name} {config.optimizer.lr:g}, seed {config.seed}"
        _tell(f"{what}: {found[-1]:.4f} after {len(found)} rounds")
    return found


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
