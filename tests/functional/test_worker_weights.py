"""The weights in a worker: once in memory, exact whoever used the model before, and whatever the model does to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from contract import wire
from contract.clock import SystemClock
from contract.env import WorkerEnv
from contract.errors import ModelError
from contract.gradients import GradientMean, ParametersChanged
from contract.modelspec import ModelSpec
from contract.tasks import GradientTask
from contract.tensors import encode_weights, flatten, read_buffers, weights_hash
from lambdas.gradient_worker import warm
from lambdas.gradient_worker.handler import GradientWorker
from tests.fakes.gradient_round import PLACES, PLAIN, SPEC, GradientRound, prepare
from tests.fakes.store import MemoryStore
from tests.fakes.worker_memory import Files

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 300.0


class Clamping(nn.Module):
    """Bounds its own parameters in its forward pass, past autograd, as some models do; moves its BatchNorm as well."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(image_size**2)
        self.dense = nn.Linear(image_size**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        self.dense.weight.data.clamp_(-0.05, 0.05)
        return self.dense(self.norm(x.flatten(1)))


class Refusing(Clamping):
    """Takes no batch of three."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits = super().forward(x)
        if len(x) == 3:
            raise ValueError("three are too few")
        return logits


class Mirroring(nn.Module):
    """Mirrors its parameters: each keeps its values, in other places."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(image_size**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        self.dense.weight.data = self.dense.weight.data.flip(0, 1).contiguous()
        return self.dense(x.flatten(1))


CLAMPING = replace(PLAIN, name=f"{__name__}:Clamping")
MIRRORING = replace(PLAIN, name=f"{__name__}:Mirroring")
REFUSING = replace(PLAIN, name=f"{__name__}:Refusing")


def start(store: MemoryStore) -> GradientWorker:
    return GradientWorker(WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None), store, SystemClock())


def computed(worker: GradientWorker, store: MemoryStore, task: GradientTask) -> tuple[bytes, bytes]:
    """Payload and buffers."""
    worker(task.to_event())
    frame = wire.decode(store.get(task.output), expected_elements=None, expected_buffers_bytes=None)
    return bytes(frame.payload), bytes(frame.buffers)


def by_copies(made: GradientRound, task: GradientTask) -> bytes:
    """The gradient of the task's batches, each from a fresh copy of the weights."""
    flat, buffers = flatten(made.model, made.layout), read_buffers(made.model, made.layout)
    mean = GradientMean(made.model, made.layout, task.loss, flat, buffers, sum(batch.samples for batch in task.batches))
    for batch in task.batches:
        x, y = made.samples[batch.index]
        mean.add(x, y, seed=task.seed_of(batch))
    return mean.result().gradient.tobytes()


def read_in_turn(rounds: Sequence[GradientRound]) -> list[GradientTask]:
    """Every task of every round, one round after the other for each batch, as peers without rounds in common ask."""
    return [task for tasks in zip(*(made.tasks for made in rounds), strict=True) for task in tasks]


