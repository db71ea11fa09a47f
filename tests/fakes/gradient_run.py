"""A small prepared run for tests of gradients: spec, weights, batches in a store, and what plain torch makes of it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.batches import BatchRef, Manifest, encode_batch
from contract.config import RunConfig
from contract.keys import Places
from contract.models import initial_weights
from contract.modelspec import ModelSpec
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.store import ObjectStore
from contract.tasks import gradient_seed
from contract.tensors import Buffers, Layout, encode_weights, flatten, read_buffers, weights_hash

RANK, ROUND, INCARNATION, SEED = 0, 3, 0, 2026
#: Samples per batch: unequal on purpose, so that an unweighted mean is wrong.
COUNTS = (8, 5, 3)


@dataclass(frozen=True)
class GradientRun:
    """One peer's round, ready to be computed."""

    spec: RunSpec
    model: nn.Module
    layout: Layout
    flat: NDArray[np.float32]
    buffers: Buffers
    sha256: str
    batches: tuple[BatchRef, ...]
    data: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def arguments(self, batches: Sequence[BatchRef] | None = None) -> dict[str, Any]:
        """Keyword arguments of `GradientService.compute`."""
        return {
            "round": ROUND,
            "incarnation": INCARNATION,
            "weights_sha256": self.sha256,
            "flat": self.flat,
            "buffers": self.buffers,
            "batches": self.batches if batches is None else batches,
            "seed": SEED,
        }

    def torch_gradient(self) -> tuple[NDArray[np.float64], Buffers, float]:
        """Gradient (n,), buffers and loss by plain torch: forward and backward per batch, all from the same weights."""
        total = sum(batch.samples for batch in self.batches)
        gradient = np.zeros(self.layout.elements)
        loss_sum = 0.0
        floats: dict[str, Any] = dict.fromkeys(self.buffers, 0.0)
        for ref, (x, y) in zip(self.batches, self.data, strict=True):
            model = copy.deepcopy(self.model)
            model.train()
            torch.manual_seed(gradient_seed(SEED, ref.index))
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            parts = [
                (torch.zeros_like(p) if p.grad is None else p.grad).detach().numpy().ravel() for p in model.parameters()
            ]
            gradient += len(y) / total * np.concatenate(parts).astype(np.float64)
            loss_sum += len(y) / total * float(loss.detach())
            for name, buffer in model.named_buffers():
                floats[name] = floats[name] + len(y) / total * buffer.numpy().astype(np.float64)
        buffers = {
            name: floats[name].astype(base.dtype) if np.issubdtype(base.dtype, np.floating) else np.asarray(base + 1)
            for name, base in self.buffers.items()
        }
        return gradient, buffers, loss_sum


def prepare(
    store: ObjectStore,
    model: str,
    *,
    machine: str = "",
    buckets: tuple[str, str] = ("run-bucket", "peer-bucket"),
    counts: Sequence[int] = COUNTS,
    **compute: Any,
) -> GradientRun:
    """Put a run with one peer into `store`; `compute` are settings of [compute]. `buckets`: the run's, the peer's;
    `counts`: samples per batch."""
    torch.set_num_threads(1)
    settings = {"service": "lambda" if machine else "local", "state_machine": "inline_map", **compute}
    config = RunConfig.model_validate(
        {"peers": 1, "model": model, "batch_size": max(counts), "batches_per_round": 0, "compute": settings}
    )
    spec_model = ModelSpec(name=model, classes=10, channels=1, image_size=28)
    places = Places(run="one-round", run_bucket=buckets[0], peer_buckets=(buckets[1],), region="us-east-1")
    data, refs = [], []
    generator = torch.Generator().manual_seed(7)
    for index, count in enumerate(counts):
        x = torch.randn(count, 1, 28, 28, generator=generator)
        y = torch.randint(10, (count,), generator=generator)
        blob = encode_batch(x, y)
        place = places.batch(RANK, index)
        store.put(place, blob)
        data.append((x, y))
        refs.append(BatchRef(index=index, key=place.key, samples=count, sha256=hashlib.sha256(blob).hexdigest()))
    manifest = Manifest(rank=RANK, batches=tuple(refs))
    store.put(places.manifest(RANK), manifest.to_json())
    net = initial_weights(spec_model, seed=1)
    layout = Layout.of(net)
    flat, buffers = flatten(net, layout), read_buffers(net, layout)
    sha256 = weights_hash(layout, flat, buffers)
    blob = encode_weights(layout, flat, buffers, run=places.run, round=ROUND, rank=RANK, incarnation=INCARNATION)
    store.put(places.weights(sha256), blob)
    spec = RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=spec_model,
        samples=(sum(counts),),
        batches=(len(counts),),
        rounds_per_epoch=rounds_per_epoch((len(counts),), 0),
        initial_weights=sha256,
        validation=ValidationSet(sha256="0" * 64, samples=1),
        state_machines=(machine,),
    )
    return GradientRun(spec, net, layout, flat, buffers, sha256, tuple(refs), tuple(data))
