"""The FedKeeper paper's setting: federated averaging over 100 clients with two label shards each, to 95% on MNIST.

Chadha et al. 2020, sections 4.1 to 4.3: all 60,000 training images, sorted by label and cut into 200 shards of 300, two
for each client; the CNN of 582,026 parameters; batches of ten, five local epochs, Adam at 1e-3. The paper needs 13
rounds. Clients are peers in this process, one after the other, and updates are averaged as float32, as there.

A round takes minutes. The weights are kept after each (`benchmarks.in_process.state_folder`), so a benchmark that was
stopped goes on from its last round, to the same bits; it ends at the target.
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.in_process import Batch, InProcess, in_batches, state_folder
from benchmarks.reporting import Figure
from contract import models
from contract.config import RunConfig
from contract.modelspec import ModelSpec
from contract.tensors import Layout
from peerless import data
from peerless.data.partition import label_shards
from peerless.data.preprocess import fit

TARGET, ROUNDS = 0.95, 40
CLIENTS, SHARDS = 100, 2
PARAMETERS = {"fedkeeper_cnn": 582_026, "mlp": 397_510}


def configuration(clients: int = CLIENTS, seed: int = 1) -> RunConfig:
    """The paper's settings."""
    return RunConfig.model_validate(
        {
            "seed": seed,
            "peers": clients,
            "model": "fedkeeper_cnn",
            "batch_size": 10,
            "batches_per_round": 0,
            "epochs": ROUNDS,
            "algorithm": {"name": "local_sgd", "local_epochs": 5},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "scheduler": {"name": "constant"},
            "compute": {"service": "local"},
            "exchange": {"codec": "none"},
        }
    )


def run() -> list[Figure]:
    """Go on until the target, and give the figures."""
    config = configuration()
    digits = data.load(config.data, log=_tell)
    accuracies = train(config, digits, state_folder("fedkeeper"), TARGET, ROUNDS)
    reached = accuracies[-1] >= TARGET
    figures = [
        Figure(name=f"parameters_{name}", value=_parameters(name), unit=f"of {count:,}", better="neither", must=count)
        for name, count in PARAMETERS.items()
    ]
    return [
        *figures,
        Figure(name="clients", value=config.peers, unit="clients", better="neither"),
        Figure(name="accuracy", value=accuracies[-1], unit="share", better="higher", must=TARGET),
        Figure(
            name="rounds" if reached else "rounds_without_reaching_it",
            value=len(accuracies),
            unit=f"rounds to {TARGET:.0%}",
            better="lower",
            must=13,
            aim=8,
        ),
    ]


def train(config: RunConfig, digits: data.Dataset, folder: Path, target: float, rounds: int) -> list[float]:
    """Test accuracy after each round, from round 0 on, until it reaches `target` or the rounds are over."""
    if digits.test_x is None or digits.test_y is None:
        raise ValueError(f"{digits.provenance} has no test set")
    torch.set_num_threads(config.compute.threads)
    everything = np.arange(len(digits.train_y))
    transform = fit(digits.train_x, everything, config.data.preprocess, config.data.image_size)
    sizes = [len(everything) // config.peers] * config.peers
    parts = label_shards(everything[: sum(sizes)], digits.train_y[: sum(sizes)], sizes, SHARDS, config.seed)
    clients: list[list[Batch]] = [
        in_batches(transform.apply(digits.train_x[part]), digits.train_y[part], config.batch_size) for part in parts
    ]
    peers = InProcess(
        config,
        ModelSpec(
            name=config.model,
            classes=digits.classes,
            channels=1,
            image_size=digits.train_x.shape[-1],
            options=dict(config.model_options),
        ),
        sizes,
        [len(batches) for batches in clients],
        lambda rank, index: clients[rank][index],
    )
    test = in_batches(transform.apply(digits.test_x), digits.test_y)
    place = folder / f"{hashlib.sha256(config.to_json().encode()).hexdigest()[:16]}.npz"
    found = _go_on(place, peers)
    while len(found) < rounds and (not found or found[-1] < target):
        peers.round(len(found))
        found.append(peers.accuracy(test))
        _keep(place, peers, found)
        _tell(f"round {len(found)}: {found[-1]:.4f}")
    return found


def _go_on(place: Path, peers: InProcess) -> list[float]:
    """Take up the weights of the last round, if there are any; the accuracies until then.

    The average of weights is all that a round leaves: workers begin with a fresh optimizer each.
    """
    if not place.exists():
        return []
    with np.load(place) as kept:
        peers.update.adopt(kept["flat"], {})
        found = [float(share) for share in kept["accuracy_by_round"]]
    _tell(f"going on after round {len(found)}, where accuracy was {found[-1]:.4f}")
    return found


def _keep(place: Path, peers: InProcess, accuracies: list[float]) -> None:
    """In one piece or not at all."""
    file = io.BytesIO()
    np.savez(file, flat=peers.update.flat, accuracy_by_round=np.array(accuracies))
    place.with_suffix(".new").write_bytes(file.getvalue())
    place.with_suffix(".new").replace(place)


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return Layout.of(models.build(ModelSpec(name=name, classes=10, channels=1, image_size=28))).elements


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
