"""From contributions to the next weights: against torch.optim on a model's own tensors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from contract import training, wire
from contract.averaging import Remarks
from contract.codec import codec
from contract.config import AggregationConfig, OptimizerConfig
from contract.errors import CorruptObject
from contract.tensors import Buffers, Layout, flatten, load, pack_buffers, read_buffers, weights_hash
from contract.wire import Frame, FrameHeader, Kind
from peer_agent.update import Update


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def frame(layout: Layout, gradient: np.ndarray, buffers: Buffers, samples: int, rank: int) -> Frame:
    header = FrameHeader(
        kind=Kind.UPDATE, run="run", round=0, base_round=0, base_weights="0" * 64, rank=rank, incarnation=1,
        samples=samples, codec="none", seed=0, elements=layout.elements,
    )  # fmt: skip
    blob = wire.encode(header, codec("none").encode(gradient, 0), pack_buffers(layout, buffers))
    return wire.decode(blob, expected_elements=layout.elements, expected_buffers_bytes=layout.buffers_bytes)


def random_gradient(layout: Layout, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(layout.elements).astype(np.float32)


#: Settings and what torch makes of them by itself.
OPTIMIZERS: dict[str, tuple[OptimizerConfig, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]]] = {
    "sgd": (
        OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "sgd with nesterov": (
        OptimizerConfig(lr=0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    "sgd with dampening": (
        OptimizerConfig(lr=0.1, momentum=0.8, options={"dampening": 0.5}),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5),
    ),
    "adam": (
        OptimizerConfig(name="adam", lr=0.1, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    ),
    "adam with options": (
        OptimizerConfig(name="adam", lr=0.1, options={"beta2": 0.9, "eps": 1e-3, "amsgrad": True}),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.9), eps=1e-3, amsgrad=True),
    ),
    "adamw": (
        OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
    ),
    "nadam": (
        OptimizerConfig(name="nadam", lr=0.1, weight_decay=0.01),
        lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.01),
    ),
    "radam": (OptimizerConfig(name="radam", lr=0.1), lambda p: torch.optim.RAdam(p, lr=0.1)),
    "adamax": (OptimizerConfig(name="adamax", lr=0.1), lambda p: torch.optim.Adamax(p, lr=0.1)),
    "adagrad": (
        OptimizerConfig(name="adagrad", lr=0.1, options={"initial_accumulator_value": 0.1}),
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    ),
    "adadelta": (
        OptimizerConfig(name="adadelta", lr=0.1, options={"rho": 0.8}),
        lambda p: torch.optim.Adadelta(p, lr=0.1, rho=0.8),
    ),
    "rmsprop": (
        OptimizerConfig(name="rmsprop", lr=0.01, options={"momentum": 0.5, "centered": True}),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    ),
    "rprop": (
        OptimizerConfig(name="rprop", lr=0.01, options={"eta_minus": 0.4, "step_max": 0.02}),
        lambda p: torch.optim.Rprop(p, lr=0.01, etas=(0.4, 1.2), step_sizes=(1e-6, 0.02)),
    ),
    "asgd": (
        OptimizerConfig(name="asgd", lr=0.1, options={"lambd": 0.01}),
        lambda p: torch.optim.ASGD(p, lr=0.1, lambd=0.01),
    ),
}


def test_every_optimizer_is_compared_with_torch() -> None:
    assert {config.name for config, _ in OPTIMIZERS.values()} == set(training.OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_the_flat_vector_equal_steps_on_the_models_own_tensors(name: str) -> None:
    config, make = OPTIMIZERS[name]
    plain = model()
    layout = Layout.of(plain)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), config)
    optimizer = make(plain.parameters())
    for step in range(4):
        gradients = [random_gradient(layout, 10 * step + rank) for rank in range(3)]
        samples = [5, 2, 1]
        frames = [
            frame(layout, g, update.buffers, n, r) for r, (g, n) in enumerate(zip(gradients, samples, strict=True))
        ]
        update.step([f.header for f in frames], frames)

        mean = sum(g.astype(np.float64) * n for g, n in zip(gradients, samples, strict=True)) / sum(samples)
        carrier = model()
        load(carrier, layout, mean.astype(np.float32), read_buffers(carrier, layout))
        for parameter, value in zip(plain.parameters(), carrier.parameters(), strict=True):
            parameter.grad = value.detach().clone()
        optimizer.step()
    # The mean is accumulated in float32: one rounding per contribution, then four steps of adaptive scaling.
    np.testing.assert_allclose(update.flat, flatten(plain, layout), rtol=0, atol=4e-6)


@pytest.mark.parametrize(("norm", "value"), [(0.5, 0.0), (0.0, 0.2), (0.5, 0.2), (100.0, 0.0)])
def test_clipping_is_torchs(norm: float, value: float) -> None:
    """Values first, then the norm of what is left."""
    plain = model()
    layout = Layout.of(plain)
    config = OptimizerConfig(lr=1.0, momentum=0.0, clip_norm=norm, clip_value=value)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), config)
    gradient = random_gradient(layout, 5)
    before, clipped = update.flat, torch.nn.Parameter(torch.zeros(layout.elements))
    clipped.grad = torch.from_numpy(gradient.copy())
    if value:
        torch.nn.utils.clip_grad_value_([clipped], value)
    if norm:
        torch.nn.utils.clip_grad_norm_([clipped], norm)
    update.take(gradient.copy(), update.buffers)
    np.testing.assert_allclose(before - update.flat, clipped.grad.numpy(), rtol=0, atol=1e-6)
    assert np.array_equal(clipped.grad.numpy(), gradient) == (norm == 100.0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam"])
def test_frozen_parameters_do_not_change_under_weight_decay_and_momentum(
    name: Literal["sgd", "adam", "adamw", "nadam"],
) -> None:
    plain = model()
    plain[0].requires_grad_(False)
    plain[2].bias.requires_grad_(False)
    layout = Layout.of(plain)
    start = flatten(plain, layout)
    config = OptimizerConfig(name=name, lr=0.1, momentum=0.9, weight_decay=0.5)
    update = Update(layout, start, read_buffers(plain, layout), config)
    for step in range(3):
        noise = frame(layout, random_gradient(layout, step), update.buffers, 1, 0)
        update.step([noise.header], [noise])
    moved = {entry.name: not np.array_equal(old, new) for (entry, old), (_, new) in
             zip(layout.views(start), layout.views(update.flat), strict=True)}  # fmt: skip
    assert moved == {
        "0.weight": False, "0.bias": False, "1.weight": True, "1.bias": True, "2.weight": True, "2.bias": False
    }  # fmt: skip


def test_buffers_are_averaged_by_samples_and_counters_advance_by_one() -> None:
    plain = model()
    layout = Layout.of(plain)
    base = read_buffers(plain, layout)
    update = Update(layout, flatten(plain, layout), base, OptimizerConfig())
    changed = []
    for shift in (1.0, 5.0):
        buffers = {name: value.copy() for name, value in base.items()}
        buffers["1.running_mean"] += np.float32(shift)
        buffers["1.num_batches_tracked"] = np.asarray(buffers["1.num_batches_tracked"] + 1)
        changed.append(buffers)
    zero = np.zeros(layout.elements, np.float32)
    frames = [frame(layout, zero, changed[0], 3, 0), frame(layout, zero, changed[1], 1, 1)]
    update.step([f.header for f in frames], frames)
    np.testing.assert_array_equal(update.buffers["1.running_mean"], np.full(3, 2.0, np.float32))
    assert update.buffers["1.num_batches_tracked"] == base["1.num_batches_tracked"] + 1


def test_the_hash_names_the_new_weights_and_old_arrays_stay_as_they_were() -> None:
    plain = model()
    layout = Layout.of(plain)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig())
    before, kept = update.flat, update.flat.copy()
    one = frame(layout, random_gradient(layout, 0), update.buffers, 1, 0)
    sha256 = update.step([one.header], [one])
    assert sha256 == update.weights_sha256 == weights_hash(layout, update.flat, update.buffers)
    np.testing.assert_array_equal(before, kept)
    assert not np.array_equal(update.flat, kept)


def test_adopted_weights_are_where_the_next_step_starts() -> None:
    plain = model()
    layout = Layout.of(plain)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig(lr=0.5, momentum=0.0))
    recorded = random_gradient(layout, 7)
    update.adopt(recorded, update.buffers)
    assert update.weights_sha256 == weights_hash(layout, recorded, update.buffers)
    one = frame(layout, np.ones(layout.elements, np.float32), update.buffers, 1, 0)
    update.step([one.header], [one])
    np.testing.assert_array_equal(update.flat, recorded - np.float32(0.5))


@pytest.mark.parametrize(("name", "least", "most"), [("none", 2.0, 2.3), ("qsgd4", 1.1, 1.6)])
def test_memory_while_averaging_does_not_depend_on_the_number_of_contributions(
    name: str, least: float, most: float
) -> None:
    """Measured by tracemalloc, which sees NumPy's memory: the mean, one frame, then the new weights in their place."""
    plain = nn.Linear(1024, 1024, bias=False)
    layout = Layout.of(plain)
    size = layout.elements * 4
    payload = codec(name).encode(random_gradient(layout, 0), 0)

    def frames(headers: list[FrameHeader]) -> Iterator[Frame]:
        for header in headers:
            yield wire.decode(wire.encode(header, payload), expected_elements=layout.elements, expected_buffers_bytes=0)

    def peak(contributions: int) -> int:
        update = Update(layout, flatten(plain, layout), {}, OptimizerConfig())
        headers = [
            FrameHeader(
                kind=Kind.UPDATE, run="run", round=0, base_round=0, base_weights="0" * 64, rank=rank, incarnation=1,
                samples=1, codec=name, seed=0, elements=layout.elements,
            )
            for rank in range(contributions)
        ]  # fmt: skip
        tracemalloc.start(1)
        try:
            update.step(headers, frames(headers))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported at the first use does not count
    few, many = peak(4), peak(12)
    assert many < few + 0.05 * size
    assert least * size < many < most * size  # qsgd4 with scratch memory where the codec runs on NumPy


