"""The compute plane by itself, for `python -m benchmarks round`: large batches, small ones, and a map of a thousand."""

from __future__ import annotations

import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks import averaging
from benchmarks.comparison import Peers, UnequalWorkError, close, configuration, equal, train_bare, train_peers
from benchmarks.lone import RANK, SEED, Lone, lone_service
from benchmarks.reporting import Figure, cores
from contract.clock import SystemClock
from contract.modelspec import ModelSpec
from infra.local.cloud import LocalCloud
from peer_agent.compute import LocalGradientService

#: Rounds that warm up, and rounds that count.
WARM, ROUNDS = 3, 6
#: VGG-11 with the CIFAR head: a batch takes half a second of two cores.
VGG: dict[str, Any] = {
    "model": "vgg11", "model_options": {"head": "cifar"}, "batch_size": 128, "batches_per_round": 32,
    "data": {"image_size": 32, "validation_samples": 64}, "compute": {"batches_per_worker": "auto"},
}  # fmt: skip
#: SqueezeNet 1.1 at 32 pixels: some 60 ms a batch. Without dropout, so that losses can be compared.
SQUEEZENET: dict[str, Any] = {
    "model": "squeezenet1_1", "model_options": {"dropout": 0.0}, "batch_size": 64, "batches_per_round": 32,
    "data": {"image_size": 32, "validation_samples": 64}, "compute": {"batches_per_worker": "auto"},
}  # fmt: skip
MAP_BATCHES, MAP_BATCH_SIZE = 1_000, 16
MAP_MODEL = ModelSpec(name="cnn", classes=10, channels=1, image_size=28)
#: Float32 values of a model of 100 MB, and gradients of it.
ELEMENTS, GRADIENTS = 25_000_000, 64


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError, RunFailed."""
    figures = [
        *over_bare("vgg11", VGG, WARM + ROUNDS, must=1.15, aim=1.05),
        *over_bare("squeezenet", SQUEEZENET, WARM + ROUNDS, must=1.5, aim=1.15),
        *map_overhead(MAP_BATCHES),
    ]
    models = averaging.models_of_memory(ELEMENTS, GRADIENTS)
    figures.append(
        Figure(name="memory_of_averaging_64", value=models, unit="models", better="lower", must=3.0, aim=2.0)
    )
    return figures


def over_bare(name: str, changes: dict[str, Any], rounds: int, *, must: float, aim: float) -> list[Figure]:
    """A round of one peer over bare torch doing the same batches on the same cores, measured before and after."""
    config = configuration(rounds, peers=1, exchange={"codec": "none"}, **changes)
    before = train_bare(config)
    peers = train_peers(config)
    after = train_bare(config)
    equal("samples by round", [commit["samples"] for commit in peers.commits], before.samples)
    close("training loss of round 0", peers.commits[0]["loss"], before.losses[0])
    bare = statistics.median(before.seconds[WARM:] + after.seconds[WARM:])
    each = statistics.median(later["t"] - earlier["t"] for earlier, later in pairwise(peers.commits[WARM:]))
    worked = [event for event in peers.worked if event["round"] >= WARM]
    return [
        Figure(name=f"round_over_bare_torch_{name}", value=each / bare, unit="x", better="lower", must=must, aim=aim),
        Figure(name=f"seconds_per_round_{name}", value=each, unit="s", better="neither"),
        Figure(
            name=f"seconds_per_batch_{name}", value=statistics.median(event["step_seconds"] for event in worked),
            unit="s", better="neither",
        ),
        Figure(
            name=f"batches_per_worker_{name}", value=statistics.median(e["batches_per_worker"] for e in worked),
            unit="batches", better="neither",
        ),
    ]  # fmt: skip


def weights_downloads(peers: Peers, rounds: int) -> Figure:
    """How often weights came from S3 per round, for all peers' invocations together; one per worker is the limit."""
    fetched = sum(event["weights_fetched"] for event in peers.worked)
    return Figure(
        name="weights_downloads", value=fetched / rounds, unit="per round", better="lower", must=cores(), aim=1
    )


def map_overhead(count: int) -> list[Figure]:
    """One distributed map, a batch per invocation: what it takes per batch beyond the workers' forward and backward."""
    generator = torch.Generator().manual_seed(SEED)
    pixels = MAP_MODEL.image_size
    data = [
        (
            torch.randn(MAP_BATCH_SIZE, MAP_MODEL.channels, pixels, pixels, generator=generator),
            torch.randint(MAP_MODEL.classes, (MAP_BATCH_SIZE,), generator=generator),
        )
        for _ in range(count)
    ]
    workers, clock = cores(), SystemClock()
    with (
        tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder,
        LocalCloud.start(Path(folder), broker=False, log=_tell) as cloud,
        lone_service(
            cloud, "map", MAP_MODEL, data, workers, batches_per_worker=1, state_machine="distributed_map"
        ) as lone,
    ):
        lone.compute(0)  # warm
        begun = clock.monotonic()
        found = lone.compute(1)
        seconds = clock.monotonic() - begun
        equal("invocations", found.invocations, count)
        same(lone, found.gradient.tobytes())
    assert found.work is not None
    step = found.work.step_seconds
    overhead = seconds / count - step / workers
    return [
        Figure(name="map_overhead_per_batch", value=1_000 * overhead, unit="ms", better="lower", must=15.0, aim=6.0),
        Figure(name="map_seconds_per_batch", value=step, unit="s", better="neither"),
    ]


def same(lone: Lone, gradient: bytes) -> None:
    """Raise UnequalWorkError unless the same batches give this gradient in process, bit for bit."""
    torch.set_num_threads(1)
    local = LocalGradientService(lone.spec, RANK, store=lone.store).compute(**lone.arguments(1))
    if local.gradient.tobytes() != gradient:
        raise UnequalWorkError("the map's gradient is not the one that the batches have")


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
