"""Training with two of ten peers that send what they like: the mean breaks, robust strategies train on.

Everything but the network is real: frames with `qsgd4`, decoded, aggregated and stepped as a peer does it. The model
has batch normalisation, and whoever attacks treats its statistics alike. Krum follows a single peer's batch, so batches
are large enough for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from contract import wire
from contract.codec import F32, codec
from contract.config import AggregationConfig, OptimizerConfig
from contract.tensors import Buffers, Layout, flat_gradient, flatten, load, pack_buffers, read_buffers
from contract.wire import Frame, FrameHeader, Kind
from peer_agent.update import Update

PEERS, BYZANTINE, ROUNDS, BATCH, FEATURES, CLASSES = 10, 2, 60, 128, 16, 5
#: Ranks that attack: neither the first nor the last, so that order does not help.
EVIL = (3, 7)

#: What an attacker makes of its gradient (n,) and of each buffer; `draw` is its source of chance.
Attack = Callable[[F32, np.random.Generator], F32]
ATTACKS: dict[str, Attack] = {
    "scaled": lambda values, draw: -10 * values,
    "sign_flipped": lambda values, draw: -values,
    "random": lambda values, draw: draw.standard_normal(values.shape, np.float32) * 10,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from threads, and waits for them where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES))


def blobs(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """x (samples, FEATURES) around one point per class, and y (samples,); so wide that accuracy stays below 1."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (samples,), generator=draw)
    return centres[y] + 1.5 * torch.randn(samples, FEATURES, generator=draw), y


def contribution(net: nn.Module, layout: Layout, update: Update, rank: int, round: int, attack: str) -> Frame:
    """The frame of one peer, whose batches nobody else has."""
    load(net, layout, update.flat, update.buffers)
    net.train()
    net.zero_grad()
    x, y = blobs(BATCH, seed=1000 * (rank + 1) + round)
    functional.cross_entropy(net(x), y).backward()
    gradient, buffers = flat_gradient(net, layout), read_buffers(net, layout)
    if attack and rank in EVIL:
        draw = np.random.default_rng((rank, round))
        gradient = ATTACKS[attack](gradient, draw)
        buffers = {name: _attacked(value, attack, draw) for name, value in buffers.items()}
    header = FrameHeader(
        kind=Kind.UPDATE, run="run", round=round, base_round=round, base_weights="0" * 64, rank=rank, incarnation=1,
        samples=BATCH, codec="qsgd4", seed=0, elements=layout.elements,
    )  # fmt: skip
    payload = codec("qsgd4").encode(gradient, seed=1000 * rank + round)
    blob = wire.encode(header, payload, pack_buffers(layout, buffers))
    return wire.decode(blob, expected_elements=layout.elements, expected_buffers_bytes=layout.buffers_bytes)


def _attacked(value: np.ndarray, attack: str, draw: np.random.Generator) -> np.ndarray:
    if value.dtype != np.float32:
        return np.asarray(value - 10)
    return ATTACKS[attack](value, draw).astype(np.float32)


@cache
def accuracy(name: str, attack: str) -> float:
    """On 4,000 samples that nobody trained on, after ROUNDS rounds; `attack` is empty where all are honest."""
    net = model()
    layout = Layout.of(net)
    aggregation = AggregationConfig.model_validate({"name": name, "byzantine": BYZANTINE})
    start: tuple[F32, Buffers] = flatten(net, layout), read_buffers(net, layout)
    update = Update(layout, *start, OptimizerConfig(lr=0.05, momentum=0.9), aggregation)
    for round in range(ROUNDS):
        frames = [contribution(net, layout, update, rank, round, attack) for rank in range(PEERS)]
        update.step([frame.header for frame in frames], frames)
        assert update.remarks.note == ""
    load(net, layout, update.flat, update.buffers)
    net.eval()
    x, y = blobs(4000, seed=1)
    with torch.no_grad():
        return float((net(x).argmax(dim=1) == y).float().mean())


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_robust_strategies_stay_within_a_point_of_the_clean_run(name: str, attack: str) -> None:
    clean = accuracy("mean", "")
    assert 0.8 < clean < 0.99  # neither too hard to learn nor too easy to break
    assert abs(accuracy(name, attack) - clean) <= 0.01


def test_the_mean_breaks() -> None:
    assert accuracy("mean", "scaled") < 0.5
