"""The smallest whole run: a model of a few weights, data to learn from, and all that S3 holds at the start."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from contract import models
from contract.batches import BatchRef, Manifest, encode_batch
from contract.config import RunConfig
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.store import ObjectStore
from contract.tensors import Layout, encode_weights, flatten, read_buffers, weights_hash

CLASSES, SIZE = 3, 4


def build_model(classes: int, channels: int, image_size: int, norm: bool = False, hidden: int = 0) -> torch.nn.Module:
    """A linear classifier, behind BatchNorm where `norm` is true, and behind a layer of `hidden` units where there are
    some."""
    layers: list[torch.nn.Module] = [torch.nn.BatchNorm2d(channels)] if norm else []
    layers += [torch.nn.Flatten()]
    if hidden:
        layers += [torch.nn.Linear(channels * image_size**2, hidden), torch.nn.ReLU()]
    layers += [torch.nn.Linear(hidden or channels * image_size**2, classes)]
    return torch.nn.Sequential(*layers)


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images x (count, 1, SIZE, SIZE) whose brightest third tells the class y (count,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    x[torch.arange(count), 0, y] += 1.5
    return x, y


def prepare_run(
    store: ObjectStore,
    config: RunConfig,
    sample_counts: Sequence[int],
    places: Places,
    norm: bool = False,
    hidden: int = 0,
) -> RunSpec:
    """Put batches, manifests, validation set, initial weights and run.json into the store."""
    options = {"norm": norm, "hidden": hidden}
    model_spec = ModelSpec(
        name="tests.fakes.small_run:build_model", classes=CLASSES, channels=1, image_size=SIZE, options=options
    )
    model = models.initial_weights(model_spec, config.seed)
    layout = Layout.of(model)
    flat, buffers = flatten(model, layout), read_buffers(model, layout)
    sha256 = weights_hash(layout, flat, buffers)
    weights = encode_weights(layout, flat, buffers, run=places.run, round=0, rank=0, incarnation=0)
    store.put(places.weights(sha256), weights)
    manifests = [put_batches(store, places, rank, n, config.batch_size) for rank, n in enumerate(sample_counts)]
    batches = tuple(len(manifest.batches) for manifest in manifests)
    validation = encode_batch(*samples(64, seed=99))
    store.put(places.validation(), validation)
    spec = RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=model_spec,
        samples=tuple(sample_counts),
        batches=batches,
        rounds_per_epoch=rounds_per_epoch(batches, config.batches_per_round),
        initial_weights=sha256,
        validation=ValidationSet(sha256=hashlib.sha256(validation).hexdigest(), samples=64),
        state_machines=("",) * config.peers,
    )
    store.put(places.spec(), spec.to_json())
    return spec


def put_batches(store: ObjectStore, places: Places, rank: int, count: int, size: int) -> Manifest:
    """`count` samples in batches of `size`, and the manifest that lists them."""
    x, y = samples(count, seed=rank)
    refs = []
    for index, start in enumerate(range(0, count, size)):
        blob = encode_batch(x[start : start + size], y[start : start + size])
        place = places.batch(rank, index)
        store.put(place, blob)
        digest = hashlib.sha256(blob).hexdigest()
        refs.append(BatchRef(index=index, key=place.key, samples=min(size, count - start), sha256=digest))
    manifest = Manifest(rank=rank, batches=tuple(refs))
    store.put(places.manifest(rank), manifest.to_json())
    return manifest
