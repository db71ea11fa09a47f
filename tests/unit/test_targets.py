"""Targets that are no classes: numbers of any shape, and several labels at once; built-in and own losses for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from contract.config import BUILT_IN_LOSSES, RunConfig, with_overrides
from contract.errors import ConfigError, DataError, ModelError
from contract.objective import LOSSES, evaluate, forward, loss_function
from peerless.data import Dataset, from_torch_dataset, prepare
from peerless.data.newcomer import Preprocessing, prepare_newcomer
from peerless.data.npz import read_npz, to_npz
from peerless.launch.preview import label_counts

X = np.arange(300, dtype=np.float32).reshape(100, 3)


def dataset(y: np.ndarray, **changes: Any) -> Dataset:
    return from_torch_dataset(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), **changes)


def config(loss: str, **data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"loss": loss, "peers": 2, "batch_size": 8, "model": "mlp", "data": {"preprocess": [], **data}}
    )


OWN = """
import torch

def huber(outputs, targets):
    return torch.nn.functional.huber_loss(outputs.reshape(targets.shape), targets)

def each(outputs, targets):
    return (outputs - targets).abs()

def text(outputs, targets):
    return "small"

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "own_losses_for_tests.py").write_text(OWN)
    sys.path.insert(0, str(tmp_path))
    yield "own_losses_for_tests"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("own_losses_for_tests", None)


def test_every_loss_that_a_configuration_may_name_is_there() -> None:
    assert tuple(LOSSES) == BUILT_IN_LOSSES


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4), (5, 2, 2)])
def test_losses_of_numbers_take_any_shape_of_targets(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(shape, generator=generator)
    outputs = torch.randn(5, targets[0].numel(), generator=generator)
    flat, answers = targets.reshape(5, -1).double(), outputs.double()
    by_sample = (answers - flat).square().mean(1)
    assert float(loss_function("mse")(outputs, targets)) == pytest.approx(float(by_sample.mean()), rel=1e-6)
    entropy = -(flat * answers.sigmoid().log() + (1 - flat) * (1 - answers.sigmoid()).log()).mean(1)
    assert float(loss_function("bce")(outputs, targets)) == pytest.approx(float(entropy.mean()), rel=1e-6)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_outputs_are_never_spread_over_targets(loss: str) -> None:
    """torch would, with a warning: each of N outputs against each of N targets."""
    with pytest.raises(ModelError, match=r"answers with shape \[3, 2\], but the targets have shape \[3\]"):
        forward(nn.Identity(), loss, torch.zeros(3, 2), torch.zeros(3))


def test_an_own_loss_is_imported_by_name(own: str) -> None:
    outputs, targets = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0])
    expected = functional.huber_loss(outputs[:, 0], targets)
    assert float(loss_function(f"{own}:huber")(outputs, targets)) == float(expected)


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("each", r"returned a tensor of shape \[3, 2\], but must return one number"),
        ("text", "returned str, but must return one number"),
        ("missing", "has no missing"),
        ("number", "number is int, which cannot be called"),
    ],
)
def test_an_own_loss_that_cannot_be_used_is_told(own: str, attribute: str, told: str) -> None:
    with pytest.raises(ModelError, match=rf"^loss {own}:{attribute}:? .*{told}"):
        forward(nn.Identity(), f"{own}:{attribute}", torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ModelError, match="there is no module named nowhere"):
        loss_function("nowhere:loss")


@pytest.mark.parametrize("name", ["hinge", "mse:", "torch.nn"])
def test_a_loss_that_nobody_has_is_refused_in_the_configuration(name: str) -> None:
    with pytest.raises(ConfigError, match="none of cross_entropy, nll, mse, bce, nor of the form"):
        with_overrides({}, [f'loss="{name}"'], "configuration")


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_of_several_labels_the_accuracy_is_the_share_told_rightly() -> None:
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.5], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    batches = [(logits[:2], targets[:2]), (logits[2:], targets[2:])]
    found = evaluate(Fixed(), "bce", batches)
    assert found.accuracy == 3 / 6
    assert found.loss == pytest.approx(float(functional.binary_cross_entropy_with_logits(logits, targets)), rel=1e-6)


def test_numbers_have_no_accuracy(own: str) -> None:
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    assert (evaluate(Fixed(), "mse", [(x, y)]).loss, evaluate(Fixed(), "mse", [(x, y)]).accuracy) == (2.0, None)
    assert evaluate(Fixed(), f"{own}:huber", [(x, y)]).accuracy is None