def test_samples_that_do_not_add_up_change_nothing() -> None:
    plain = model()
    layout = Layout.of(plain)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig())
    kept = update.weights_sha256
    one = frame(layout, random_gradient(layout, 0), update.buffers, 1, 0)
    with pytest.raises(CorruptObject):
        update.step([one.header, one.header], [one])
    assert weights_hash(layout, update.flat, update.buffers) == kept


def test_a_robust_step_ignores_one_that_sends_anything_and_leaves_nothing_on_disk(tmp_path: Path) -> None:
    plain = model()
    layout = Layout.of(plain)
    base = read_buffers(plain, layout)
    config = AggregationConfig(name="median", byzantine=1)
    update = Update(layout, flatten(plain, layout), base, OptimizerConfig(lr=0.5, momentum=0.0), config, tmp_path)
    evil = {name: np.asarray(value - 1000) for name, value in base.items()}
    ones = np.ones(layout.elements, np.float32)
    frames = [
        frame(layout, ones, base, 1, 0), frame(layout, -1e30 * ones, evil, 2**40, 1), frame(layout, ones, base, 1, 2)
    ]  # fmt: skip
    start = update.flat
    update.step([f.header for f in frames], frames)
    np.testing.assert_array_equal(update.flat, start - np.float32(0.5))
    for name, value in base.items():
        np.testing.assert_array_equal(update.buffers[name], value)
    assert update.remarks == Remarks()
    assert not list(tmp_path.iterdir())


