"""How exact gradients by workers are, against a plain torch loop over the same samples, and what BatchNorm keeps.

**Gradients.** Real worker processes behind the local Step Functions compute batches of unequal sizes from the same
weights, with one batch per invocation and with three, codec `none`; the peer's code averages them. The plain loop is
what one writes without Peerless: forward, loss times its share of the samples, backward, `.grad` adds up. Both seed
dropout alike, and both have one thread, so what differs is the order of additions. `relative_error` is the distance of
both gradients over the length of the plain one, the larger of the two divisions.

**BatchNorm.** A small CNN with two BatchNorm layers learns MNIST twice: by two peers whose workers send running
statistics home, and in one process that goes through the same batches. `accuracy_points_lost` is the one process's
accuracy on the test set minus the peers', in points.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.comparison import configuration, train_bare, train_peers
from benchmarks.lone import SEED, Lone, lone_service
from benchmarks.reporting import Figure, cores
from benchmarks.vectors import relative_error
from contract.modelspec import ModelSpec
from contract.objective import evaluate
from contract.tasks import gradient_seed
from contract.tensors import load
from infra.local.cloud import LocalCloud
from peerless.launch.workload import Workload

#: Samples per batch, unequal on purpose.
SIZES = (32, 17, 32, 8, 24, 5)
DIVISIONS = (1, 3)
PIXELS, CLASSES = 32, 10
MODELS = {
    "vgg11": ModelSpec(name="vgg11", classes=CLASSES, channels=3, image_size=PIXELS, options={"head": "cifar"}),
    "mobilenet_v3_small": ModelSpec(name="mobilenet_v3_small", classes=CLASSES, channels=3, image_size=PIXELS),
    "squeezenet1_1": ModelSpec(name="squeezenet1_1", classes=CLASSES, channels=3, image_size=PIXELS),
}
NORMALISED = "benchmarks.exactness:NormalisedCnn"
ROUNDS, PEERS, BATCHES, BATCH_SIZE = 190, 2, 2, 64


class NormalisedCnn(nn.Module):
    """Two convolutions of stride 2, each with BatchNorm and ReLU, and one dense layer."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, kernel_size=5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, classes),
        )

    def forward(self, x_NCSS: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits_NK: Tensor = self.layers(x_NCSS)
        return logits_NK


def run() -> list[Figure]:
    """Measure, and give the figures."""
    figures = []
    with (
        tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder,
        LocalCloud.start(Path(folder), broker=False, log=_tell) as cloud,
    ):
        for name, spec in MODELS.items():
            error = max(gradient_error(cloud, spec, SIZES, per_worker) for per_worker in DIVISIONS)
            _tell(f"{name}: relative error {error:.2g}")
            figures.append(
                Figure(
                    name=f"relative_error_{name}", value=error, unit="relative L2", better="lower",
                    must=1e-5, aim=1e-6,
                )
            )  # fmt: skip
    return [*figures, *normalised_accuracy(ROUNDS)]


def gradient_error(cloud: LocalCloud, spec: ModelSpec, sizes: tuple[int, ...], per_worker: int) -> float:
    """Distance of the workers' gradient from plain torch's, over the length of the latter."""
    generator = torch.Generator().manual_seed(SEED)
    data = [
        (
            torch.randn(size, spec.channels, spec.image_size, spec.image_size, generator=generator),
            torch.randint(spec.classes, (size,), generator=generator),
        )
        for size in sizes
    ]
    name = f"exact-{spec.name.replace('_', '-')}-{per_worker}"
    with lone_service(cloud, name, spec, data, min(cores(), len(data)), batches_per_worker=per_worker) as lone:
        found = lone.compute(0)
        return relative_error(found.gradient, plain_gradient(lone, data))


def plain_gradient(lone: Lone, data: list[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
    """(n,) float32: the gradient of the mean loss over all samples, by a plain loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        load(lone.model, lone.layout, lone.flat, lone.buffers)
        model, total = lone.model.train(), sum(len(y) for _, y in data)
        model.zero_grad()
        for index, (x, y) in enumerate(data):
            torch.manual_seed(gradient_seed(SEED, index))
            loss = functional.cross_entropy(model(x), y) * (len(y) / total)
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        torch.set_num_threads(threads)
    parts = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in model.parameters()
    ]
    gradient: NDArray[np.float32] = torch.cat([part.reshape(-1) for part in parts]).numpy()
    return gradient


def normalised_accuracy(rounds: int) -> list[Figure]:
    """Train both ways for so many rounds, and compare on the test set."""
    config = configuration(
        rounds,
        peers=PEERS,
        batches_per_round=BATCHES,
        batch_size=BATCH_SIZE,
        model=NORMALISED,
        exchange={"codec": "none"},
    )
    work = Workload.of(config, _tell)
    bare = train_bare(config)
    work.model.load_state_dict(bare.weights)
    alone = evaluate(work.model, config.loss, work.prepared.test_batches()).accuracy
    together = train_peers(config).summary["test_accuracy"]
    assert alone is not None  # the targets are labels
    _tell(f"accuracy in one process {alone:.4f}, by workers {together:.4f}")
    return [
        Figure(
            name="accuracy_points_lost", value=100 * (alone - together), unit="points", better="lower",
            must=0.5, aim=0.0,
        ),
        Figure(name="accuracy_in_one_process", value=alone, unit="share", better="neither"),
    ]  # fmt: skip


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