@pytest.mark.parametrize(
    ("y", "dtype", "shape", "classes"),
    [
        (np.arange(100) % 4, np.int64, (), 4),
        ((np.arange(100) % 4).reshape(100, 1), np.int64, (), 4),
        (np.linspace(0, 1, 100), np.float32, (), 1),
        (np.linspace(0, 1, 600).reshape(100, 2, 3), np.float32, (2, 3), 6),
        (np.arange(300).reshape(100, 3) % 2, np.float32, (3,), 3),
        ((np.arange(300).reshape(100, 3) % 2).astype(bool), np.float32, (3,), 3),
    ],
)
def test_every_source_of_arrays_reads_targets_alike(
    tmp_path: Path, y: np.ndarray, dtype: type, shape: tuple[int, ...], classes: int
) -> None:
    np.savez(tmp_path / "own.npz", x=X, y=y)
    pairs = [(torch.from_numpy(x), torch.as_tensor(target)) for x, target in zip(X, y, strict=True)]
    listed = from_torch_dataset(type("Listed", (), {"__getitem__": pairs.__getitem__, "__len__": pairs.__len__})())
    for found in (read_npz(tmp_path / "own.npz"), dataset(y), listed):
        assert (found.train_y.dtype, found.train_y.shape, found.classes) == (dtype, (100, *shape), classes)
        np.testing.assert_allclose(found.train_y, y.reshape(found.train_y.shape), rtol=1e-6)
        assert found.labelled == (dtype is np.int64)
    (tmp_path / "again.npz").write_bytes(to_npz(dataset(y)))
    assert read_npz(tmp_path / "again.npz").train_y.tobytes() == dataset(y).train_y.tobytes()


def test_numbers_reach_batches_as_they_are() -> None:
    y = np.stack([X[:, 0], -X[:, 0]], axis=1)
    prepared = prepare(config("mse"), dataset(y))
    seen = 0
    for rank, count in enumerate(prepared.batches):
        for index in range(count):
            x, target = prepared.batch(rank, index)
            assert (target.dtype, target.shape) == (torch.float32, (len(x), 2))
            assert torch.equal(target, torch.stack([x[:, 0], -x[:, 0]], dim=1))
            seen += len(x)
    assert seen == sum(prepared.samples) > 50
    assert prepared.model_spec(config("mse")).classes == 2
    assert prepared.sample_bytes == 4 * 3 + 4 * 2
    assert label_counts(prepared) == [[], []]


LABELS, NUMBERS = np.arange(100) % 3, np.linspace(0, 1, 100)


@pytest.mark.parametrize(
    ("loss", "y", "told"),
    [
        ("cross_entropy", NUMBERS, r"numbers of shape \(\) per sample, but loss cross_entropy takes labels.*use mse"),
        ("nll", NUMBERS, "takes labels"),
        ("mse", LABELS, "the targets are labels, but loss mse takes numbers"),
        ("bce", LABELS, "the targets are labels, but loss bce takes numbers"),
        ("bce", 2 * NUMBERS, "takes targets from 0 to 1"),
    ],
)
def test_targets_that_a_loss_cannot_take_are_refused_before_the_start(loss: str, y: np.ndarray, told: str) -> None:
    with pytest.raises(DataError, match=told):
        prepare(config(loss), dataset(y))


def test_numbers_cannot_be_sorted_into_label_shards() -> None:
    with pytest.raises(DataError, match=r"data\.partition is label_shards, but the targets of .* are no labels"):
        prepare(config("mse", partition="label_shards"), dataset(NUMBERS))


def test_a_newcomer_brings_as_many_numbers() -> None:
    prepared = prepare(config("mse"), dataset(np.stack([NUMBERS, NUMBERS], axis=1)))
    made = Preprocessing.of(prepared)
    guest = prepare_newcomer(config("mse"), made, dataset(np.stack([NUMBERS, 3 * NUMBERS], axis=1)))
    assert guest.batch(0, 0)[1].shape == (8, 2)
    with pytest.raises(DataError, match="has 1 numbers per target, and the run has 2"):
        prepare_newcomer(config("mse"), made, dataset(NUMBERS))
    with pytest.raises(DataError, match="the targets are labels, but loss mse takes numbers"):
        prepare_newcomer(config("mse"), made, dataset(LABELS))
