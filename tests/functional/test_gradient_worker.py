"""The gradient worker over an object store: exactness, warm caches, idempotence, and errors by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from moto import mock_aws
from torch.nn import functional

from contract import wire
from contract.batches import BatchRef, encode_batch
from contract.code import code_digest
from contract.codec import codec
from contract.env import WorkerEnv
from contract.errors import (
    CodeError,
    ConfigError,
    CorruptObject,
    ModelError,
    NonFiniteGradient,
    ObjectMissing,
    PeerlessError,
    StoreUnavailable,
    WeightsMismatch,
)
from contract.keys import Place
from contract.modelspec import ModelSpec
from contract.store import S3Store
from contract.tasks import GradientTask
from contract.tensors import encode_weights, flatten, read_buffers, unpack_buffers, weights_hash
from lambdas.gradient_worker import handler as entry
from lambdas.gradient_worker import warm
from lambdas.gradient_worker.handler import GradientWorker
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_round import PEER_BUCKET, PLACES, PLAIN, RUN_BUCKET, SPEC, GradientRound, prepare
from tests.fakes.store import MemoryStore

Gets = list[str]


@pytest.fixture
def gets() -> Gets:
    """Keys of the objects that were read, in order."""
    return []


@pytest.fixture
def store(gets: Gets) -> MemoryStore:
    return MemoryStore(before=lambda operation, place: gets.append(place.key) if "get" in operation else None)


@pytest.fixture
def make_worker(store: MemoryStore) -> Iterator[Callable[..., GradientWorker]]:
    path = list(sys.path)

    def make(code_dir: Path | None = None) -> GradientWorker:
        return GradientWorker(WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=code_dir), store, FakeClock())

    yield make
    sys.path[:] = path


@pytest.fixture
def worker(make_worker: Callable[..., GradientWorker]) -> GradientWorker:
    return make_worker()


def frame_of(store: MemoryStore, made: GradientRound, task: GradientTask) -> wire.Frame:
    return wire.decode(
        store.get(task.output),
        expected_elements=made.layout.elements,
        expected_buffers_bytes=made.layout.buffers_bytes,
    )


def torch_gradient(made: GradientRound, index: int) -> tuple[np.ndarray, float]:
    """Gradient (n,) and loss of one batch by nothing but torch; for models without dropout."""
    made.model.zero_grad()
    made.model.train()
    x, y = made.samples[index]
    loss = functional.cross_entropy(made.model(x), y)
    loss.backward()
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in made.model.parameters()])
    return flat.numpy().copy(), float(loss.detach())


def test_the_gradient_is_that_of_plain_torch_to_the_bit(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN)
    for index, task in enumerate(made.tasks):
        answer = worker(task.to_event())
        frame = frame_of(store, made, task)
        expected, loss = torch_gradient(made, index)
        assert np.abs(expected).max() > 1e-3
        assert codec("none").decode(frame.payload, made.layout.elements).tobytes() == expected.tobytes()
        assert answer.loss == frame.header.loss == loss


def test_the_frame_says_what_it_is(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store)
    task = made.tasks[1]
    answer = worker(task.to_event(retries=2))
    header = frame_of(store, made, task).header
    assert header.kind is wire.Kind.GRADIENT
    assert (header.run, header.round, header.base_round, header.rank, header.incarnation) == ("round", 3, 3, 0, 2)
    assert (header.base_weights, header.samples, header.codec) == (task.weights_sha256, 5, "none")
    assert (answer.batch, answer.key, answer.digest) == (1, task.output.key, header.digest)
    assert (answer.samples, answer.retries) == (5, 2)
    assert answer.peak_bytes > 50 * 2**20, "torch alone takes more"
    assert len(json.dumps(answer.to_dict())) < 1024


def test_buffers_come_home_as_the_forward_pass_left_them(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store)
    before = read_buffers(made.model, made.layout)
    worker(made.tasks[0].to_event())
    after = unpack_buffers(made.layout, frame_of(store, made, made.tasks[0]).buffers)
    counters = [name for name in after if name.endswith("num_batches_tracked")]
    assert counters
    assert all(after[name] == before[name] + 1 for name in counters)
    means = [name for name in after if name.endswith("running_mean")]
    assert all(not np.array_equal(after[name], before[name]) for name in means)


def test_the_same_task_writes_the_same_gradient_whatever_came_before(
    make_worker: Callable[..., GradientWorker], store: MemoryStore
) -> None:
    made = prepare(store)
    first = make_worker()

    def written() -> tuple[bytes, bytes]:
        frame = frame_of(store, made, made.tasks[2])
        return bytes(frame.payload), bytes(frame.buffers)

    first(made.tasks[2].to_event())
    expected = written()
    for task in made.tasks:
        first(task.to_event())
    assert written() == expected
    store.delete([made.tasks[2].output])
    make_worker()(made.tasks[2].to_event())
    assert written() == expected


def test_batches_round_and_dropout_differently(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, sizes=(8, 8))
    assert made.tasks[0].batch_seed != made.tasks[1].batch_seed
    worker(made.tasks[0].to_event())
    one = store.get(made.tasks[0].output)
    worker(replace(made.tasks[0], seed=12).to_event())
    assert store.get(made.tasks[0].output) != one


@pytest.mark.parametrize("name", ["fp16", "qsgd4"])
def test_a_codec_shrinks_the_frame(worker: GradientWorker, store: MemoryStore, name: str) -> None:
    made = prepare(store, PLAIN, codec=name)
    worker(made.tasks[0].to_event())
    frame = frame_of(store, made, made.tasks[0])
    expected, _ = torch_gradient(made, 0)
    found = codec(name).decode(frame.payload, made.layout.elements)
    assert frame.header.payload_bytes < 0.6 * 4 * made.layout.elements
    assert np.abs(found - expected).max() < 0.3 * np.abs(expected).max()


def test_weights_are_fetched_once_per_process_and_version(
    worker: GradientWorker, store: MemoryStore, gets: Gets
) -> None:
    old, new = prepare(store, seed=5), prepare(store, seed=6)
    for task in (*old.tasks, *new.tasks, *old.tasks):
        worker(task.to_event())
    fetched = [key for key in gets if "/weights/" in key]
    assert sorted(fetched) == sorted({old.tasks[0].weights.key, new.tasks[0].weights.key})
    assert len(gets) == 2 + 9


def test_beyond_the_cache_only_the_latest_weights_stay(
    worker: GradientWorker, store: MemoryStore, gets: Gets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "WEIGHTS_BYTES", 0)
    old, new = prepare(store, PLAIN, seed=5), prepare(store, PLAIN, seed=6)
    for made in (old, old, new, new, old):
        worker(made.tasks[0].to_event())
    assert sum("/weights/" in key for key in gets) == 3


def test_the_model_is_built_once_and_only_a_few_are_kept(
    worker: GradientWorker, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[ModelSpec] = []
    build = warm.build
    monkeypatch.setattr(warm, "build", lambda spec: built.append(spec) or build(spec))
    rounds = [prepare(store, replace(PLAIN, image_size=size)) for size in (8, 9, 10)]
    for made in (rounds[0], rounds[0], rounds[1], rounds[0], rounds[2], rounds[0], rounds[1]):
        worker(made.tasks[0].to_event())
    assert [spec.image_size for spec in built] == [8, 9, 10, 9]


def test_cold_starts_and_seconds_are_told(
    make_worker: Callable[..., GradientWorker], store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(store, PLAIN)
    clock = FakeClock()
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    store.before = lambda operation, place: clock.advance(0.5)  # three operations: weights, batch, gradient
    worker = GradientWorker(env, store, clock)
    answers = [worker(made.tasks[0].to_event()) for _ in range(2)]
    assert [answer.cold_start for answer in answers] == [True, False]
    assert [answer.seconds for answer in answers] == [1.5, 1.0]


def test_a_batch_may_be_a_whole_object(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN)
    worker(made.tasks[0].to_event())
    expected = bytes(frame_of(store, made, made.tasks[0]).payload)
    blob = encode_batch(*made.samples[0])
    place = PLACES.batch(0, 0)
    store.put(place, blob)
    whole = BatchRef(index=0, key=place.key, samples=8, sha256=hashlib.sha256(blob).hexdigest())
    worker(replace(made.tasks[0], batch=whole).to_event())
    assert frame_of(store, made, made.tasks[0]).payload == expected


def test_threads_are_those_of_the_task(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN, threads=2)
    try:
        worker(made.tasks[0].to_event())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


Spoil = Callable[[MemoryStore, GradientTask], GradientTask]


def _no_weights(store: MemoryStore, task: GradientTask) -> GradientTask:
    store.delete([task.weights])
    return task


def _other_weights(store: MemoryStore, task: GradientTask) -> GradientTask:
    """Good weights, but not those of that name."""
    other = prepare(store, PLAIN, seed=6)
    store.put(task.weights, store.get(other.tasks[0].weights))
    return task


def _damaged_weights(store: MemoryStore, task: GradientTask) -> GradientTask:
    blob = bytearray(store.get(task.weights))
    blob[-1] ^= 1
    store.put(task.weights, blob)
    return task


def _infinite_weights(store: MemoryStore, task: GradientTask) -> GradientTask:
    made = prepare(store, PLAIN)
    flat, buffers = flatten(made.model, made.layout), read_buffers(made.model, made.layout)
    flat *= np.float32(1e30)
    sha256 = weights_hash(made.layout, flat, buffers)
    frame = encode_weights(made.layout, flat, buffers, run="round", round=0, rank=0, incarnation=0)
    store.put(PLACES.weights(sha256), frame)
    return replace(task, weights_sha256=sha256)


def _damaged_batch(store: MemoryStore, task: GradientTask) -> GradientTask:
    blob = bytearray(store.get(task.batch_place))
    blob[task.batch.offset + (task.batch.length or 0) - 1] ^= 1
    store.put(task.batch_place, blob)
    return task


def _no_bucket(store: MemoryStore, task: GradientTask) -> GradientTask:
    def before(operation: str, place: Place) -> None:
        if operation == "put":
            raise StoreUnavailable("S3 at s3:443 failed to put: 503 SlowDown")

    store.before = before
    return task


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (_no_weights, ObjectMissing, "/weights/"),
        (_other_weights, WeightsMismatch, "were asked for"),
        (_damaged_weights, CorruptObject, ""),
        (_infinite_weights, NonFiniteGradient, "is nan|is inf"),
        (_damaged_batch, CorruptObject, "digest"),
        (_no_bucket, StoreUnavailable, "503 SlowDown"),
        (lambda s, t: replace(t, batch=replace(t.batch, samples=9)), CorruptObject, "8 samples, but .* says 9"),
        (lambda s, t: replace(t, batch=replace(t.batch, key="gone")), ObjectMissing, "gone"),
        (lambda s, t: replace(t, model=replace(PLAIN, name="resnet")), ModelError, "resnet"),
        (lambda s, t: replace(t, model=replace(PLAIN, classes=5)), WeightsMismatch, "but the model has"),
        (lambda s, t: replace(t, loss="hinge"), ConfigError, "hinge"),
        (lambda s, t: replace(t, codec="zip"), ConfigError, "zip"),
        (lambda s, t: replace(t, code_digest="a" * 64), CodeError, r"\(none\).*aaaaaaaaaaaa…"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_errors_keep_their_class_and_name_the_batch(
    worker: GradientWorker, store: MemoryStore, spoil: Spoil, error: type[PeerlessError], said: str
) -> None:
    task = spoil(store, prepare(store, PLAIN).tasks[0])
    with pytest.raises(error, match=rf"(?s)^batch 0 of rank 0 in round 3: .*{said}") as raised:
        worker(task.to_event())
    assert type(raised.value) is error
    assert (task.output.bucket, task.output.key) not in store.objects


def test_weights_that_failed_are_not_kept(worker: GradientWorker, store: MemoryStore) -> None:
    task = prepare(store, PLAIN).tasks[0]
    good = store.get(task.weights)
    _damaged_weights(store, task)
    with pytest.raises(CorruptObject):
        worker(task.to_event())
    store.put(task.weights, good)
    assert worker(task.to_event()).samples == 8


@pytest.mark.parametrize("event", [{}, {"common": 3}, {"common": {}}, {"common": {}, "batch": {}}, "text"])
def test_an_event_that_is_no_task_is_refused(worker: GradientWorker, event: Any) -> None:
    with pytest.raises(CorruptObject):
        worker(event)


OWN = """
from torch import nn

