"""A run of the whole stack, and the same batches by a plain torch loop: what benchmarks compare, and checks that both
did equal work.

The bare side is one process with a thread per core that goes through the very same batches from the same weights:
forward and backward over all peers' batches of a round, one step. Batches lie in memory before its clock starts.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import peerless
from benchmarks.reporting import cores
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from peerless.launch.resources import places_for
from peerless.launch.workload import Workload
from peerless.report.progress import Lines

PEERS, BATCHES, BATCH_SIZE = 4, 2, 128


@dataclass(frozen=True)
class Bare:
    """What a plain torch loop took and gave, by round."""

    seconds: list[float]
    samples: list[int]
    losses: list[float]
    """The loss's mean over all samples, before the step."""
    start: dict[str, Tensor]
    """Weights before the first round."""
    weights: dict[str, Tensor]
    """Weights after the last."""


@dataclass(frozen=True)
class Peers:
    """What a run of the whole stack left."""

    commits: list[dict[str, Any]]
    """Peer 0's commit events of the rounds that have contributions."""
    stages: list[dict[str, Any]]
    """Stage events of all peers in these rounds."""
    worked: list[dict[str, Any]]
    """What workers measured, in all peers' rounds."""
    summary: dict[str, Any]
    weights: dict[str, Tensor]


class UnequalWorkError(AssertionError):
    """The two sides of a comparison did not do the same."""


def configuration(rounds: int, **changes: Any) -> RunConfig:
    """The run, with just as much data as `rounds` rounds take."""
    values: dict[str, Any] = {
        "name": "bench-round",
        "peers": PEERS,
        "epochs": 1,
        "batch_size": BATCH_SIZE,
        "batches_per_round": BATCHES,
    }
    values.update(changes)
    samples = values["peers"] * values["batches_per_round"] * values["batch_size"] * rounds
    values["data"] = {"train_samples": samples, **values.get("data", {})}
    return RunConfig.model_validate(values)


def train_peers(config: RunConfig) -> Peers:
    """Train through the whole stack."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder:
        made = peerless.train(config, runs_dir=folder, observer=Lines(Console(file=sys.stderr)))
        events, weights = made.metrics(), made.weights()
    commits = [e for e in events if e["event"] == "commit" and e["rank"] == 0 and e["contributors"]]
    stages = [e for e in events if e["event"] == "stage" and e["round"] < len(commits)]
    worked = [e for e in events if e["event"] == "worked"]
    return Peers(commits, stages, worked, made.summary, weights)


def train_bare(config: RunConfig) -> Bare:
    """The same rounds as a plain torch loop with a thread per core. Batches lie in memory before the clock starts."""
    work = Workload.of(config, lambda note: print(note, file=sys.stderr))
    rounds = batches_by_round(config, work)
    clock = SystemClock()
    torch.set_num_threads(cores())
    model = work.model
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr, momentum=config.optimizer.momentum)
    criterion = nn.CrossEntropyLoss()
    bare = Bare([], [], [], start, model.state_dict())
    for batches in rounds:
        begin = clock.monotonic()
        samples, mean = sum(len(y) for _, y in batches), 0.0
        optimizer.zero_grad()
        for x, y in batches:
            loss = criterion(model(x), y) * (len(y) / samples)
            loss.backward()
            mean += loss.item()
        optimizer.step()
        bare.seconds.append(clock.monotonic() - begin)
        bare.samples.append(samples)
        bare.losses.append(mean)
    return bare


def batches_by_round(config: RunConfig, work: Workload) -> list[list[tuple[Tensor, Tensor]]]:
    """x (B, 1, 28, 28) and y (B,) of every batch of all peers, round by round as the peers take them."""
    prepared, places = work.prepared, places_for("bench", config.peers, "us-east-1")
    spec = RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=work.spec,
        samples=prepared.samples,
        batches=prepared.batches,
        rounds_per_epoch=rounds_per_epoch(prepared.batches, config.batches_per_round),
        initial_weights="",
        validation=ValidationSet(sha256="", samples=0),
        state_machines=("",) * config.peers,
    )
    return [
        [prepared.batch(rank, index) for rank in range(config.peers) for index in spec.batches_for_round(rank, round)]
        for round in range(spec.rounds_limit)
    ]


def equal(what: str, peers: object, bare: object) -> None:
    """Raise UnequalWorkError unless both are the same."""
    if peers != bare:
        raise UnequalWorkError(f"{what}: {peers} by the peers, {bare} by bare torch")


def close(what: str, peers: float, bare: float) -> None:
    """Raise UnequalWorkError unless both are the same but for float32 rounding."""
    if not abs(peers - bare) <= 1e-4 * abs(bare):
        raise UnequalWorkError(f"{what}: {peers} by the peers, {bare} by bare torch")


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Euclidean distance over all tensors, matched by name."""
    return float(torch.cat([(tensor - left[name]).flatten() for name, tensor in right.items()]).norm())
