"""The validation set, and what given weights are worth on it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.batches import decode_batch
from contract.errors import NonFiniteGradient
from contract.objective import Evaluation, evaluate
from contract.runspec import RunSpec
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout, load


class Validator:
    """Evaluates weights in a model of its own. The validation set is fetched, and its digest checked, at first use."""

    def __init__(self, spec: RunSpec, store: ObjectStore, model: nn.Module, layout: Layout) -> None:
        self._spec, self._store, self._model, self._layout = spec, store, model, layout
        self._data: tuple[Tensor, Tensor] | None = None

    def evaluate(self, flat: NDArray[np.float32], buffers: Buffers) -> Evaluation:
        """Loss and accuracy of the weights `flat` (n,) float32 with `buffers`.

        Raises CorruptObject when the validation set is not the run's, NonFiniteGradient when the loss is no number.
        """
        if self._data is None:
            blob = self._store.get(self._spec.places.validation())
            self._data = decode_batch(blob, self._spec.validation.sha256)
        x, y = self._data
        size = self._spec.config.batch_size
        load(self._model, self._layout, flat, buffers)
        starts = range(0, len(y), size)
        result = evaluate(self._model, self._spec.config.loss, ((x[i : i + size], y[i : i + size]) for i in starts))
        if not math.isfinite(result.loss):
            raise NonFiniteGradient(
                f"the validation loss is {result.loss}: training has diverged; a smaller optimizer.lr may help"
            )
        return result
