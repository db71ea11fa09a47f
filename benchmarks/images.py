"""The two images, built and started as far as that goes without a container engine (infra/images/trial.py).

Lock files, installation and commands are the Dockerfiles'; Python is this machine's. Imports are timed in fresh
processes against a bare `import torch` there; seconds and bytes only explain. One invocation by way of AWS's runtime
client computes a gradient, with S3 played by MiniStack, and its frame is compared with what this process computes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.reporting import Figure
from contract.batches import BatchRef, encode_batch
from contract.codec import codec
from contract.gradients import batch_gradient
from contract.keys import Places
from contract.models import initial_weights
from contract.modelspec import ModelSpec
from contract.store import S3Store
from contract.tasks import GradientAnswer, GradientTask
from contract.tensors import Layout, encode_weights, flatten, read_buffers, weights_hash
from contract.wire import decode
from infra.images import trial
from infra.images.staging import PEER, WORKER
from infra.local.cloud import LocalCloud
from infra.settings import Settings

MODEL = ModelSpec(name="cnn", classes=10, channels=1, image_size=28)
PLACES = Places(run="images", run_bucket="images-run", peer_buckets=("images-peer",), region="us-east-1")
SAMPLES, SEED = 64, 1


def run() -> list[Figure]:
    """Build both images, time their imports, and let the worker's answer one invocation."""
    index = os.environ.get("TORCH_INDEX", "")
    figures = []
    with tempfile.TemporaryDirectory(prefix="peerless-images-") as folder:
        for image in (WORKER, PEER):
            _tell(f"building the {image.name} image's files, with Python {sys.version.split()[0]} …")
            work = Path(folder, image.name)
            work.mkdir()
            installed = trial.install(image, work, Settings(), index)
            figures += _imports(installed)
            if image is WORKER:
                figures += _invocation(installed, work / "cloud")
    return figures


def _imports(installed: trial.Installed) -> list[Figure]:
    name, module = installed.image.name, installed.image.modules[-1]
    bare, ours = trial.measure_import(installed, "torch"), trial.measure_import(installed, module)
    _tell(f"import {module}: {ours.seconds:.2f} s, {ours.resident_bytes / 1e6:.0f} MB resident")
    return [
        Figure(
            name=f"{name}_import", value=ours.seconds / bare.seconds, unit="x import torch", better="lower", aim=1.5
        ),
        Figure(name=f"{name}_import_seconds", value=ours.seconds, unit="s", better="lower"),
        Figure(name=f"{name}_resident", value=ours.resident_bytes / 1e6, unit="MB", better="lower"),
        Figure(name=f"{name}_resident_beside_torch", value=_more(ours, bare), unit="MB", better="lower", aim=50.0),
        Figure(name=f"{name}_files", value=installed.size_bytes / 1e6, unit="MB", better="lower"),
    ]


def _more(ours: trial.Import, bare: trial.Import) -> float:
    return (ours.resident_bytes - bare.resident_bytes) / 1e6


def _invocation(installed: trial.Installed, folder: Path) -> list[Figure]:
    """A gradient from a batch in S3 to a frame in S3, by the image's handler and here."""
    _tell("one invocation …")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    x_NCHW = torch.randn(SAMPLES, 1, 28, 28, generator=generator)
    y_N = torch.randint(10, (SAMPLES,), generator=generator)
    model = initial_weights(MODEL, SEED)
    layout = Layout.of(model)
    flat, buffers = flatten(model, layout), read_buffers(model, layout)
    name = weights_hash(layout, flat, buffers)
    blob = encode_batch(x_NCHW, y_N)
    place = PLACES.batch(0, 0)
    batch = BatchRef(index=0, key=place.key, samples=SAMPLES, sha256=hashlib.sha256(blob).hexdigest())
    task = GradientTask(
        places=PLACES,
        rank=0,
        round=0,
        incarnation=0,
        model=MODEL,
        weights_sha256=name,
        loss="cross_entropy",
        codec="none",
        seed=SEED,
        threads=1,
        batch=batch,
    )
    with LocalCloud.start(folder, broker=False) as cloud:
        for bucket in (PLACES.run_bucket, *PLACES.peer_buckets):
            cloud.client("s3").create_bucket(Bucket=bucket)
        store = S3Store(region=cloud.region, endpoint_url=cloud.endpoint_url, session=cloud.session())
        store.put(place, blob)
        weights = encode_weights(layout, flat, buffers, run=PLACES.run, round=0, rank=0, incarnation=0)
        store.put(PLACES.weights(name), weights)
        made = trial.invoke(installed, task.to_event(), **cloud.aws_environment({}))
        if made.failed:
            raise RuntimeError(f"the worker answered {made.body}")
        answer = GradientAnswer.from_dict(made.body)
        frame = decode(store.get(task.output), expected_elements=layout.elements, expected_buffers_bytes=None)
        store.close()
    here = batch_gradient(model, layout, task.loss, flat, buffers, x_NCHW, y_N, seed=task.batch_seed)
    expected = codec(task.codec).encode(here.gradient, task.batch_seed)
    equal = bytes(frame.payload) == expected and frame.header.loss == here.loss
    return [
        Figure(name="worker_gradient_equal", value=float(equal), unit="of 1", better="higher", must=1.0),
        Figure(name="worker_first_answer_seconds", value=answer.seconds, unit="s", better="lower"),
        Figure(name="worker_peak", value=answer.peak_bytes / 1e6, unit="MB", better="lower"),
    ]


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
