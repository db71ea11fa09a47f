"""Synchronous runs over an object store and a broker in memory, and what they leave there.

The weights of rank r are pulled towards the point r (QuadraticGradients), so every expectation is a formula: with SGD
without momentum and learning rate a, W' = W - a (W - m), where m is the mean of the ranks weighted by samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from contract.config import RunConfig
from contract.records import Commit
from contract.tensors import decode_weights
from tests.fakes.peers import Cast

LR = 0.25


def configuration(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "peers": 3,
        "epochs": 3,
        "batch_size": 8,
        "batches_per_round": 1,
        "optimizer": {"lr": LR, "momentum": 0.0},
        "exchange": {
            "codec": "none",
            "poll_seconds": 1.0,
            "round_timeout_seconds": 30.0,
            "start_timeout_seconds": 20.0,
        },
        "compute": {"service": "local"},
    }
    return RunConfig.model_validate({**values, **changes})


def exchange(**changes: Any) -> dict[str, Any]:
    return {**configuration().exchange.model_dump(), **changes}


def play(config: RunConfig | None = None, samples: tuple[int, ...] = (24, 24, 12), **options: Any) -> Cast:
    cast = Cast(config or configuration(), samples, **options)
    cast.play()
    cast.close()
    return cast


def weights(cast: Cast, sha256: str) -> np.ndarray:
    layout = cast.peers[0].actions.layout
    return decode_weights(layout, cast.store.get(cast.spec.places.weights(sha256)), sha256)[0]


def commits(cast: Cast) -> list[Commit]:
    return [Commit.from_json(cast.store.get(cast.spec.places.commit(t))) for t in range(len(cast.keys("commits/")))]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