def test_too_few_contributions_for_the_strategy_are_told_once_per_step() -> None:
    plain = model()
    layout = Layout.of(plain)
    config = AggregationConfig(name="krum", byzantine=1)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig(), config)
    frames = [frame(layout, random_gradient(layout, rank), update.buffers, 1, rank) for rank in range(5)]
    update.step([f.header for f in frames[:4]], frames[:4])
    note = "krum with byzantine = 1 needs 5 contributions; the round has 4, whose median bears 1"
    assert update.remarks == Remarks(note=note)
    update.step([f.header for f in frames], frames)
    assert update.remarks.note == ""


def test_who_was_left_out_and_who_clipped_is_told_by_rank() -> None:
    plain = model()
    layout = Layout.of(plain)
    config = AggregationConfig(name="krum", byzantine=1, clip_norm=1.0)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig(), config)
    small = np.full(layout.elements, 1e-6, np.float32)
    gradients = {1: small, 2: -small / 2, 5: 0 * small, 6: random_gradient(layout, 6), 9: 2 * small}
    frames = [frame(layout, gradient, update.buffers, 1, rank) for rank, gradient in gradients.items()]
    update.step([f.header for f in frames], frames)
    assert update.remarks == Remarks(left_out=(1, 2, 6, 9), clipped=(6,))
    mean = AggregationConfig(clip_norm=1.0)
    update = Update(layout, flatten(plain, layout), read_buffers(plain, layout), OptimizerConfig(), mean)
    update.step([f.header for f in frames], frames)
    assert update.remarks == Remarks(clipped=(6,))
