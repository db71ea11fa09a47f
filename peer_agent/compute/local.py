"""Gradients in the peer's own process, batch by batch: the instance-based baseline of the paper.

The mathematics, the seeds and the order of additions are those of the Lambda workers, so both give the same gradient
(`compute.gradient_codec` applies to gradients that travel; here none does).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from contract.ahead import one_ahead
from contract.batches import BatchRef, decode_batch, divide, share_count
from contract.codec import codec
from contract.errors import CorruptObject, PermanentError
from contract.gradients import GradientMean, arranged
from contract.keys import Place
from contract.models import build
from contract.runspec import RunSpec
from contract.store import ObjectStore
from contract.tasks import gradient_seed
from contract.tensors import Buffers, Layout
from peer_agent.compute.batches import BatchMean, failing_as, name_batch
from peer_agent.ports import RoundGradient


class LocalGradientService:
    """Holds a model of its own, so that others of the process may be used at the same time."""

    def __init__(self, spec: RunSpec, rank: int, *, store: ObjectStore) -> None:
        """Raises ModelError when the model cannot be built."""
        self._spec, self._rank, self._store = spec, rank, store
        self._model = build(spec.model)
        self._channels_last = spec.config.compute.channels_last
        if self._channels_last:
            self._model = self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layout = Layout.of(self._model)
        per_worker = spec.config.compute.batches_per_worker
        # Batches are added up in the same groups as by workers; `auto` has none to start.
        self._per_share = per_worker if isinstance(per_worker, int) else 1
        self._closed = False

    def compute(
        self,
        *,
        round: int,
        incarnation: int,
        weights_sha256: str,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
    ) -> RoundGradient:
        """Gradient at `flat` (n,) float32 and `buffers`; see GradientService. Raises GradientFailed."""
        mean, bytes_in = BatchMean(self._layout, batches), 0

        def fetch(batch: BatchRef) -> bytes:
            with failing_as(name_batch(batch.index, self._rank, round)):
                return self._fetch(batch)

        fetched = one_ahead(fetch, batches)
        for share in divide(batches, share_count(len(batches), self._per_share)):
            part = GradientMean(self._model, self._layout, self._spec.config.loss, flat, buffers, samples=share.samples)
            for batch, blob in islice(fetched, len(share.batches)):
                bytes_in += len(blob)
                with failing_as(name_batch(batch.index, self._rank, round)):
                    self._add(part, batch, blob, seed)
            made = part.result()
            # What codec none encodes to; a view, as the gradient need not be there twice.
            payload = np.ascontiguousarray(made.gradient, "<f4").data.cast("B")
            with failing_as(name_batch(share.index, self._rank, round)):
                mean.add(payload, codec("none"), made.buffers, made.samples, made.loss)
        return mean.result(buffers, invocations=0, executions=0, bytes_in=bytes_in, bytes_out=0)

    def close(self) -> None:
        """A running computation ends at its next batch."""
        self._closed = True

    def _add(self, part: GradientMean, batch: BatchRef, blob: bytes, seed: int) -> None:
        if self._closed:
            raise PermanentError("the peer was stopped")
        x, y = decode_batch(blob, batch.sha256)
        if len(y) != batch.samples:
            raise CorruptObject(f"{batch.key} holds {len(y)} samples, but the manifest says {batch.samples}")
        part.add(arranged(x, self._channels_last), y, seed=gradient_seed(seed, batch.index))

    def _fetch(self, batch: BatchRef) -> bytes:
        places = self._spec.places
        place = Place(places.peer_buckets[self._rank], batch.key, places.account)
        if batch.length is None:
            return self._store.get(place)
        return self._store.get_range(place, batch.offset, batch.length)