@pytest.mark.parametrize("kept", [0, warm.WEIGHTS_BYTES], ids=["latest_only", "all"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["plain", "channels_last"])
def test_peers_with_different_weights_get_what_workers_of_their_own_would_give(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool, kept: int
) -> None:
    monkeypatch.setattr(warm, "WEIGHTS_BYTES", kept)
    store = MemoryStore()
    rounds = [prepare(store, SPEC, seed=seed, channels_last=channels_last) for seed in (5, 6, 7)]
    shared = start(store)
    found = [computed(shared, store, task) for task in read_in_turn(rounds)]
    expected = [computed(start(store), store, task) for task in read_in_turn(rounds)]
    assert found == expected
    assert len({payload for payload, _ in found}) == 9


@pytest.mark.parametrize("more", [False, True], ids=["one_batch", "several"])
def test_a_model_that_changes_its_parameters_starts_every_batch_from_the_weights(more: bool) -> None:
    store = MemoryStore()
    made = prepare(store, CLAMPING)
    assert max(abs(flatten(made.model, made.layout))) > 0.1, "clamping changes something"
    tasks = [replace(made.tasks[0], more=made.batches[1:])] if more else list(made.tasks)
    expected = [by_copies(prepare(MemoryStore(), CLAMPING), task) for task in tasks]
    worker = start(store)
    for _ in range(2):
        assert [computed(worker, store, task)[0] for task in tasks] == expected


@pytest.mark.parametrize("spec", [CLAMPING, MIRRORING])
def test_a_mean_over_a_models_own_parameters_tells_when_they_change(spec: ModelSpec) -> None:
    made = prepare(MemoryStore(), spec)
    mean = GradientMean(made.model, made.layout, "cross_entropy", None, read_buffers(made.model, made.layout), 8)
    with pytest.raises(ParametersChanged):
        mean.add(*made.samples[0], seed=1)


def test_the_weights_are_whole_again_after_an_error_in_the_middle() -> None:
    store = MemoryStore()
    made = prepare(store, REFUSING)
    expected = by_copies(prepare(MemoryStore(), REFUSING), made.tasks[0])
    worker = start(store)
    for _ in range(2):
        with pytest.raises(ModelError, match="three are too few"):
            worker(made.tasks[2].to_event())
        assert computed(worker, store, made.tasks[0])[0] == expected


def test_the_model_is_the_only_copy_of_its_weights() -> None:
    store = MemoryStore()
    made = prepare(store, SPEC)
    cache = warm.Warm(store, None)
    kept = cache.model(SPEC, channels_last=False)
    weights = cache.weights(made.tasks[0], kept)
    assert weights.flat is None
    assert np.array_equal(flatten(kept.model, kept.layout), flatten(made.model, made.layout))
    storages = {parameter.untyped_storage().data_ptr() for parameter in kept.model.parameters()}
    assert len(storages) == len(kept.layout.parameters), "as torch lays them, which its kernels' rounding depends on"


def test_memory_of_a_worker_with_a_model_of_100_mb(tmp_path: Path) -> None:
    spec = ModelSpec(name="tests.fakes.worker_memory:layers", classes=4, channels=1, image_size=8)
    made = prepare(Files(tmp_path), spec)  # type: ignore[arg-type]
    size = 4 * made.layout.elements
    assert size > 100e6
    events = [task.to_event() for task in made.tasks]
    (tmp_path / "events.json").write_text(json.dumps(events), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.worker_memory", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},  # what is freed goes back at once, and is not counted
        stdout=subprocess.PIPE,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    found = json.loads(done.stdout)
    assert 0.95 < found["held"] / size < 1.3, "the weights, and nothing of their size beside them"
    assert found["peak"] / size < 3.3, "weights, gradient and one frame"


class Frozen(nn.Module):
    """A large layer that stays as it is, and a small one behind it, with BatchNorm."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.body = nn.Linear(image_size**2, 4_000).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4_000)
        self.head = nn.Linear(4_000, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.head(self.norm(self.body(x.flatten(1))))


def next_round(store: MemoryStore, made: GradientRound, body: float = 0.0) -> list[GradientTask]:
    """Tasks at weights that differ from the round's: the head's by training, the body's by `body`."""
    flat, buffers = flatten(made.model, made.layout), read_buffers(made.model, made.layout)
    for entry, view in made.layout.views(flat):
        view += body if entry.name.startswith("body") else 0.25
    sha256 = weights_hash(made.layout, flat, buffers)
    store.put(
        PLACES.weights(sha256), encode_weights(made.layout, flat, buffers, run="round", round=1, rank=0, incarnation=0)
    )
    return [replace(task, weights_sha256=sha256) for task in made.tasks]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "shared_folder"])
def test_of_a_mostly_frozen_model_a_warm_worker_reads_what_training_changed(tmp_path: Path, together: bool) -> None:
    store = MemoryStore()
    made = prepare(store, replace(PLAIN, name=f"{__name__}:Frozen"))
    later = next_round(store, made)
    expected = [computed(start(store), store, task) for task in later]
    shared = tmp_path if together else None
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None, shared_dir=shared)
    workers = [GradientWorker(env, store, SystemClock()) for _ in range(2)]
    for worker in workers:
        worker(made.tasks[0].to_event())
    read: list[str] = []
    store.before = lambda verb, place: read.append(verb) if place == later[0].weights else None
    for worker in workers:
        answer = worker(later[0].to_event())
        assert answer.weights_fetched == (worker is workers[0] or not together)
    assert read == ["get_range"] * (1 if together else 2)
    assert [computed(workers[0], store, task) for task in later] == expected


def test_weights_whose_frozen_part_is_another_are_read_whole() -> None:
    store = MemoryStore()
    made = prepare(store, replace(PLAIN, name=f"{__name__}:Frozen"))
    later = next_round(store, made, body=0.5)
    expected = computed(start(store), store, later[0])
    worker = start(store)
    worker(made.tasks[0].to_event())
    assert computed(worker, store, later[0]) == expected
