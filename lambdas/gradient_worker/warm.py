"""What a worker process keeps between invocations: the user's code, built models, and the latest weights."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from contract.code import code_digest
from contract.errors import CodeError, CorruptObject, WeightsMismatch
from contract.models import build
from contract.store import ObjectStore
from contract.tasks import GradientTask, ModelSpec
from contract.tensors import Layout, decode_weights
from lambdas.gradient_worker.gradient import Weights
from lambdas.gradient_worker.shared import SharedFiles

#: Weights kept beside the latest ones: peers in asynchronous mode hold different ones and share workers.
WEIGHTS_BYTES = 128 * 2**20
#: Models kept built; a function serves one run, hence nearly always one model.
MODELS = 2


class Warm:
    """Caches of one process; used by one invocation at a time."""

    def __init__(self, store: ObjectStore, code_dir: Path | None, shared_dir: Path | None = None) -> None:
        self._store = store
        self._shared = SharedFiles(shared_dir) if shared_dir is not None else None
        self._code_dir = code_dir
        self._code_digest: str | None = None
        self._models: OrderedDict[tuple[ModelSpec, bool], tuple[nn.Module, Layout]] = OrderedDict()
        self._weights: OrderedDict[str, Weights] = OrderedDict()
        self.fetches = 0
        """How often weights came from S3."""

    def require_code(self, digest: str) -> None:
        """Make the user's code importable, once, if it is what the run was started with. Raises CodeError."""
        if self._code_digest is None:
            self._code_digest = code_digest(self._code_dir)
            if self._code_digest:
                sys.path.insert(0, str(self._code_dir))
        if self._code_digest != digest:
            raise CodeError(
                f"this worker holds own code {_short(self._code_digest)}, but the run was started with "
                f"{_short(digest)}; deploy the code again, or start a new run"
            )

    def model(self, spec: ModelSpec, channels_last: bool) -> tuple[nn.Module, Layout]:
        """The model of `spec`, arranged so; its values are whatever the last invocation left. Raises ModelError."""
        key = spec, channels_last
        if key in self._models:
            self._models.move_to_end(key)
        else:
            model = build(spec)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._models[key] = model, Layout.of(model)
            if len(self._models) > MODELS:
                self._models.popitem(last=False)
        return self._models[key]

    def weights(self, task: GradientTask, layout: Layout) -> Weights:
        """The weights that the task names, fetched once per process and version, and checked against their hash.

        Raises ObjectMissing, CorruptObject or WeightsMismatch.
        """
        name = task.weights_sha256
        if name in self._weights:
            self._weights.move_to_end(name)
        else:
            self._weights[name] = self._read_weights(task, layout)
            kept = sum(weights.nbytes for weights in self._weights.values())
            while len(self._weights) > 1 and kept > WEIGHTS_BYTES:
                kept -= self._weights.popitem(last=False)[1].nbytes
        return self._weights[name]

    def _read_weights(self, task: GradientTask, layout: Layout) -> Weights:
        """From the machine's files, else from S3. What other processes left there is checked as if it came from S3."""
        name = task.weights_sha256

        def fetch() -> bytes:
            self.fetches += 1
            return self._store.get(task.weights)

        if self._shared is None:
            return Weights(*decode_weights(layout, fetch(), name))
        blob, fetched = self._shared.read(name, fetch)
        try:
            return Weights(*decode_weights(layout, blob, name))
        except (CorruptObject, WeightsMismatch):
            self._shared.forget(name)
            if fetched:
                raise
        return Weights(*decode_weights(layout, fetch(), name))


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "(none)"
