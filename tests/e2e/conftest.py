"""A folder with data, a configuration and running servers, in which whole runs are started as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.local.cloud import LocalCloud
from peerless.launch.run_folder import LOCAL_FOLDER

ROOT = Path(__file__).resolve().parents[2]
#: Of runs that something befalls; an epoch is three rounds.
EPOCHS = 8
CONFIG = """
name = "e2e"
peers = 3
epochs = 2
batch_size = 40
batches_per_round = 2
model = "mlp"

[data]
source = "npz"
path = "data.npz"
validation_samples = 100

[optimizer]
lr = 0.05
"""


def blobs(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of 8x8 images: a bright square in one of three places, with noise. uint8 and int64."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, samples)
    x = draw.integers(0, 90, (samples, 8, 8))
    for label, (row, column) in enumerate(((1, 1), (1, 5), (5, 3))):
        x[y == label, row : row + 2, column : column + 2] += 120
    return x.astype(np.uint8), y.astype(np.int64)


@dataclass
class Workplace:
    """A user's folder."""

    path: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "peerless", *arguments]

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PEERLESS_BROKER_URL"}
        sources = os.pathsep.join(map(str, (ROOT, ROOT / "vendor/qsgd_compress/src")))
        return {**kept, "PYTHONPATH": sources, **extra}

    def peerless(self, *arguments: str, timeout: float = 100, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run the command in this folder."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def train(self, *arguments: str, run_dir: str) -> dict[str, Any]:
        """A run that must go well; gives its summary."""
        done = self.peerless("train", "config.toml", "--local", "--json", "--run-dir", run_dir, *arguments)
        assert done.returncode == 0, done.stderr
        summary = json.loads((self.path / run_dir / "summary.json").read_text())
        assert json.loads(done.stdout) == summary
        return summary


def make_workplace(path: Path) -> Workplace:
    """Data and configuration in an empty folder."""
    x_train, y_train = blobs(700, 1)
    x_test, y_test = blobs(200, 2)
    np.savez(path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (path / "config.toml").write_text(CONFIG)
    return Workplace(path)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A folder whose servers run already, as after `peerless local up`."""
    path = tmp_path_factory.mktemp("workplace")
    LocalCloud.up(path / LOCAL_FOLDER)
    try:
        yield make_workplace(path)
    finally:
        LocalCloud.down(path / LOCAL_FOLDER)


@pytest.fixture(scope="session")
def undisturbed(workplace: Workplace) -> dict[str, Any]:
    """Summary of a run of EPOCHS epochs that nothing befell; every workplace has the same data and seed."""
    return workplace.train("--set", f"epochs={EPOCHS}", run_dir="undisturbed")


@pytest.fixture
def lonely_workplace(tmp_path: Path) -> Workplace:
    """A folder without servers: a run brings its own."""
    return make_workplace(tmp_path)
