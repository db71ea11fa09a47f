"""Whole runs whose targets are no classes: regression, and several labels at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import Workplace

#: A linear map that a run must find: three numbers from eight.
WEIGHTS = np.random.default_rng(4).normal(size=(8, 3))
OWN_LOSS = """
def absolute(outputs, targets):
    return (outputs - targets).abs().mean()
"""


def data(kind: str, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 8) float32; y (N, 3) float32, or whether each of them is positive."""
    x = np.random.default_rng(seed).normal(size=(samples, 8)).astype(np.float32)
    y = (x @ WEIGHTS).astype(np.float32)
    return x, (y > 0) if kind == "labels" else y


def train(workplace: Workplace, kind: str, loss: str, *arguments: str) -> dict[str, Any]:
    x_train, y_train = data(kind, 700, 1)
    x_test, y_test = data(kind, 200, 2)
    np.savez(workplace.path / f"{kind}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    settings = {"loss": loss, "data.path": f"{kind}.npz", "optimizer.lr": "0.1", "peers": "2", "epochs": "3"}
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return workplace.train(*given, "--set", "compute.batches_per_worker=2", *arguments, run_dir=loss.replace(":", "-"))


def validations(workplace: Workplace, run_dir: str) -> list[tuple[float, float | None]]:
    lines = (workplace.path / run_dir / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [(e["validation_loss"], e["validation_accuracy"]) for e in events if e["event"] == "validated"]


@pytest.mark.slow  # tests/unit/test_targets.py has the loss, tests/functional/test_target_gradients.py the workers
def test_regression_through_workers(workplace: Workplace) -> None:
    summary = train(workplace, "numbers", "mse")
    assert len(set(summary["weights_sha256"].values())) == 1
    _, y_test = data("numbers", 200, 2)
    assert summary["test_loss"] < 0.5 * float(np.square(y_test).mean()), "half of what zeros everywhere would leave"
    assert summary["test_accuracy"] is None
    found = validations(workplace, "mse")
    assert found[-1][0] < found[0][0]
    assert {accuracy for _, accuracy in found} == {None}


@pytest.mark.slow  # likewise
def test_several_labels_through_workers(workplace: Workplace) -> None:
    summary = train(workplace, "labels", "bce")
    assert summary["test_accuracy"] > 0.85
    assert validations(workplace, "bce")[-1][1] > 0.85


@pytest.mark.slow  # likewise
def test_an_own_loss_travels_to_workers(workplace: Workplace) -> None:
    (workplace.path / "own_loss.py").write_text(OWN_LOSS)
    summary = train(workplace, "numbers", "own_loss:absolute", "--set", 'code.include=["own_loss.py"]')
    _, y_test = data("numbers", 200, 2)
    assert summary["test_loss"] < 0.5 * float(np.abs(y_test).mean()), "half of what zeros everywhere would leave"
