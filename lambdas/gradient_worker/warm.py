"""What a worker process keeps between invocations: the user's code, built models, and the latest weights."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.code import code_digest
from contract.errors import CodeError, CorruptObject, WeightsMismatch
from contract.models import build
from contract.store import ObjectStore
from contract.tasks import GradientTask, ModelSpec
from contract.tensors import Buffers, Layout, decode_weights, flatten, load
from contract.trained_part import TrainedPart
from lambdas.gradient_worker.gradient import Weights
from lambdas.gradient_worker.shared import SharedFiles

#: Bytes of weights up to which others than the latest are kept: peers in asynchronous mode hold different ones and
#: share workers.
WEIGHTS_BYTES = 128 * 2**20
#: Models kept built; a function serves one run, hence nearly always one model.
MODELS = 2


@dataclass
class Kept:
    """A built model, and the weights that it holds: their name (empty: none that are known), and their buffers."""

    model: nn.Module
    layout: Layout
    name: str = ""
    buffers: Buffers = field(default_factory=dict)
    apart: bool = False
    """Whether its weights are kept beside it, because its forward pass changes its parameters."""


class Warm:
    """Caches of one process; used by one invocation at a time.

    A model's parameters are the one copy of the weights that it was last used with. Other weights wait as flat vectors,
    as far as WEIGHTS_BYTES goes, and change places with them.
    """

    def __init__(self, store: ObjectStore, code_dir: Path | None, shared_dir: Path | None = None) -> None:
        self._store = store
        self._shared = SharedFiles(shared_dir) if shared_dir is not None else None
        self._code_dir = code_dir
        self._code_digest: str | None = None
        self._models: OrderedDict[tuple[ModelSpec, bool], Kept] = OrderedDict()
        self._waiting: OrderedDict[str, tuple[NDArray[np.float32], Buffers]] = OrderedDict()
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

    def model(self, spec: ModelSpec, channels_last: bool) -> Kept:
        """The model of `spec`, arranged so. Raises ModelError."""
        key = spec, channels_last
        if key in self._models:
            self._models.move_to_end(key)
        else:
            model = build(spec)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._models[key] = Kept(model, Layout.of(model))
            if len(self._models) > MODELS:
                self._models.popitem(last=False)
        return self._models[key]

    def weights(self, task: GradientTask, kept: Kept) -> Weights:
        """The weights that the task names, in the model unless they are `apart`; fetched once per process and version,
        of a model that is mostly frozen only what training changes, and checked against their hash.

        Raises ObjectMissing, CorruptObject or WeightsMismatch.
        """
        name = task.weights_sha256
        if kept.apart:
            if name not in self._waiting:
                self._wait(name, *self._read(task, kept.layout, copy=True))
            self._waiting.move_to_end(name)
            return Weights(*self._waiting[name])
        if kept.name != name:
            found = (
                self._waiting.pop(name, None) or self._changes(task, kept) or self._read(task, kept.layout, copy=False)
            )
            before = kept.name, kept.buffers
            kept.name = ""
            flat, buffers = found
            if before[0] and 2 * flat.nbytes <= WEIGHTS_BYTES:
                self._wait(before[0], flatten(kept.model, kept.layout), before[1], beside=flat.nbytes)
            load(kept.model, kept.layout, flat, buffers)
            kept.name, kept.buffers = name, buffers
        return Weights(None, kept.buffers)

    def _wait(self, name: str, flat: NDArray[np.float32], buffers: Buffers, beside: int = 0) -> None:
        """Keep weights, and as many of those before as there is room for with so many bytes `beside` them."""
        self._waiting[name] = flat, buffers
        held = beside + sum(values.nbytes for values, _ in self._waiting.values())
        while len(self._waiting) > 1 and held > WEIGHTS_BYTES:
            held -= self._waiting.popitem(last=False)[1][0].nbytes

    def _changes(self, task: GradientTask, kept: Kept) -> tuple[NDArray[np.float32], Buffers] | None:
        """The model's own weights with what training has changed since; None where that is most of them, or where they
        are no earlier ones of the same run."""
        part = TrainedPart.of(kept.layout, task.run) if kept.name else None
        if part is None:
            return None
        name = f"{task.weights_sha256} trained part"
        try:
            blob, _ = self._bytes(
                name, lambda: part.read(lambda offset, length: self._store.get_range(task.weights, offset, length))
            )
            return part.applied(flatten(kept.model, kept.layout), blob, task.weights_sha256)
        except (CorruptObject, WeightsMismatch):
            self._forget(name)
            return None

    def _read(self, task: GradientTask, layout: Layout, *, copy: bool) -> tuple[NDArray[np.float32], Buffers]:
        """From the machine's files, else from S3. What other processes left there is checked as if it came from S3."""
        name = task.weights_sha256
        blob, fetched = self._bytes(name, lambda: self._store.get(task.weights))
        try:
            return decode_weights(layout, blob, name, copy=copy)
        except (CorruptObject, WeightsMismatch):
            self._forget(name)
            if fetched:
                raise
        self.fetches += 1
        return decode_weights(layout, self._store.get(task.weights), name, copy=copy)

    def _bytes(self, name: str, fetch: Callable[[], bytes]) -> tuple[bytes, bool]:
        """What the machine's files hold under a name, and whether `fetch` had to give it."""

        def counted() -> bytes:
            self.fetches += 1
            return fetch()

        return (counted(), True) if self._shared is None else self._shared.read(name, counted)

    def _forget(self, name: str) -> None:
        if self._shared is not None:
            self._shared.forget(name)


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "(none)"