def tiny(classes: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size * image_size, classes))
"""


def test_the_users_own_code_is_importable_if_it_is_the_right_code(
    make_worker: Callable[..., GradientWorker], store: MemoryStore, tmp_path: Path
) -> None:
    (tmp_path / "own_models_for_workers.py").write_text(OWN)
    sys.path.insert(0, str(tmp_path))
    try:
        own = prepare(store, replace(PLAIN, name="own_models_for_workers:tiny"), code_digest=code_digest(tmp_path))
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["own_models_for_workers"]
    worker = make_worker(code_dir=tmp_path)
    with pytest.raises(CodeError, match=r"start a new run"):
        worker(prepare(store, PLAIN).tasks[0].to_event())
    for task in own.tasks:
        assert worker(task.to_event()).samples == task.batch.samples
    assert sys.path.count(str(tmp_path)) == 1


def test_the_entry_point_reads_its_environment_and_keeps_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "_worker", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("PEERLESS_CODE_DIR", raising=False)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        for bucket in (RUN_BUCKET, PEER_BUCKET):
            client.create_bucket(Bucket=bucket)
        store = S3Store(region="us-east-1")
        made = prepare(store, SPEC)
        answers = [entry.handler(json.loads(json.dumps(task.to_event())), None) for task in made.tasks]
        for task, answer in zip(made.tasks, answers, strict=True):
            header = wire.decode_header(store.get(task.output))
            assert (header.digest, header.samples) == (answer["digest"], answer["samples"])
    assert [answer["cold_start"] for answer in answers] == [True, False, False]


def test_importing_the_handler_makes_no_client_and_reads_no_environment() -> None:
    script = (
        "import boto3, os\n"
        "def refuse(*a, **k): raise AssertionError('a client at import')\n"
        "boto3.client = boto3.resource = boto3.session.Session.client = refuse\n"
        "import lambdas.gradient_worker.handler\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env={"PATH": ""}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
