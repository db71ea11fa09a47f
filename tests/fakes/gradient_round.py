"""One peer's round in an object store: weights, batches as ranges of one object, and the tasks of its workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from contract.batches import BatchRef, encode_batch
from contract.keys import Place, Places
from contract.models import initial_weights
from contract.modelspec import ModelSpec
from contract.store import ObjectStore
from contract.tasks import GradientTask
from contract.tensors import Layout, encode_weights, flatten, read_buffers, weights_hash

RUN_BUCKET, PEER_BUCKET = "round-run", "round-peer-0"
PLACES = Places(run="round", run_bucket=RUN_BUCKET, peer_buckets=(PEER_BUCKET,), region="us-east-1")
#: Has BatchNorm, hence buffers, and dropout, hence a use for the seed.
SPEC = ModelSpec(name="mobilenet_v3_small", classes=4, channels=3, image_size=32)
#: Has neither.
PLAIN = ModelSpec(name="mlp", classes=4, channels=1, image_size=8)


@dataclass(frozen=True)
class GradientRound:
    """What lies in the store, and the model (in the state of its weights) from which it comes."""

    model: nn.Module
    layout: Layout
    samples: tuple[tuple[Tensor, Tensor], ...]
    tasks: tuple[GradientTask, ...]

    @property
    def batches(self) -> tuple[BatchRef, ...]:
        return tuple(task.batch for task in self.tasks)


def prepare(
    store: ObjectStore, spec: ModelSpec = SPEC, sizes: Sequence[int] = (8, 5, 3), seed: int = 5, **changes: Any
) -> GradientRound:
    """Put a round into `store`; `changes` are fields of its tasks."""
    torch.set_num_threads(1)
    model = initial_weights(spec, seed)
    layout = Layout.of(model)
    flat, buffers = flatten(model, layout), read_buffers(model, layout)
    sha256 = weights_hash(layout, flat, buffers)
    frame = encode_weights(layout, flat, buffers, run="round", round=0, rank=0, incarnation=0)
    store.put(PLACES.weights(sha256), frame)

    generator = torch.Generator().manual_seed(seed)
    shape = (spec.channels, spec.image_size, spec.image_size)
    samples = tuple(
        (torch.randn(size, *shape, generator=generator), torch.randint(0, spec.classes, (size,), generator=generator))
        for size in sizes
    )
    place, refs, whole = Place(PEER_BUCKET, f"runs/round/peers/0000/all-{sha256}"), [], b""
    for index, (x, y) in enumerate(samples):
        blob = encode_batch(x, y)
        digest = hashlib.sha256(blob).hexdigest()
        refs.append(
            BatchRef(index=index, key=place.key, samples=len(y), sha256=digest, offset=len(whole), length=len(blob))
        )
        whole += blob
    store.put(place, whole)

    first = GradientTask(
        places=PLACES,
        rank=0,
        round=3,
        incarnation=2,
        model=spec,
        weights_sha256=sha256,
        loss="cross_entropy",
        codec="none",
        seed=11,
        threads=1,
        batch=refs[0],
    )
    tasks = tuple(replace(first, batch=ref, **changes) for ref in refs)
    return GradientRound(model, layout, samples, tasks)
