"""What a run would do, found out without starting anything: data fetched and divided, model built, sizes known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import contract.config
from contract.codec import codec
from contract.runspec import rounds_per_epoch
from peerless.data import Prepared
from peerless.launch import shipping
from peerless.launch.workload import Workload, resolve_mode


def preview(path: Path, overrides: Sequence[str], log: Callable[[str], None]) -> dict[str, Any]:
    """Figures of the run that `path` configures, JSON-ready. Raises UserError as the run itself would."""
    config = shipping.resolve_paths(contract.config.from_toml(path, overrides), path.resolve().parent)
    shipping.check(config.code)
    with shipping.importable(config.code):
        work = Workload.of(config, log)
    prepared = work.prepared
    resolved = resolve_mode(config, prepared.batches)
    rounds = rounds_per_epoch(prepared.batches, config.batches_per_round)
    sample = np.random.default_rng(config.seed).standard_normal(work.layout.elements, dtype=np.float32)
    return {
        "data": config.data.source,
        "provenance": prepared.dataset.provenance,
        "model": config.model,
        "parameters": work.layout.elements,
        "weights_bytes": work.layout.elements * 4 + work.layout.buffers_bytes,
        "frame_bytes": len(codec(config.exchange.codec).encode(sample, config.seed)) + work.layout.buffers_bytes,
        "classes": work.spec.classes,
        "validation_samples": len(prepared.validation),
        "test_samples": len(prepared.test),
        "rounds_per_epoch": rounds,
        "rounds_limit": rounds * config.epochs,
        "state_machine": resolved.compute.state_machine if config.compute.service == "lambda" else None,
        "peers": [
            {"rank": rank, "samples": samples, "batches": batches, "labels": labels}
            for rank, (samples, batches, labels) in enumerate(
                zip(prepared.samples, prepared.batches, label_counts(prepared), strict=True)
            )
        ],
    }


def label_counts(prepared: Prepared) -> list[list[int]]:
    """Training samples of each label, by rank; empty where targets are numbers."""
    labels = prepared.dataset.train_y
    if not prepared.dataset.labelled:
        return [[] for _ in prepared.partitions]
    return [np.bincount(labels[part], minlength=prepared.classes).tolist() for part in prepared.partitions]
