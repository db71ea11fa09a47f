"""A round through Step Functions, Lambda workers and RabbitMQ, against bare torch doing the same batches.

Four peers train the demo's CNN on MNIST for some rounds on the local stack. The bare side is one process with a thread
per core that goes through the very same batches from the same weights: forward and backward over all peers' batches of
a round, one step. It is measured before and after the run, and the median of both counts. Rounds are timed from one
commit to the next; the first ones are left out, because workers and caches warm up.

That both sides do equal work is checked, and a difference ends the benchmark: the samples of every round, the training
loss of round 0, one invocation per batch; and, in a short run without compression, the weights that come out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import peerless
from benchmarks.reporting import Figure, cores
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from peerless.launch.resources import places_for
from peerless.launch.workload import Workload
from peerless.report.progress import Lines

PEERS, BATCHES, BATCH_SIZE, ROUNDS, WARM = 4, 2, 128, 24, 4
#: Rounds of the run whose weights are compared.
PROOF_ROUNDS = 3
STAGES = ("compute", "send", "receive", "update", "convergence")


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
    """Stage events of all peers, without the rounds that warm up."""
    summary: dict[str, Any]
    weights: dict[str, Tensor]


class UnequalWorkError(AssertionError):
    """The two sides of a comparison did not do the same."""


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError."""
    prove()
    config = configuration(ROUNDS)
    before = train_bare(config)
    peers = train_peers(config)
    after = train_bare(config)
    expected = PEERS * BATCHES * ROUNDS
    invocations = peers.summary["lambda_service"]["invocations"]
    equal("invocations", invocations, expected)
    equal("samples by round", [commit["samples"] for commit in peers.commits], before.samples)
    close("training loss of round 0", peers.commits[0]["loss"], before.losses[0])
    bare = statistics.median(before.seconds[WARM:] + after.seconds[WARM:])
    each = statistics.median(later["t"] - earlier["t"] for earlier, later in pairwise(peers.commits[WARM:]))
    figures = [
        Figure(name="round_over_bare_torch", value=each / bare, unit="x", better="lower"),
        Figure(name="invocations_over_batches", value=invocations / expected, unit="x", better="lower"),
        Figure(name="seconds_per_round", value=each, unit="s", better="lower"),
        Figure(name="seconds_per_bare_round", value=bare, unit="s", better="neither"),
    ]
    for stage in STAGES:
        seconds = [event["seconds"] for event in peers.stages if event["stage"] == stage]
        if seconds:
            value = statistics.median(seconds)
            figures.append(Figure(name=f"seconds_{stage}", value=value, unit="s per peer and round", better="lower"))
    return figures


def prove() -> None:
    """A short run with uncompressed gradients must end with bare torch's weights, but for float32 rounding."""
    config = configuration(PROOF_ROUNDS, exchange={"codec": "none"})
    peers, bare = train_peers(config), train_bare(config)
    equal("samples by round", [commit["samples"] for commit in peers.commits], bare.samples)
    equal("tensors", sorted(peers.weights), sorted(bare.weights))
    apart = _distance(peers.weights, bare.weights)
    moved = _distance(bare.start, bare.weights)
    if not apart <= 1e-4 * moved:  # sums in another order give some 1e-6
        raise UnequalWorkError(f"weights that moved by {moved:.4g} end {apart:.4g} apart from bare torch's")


def configuration(rounds: int, **changes: Any) -> RunConfig:
    """The run, with just as much data as `rounds` rounds take."""
    values = {
        "name": "bench-round",
        "peers": PEERS,
        "epochs": 1,
        "batch_size": BATCH_SIZE,
        "batches_per_round": BATCHES,
        "data": {"train_samples": PEERS * BATCHES * BATCH_SIZE * rounds},
    }
    return RunConfig.model_validate({**values, **changes})


def train_peers(config: RunConfig) -> Peers:
    """Train through the whole stack."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder:
        made = peerless.train(config, runs_dir=folder, observer=Lines(Console(file=sys.stderr)))
        events, weights = made.metrics(), made.weights()
    commits = [e for e in events if e["event"] == "commit" and e["rank"] == 0 and e["contributors"]]
    stages = [e for e in events if e["event"] == "stage" and WARM <= e["round"] < len(commits)]
    return Peers(commits, stages, made.summary, weights)


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


def _distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Euclidean distance over all tensors, matched by name."""
    return float(torch.cat([(tensor - left[name]).flatten() for name, tensor in right.items()]).norm())
