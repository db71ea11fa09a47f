"""Gradients in the peer's own process, batch by batch: the instance-based baseline of the paper.

The mathematics, the seeds and the order of additions are those of the Lambda workers, so both give the same gradient
(`compute.gradient_codec` applies to gradients that travel; here none does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from contract.ahead import fetched_ahead
from contract.batches import BatchRef, divide, opened, share_count
from contract.codec import codec, raw
from contract.errors import PermanentError
from contract.gradients import GradientMean, arranged
from contract.keys import Place
from contract.local_steps import LocalSteps, local_update
from contract.models import build
from contract.optimizers import decode_moments, encode_moments
from contract.runspec import RunSpec
from contract.store import ObjectStore
from contract.tasks import gradient_seed
from contract.tensors import Buffers, Layout
from peer_agent.compute.batches import BatchMean, failing_as, name_batch, name_batches, whole
from peer_agent.compute.moments import WorkerMoments
from peer_agent.compute.reduced import is_reduced
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
        self._moments = WorkerMoments(spec, rank, store)
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
        steps: LocalSteps | None = None,
    ) -> RoundGradient:
        """Gradient at `flat` (n,) float32 and `buffers`; see GradientService. Raises GradientFailed."""
        if steps is not None:
            return self._update(round, flat, buffers, batches, seed, steps)
        config = self._spec.config
        shares = divide(batches, share_count(len(batches), self._per_share))
        as_tree = is_reduced(config.compute, self._layout.elements, len(shares))
        mean, bytes_in = BatchMean(self._layout, shares, as_tree=as_tree), 0

        def fetch(batch: BatchRef) -> bytes:
            with failing_as(name_batch(batch.index, self._rank, round)):
                return self._fetch(batch)

        fetched = fetched_ahead(fetch, batches)
        for share in shares:
            part = GradientMean(
                self._model,
                self._layout,
                config.loss,
                flat,
                buffers,
                samples=share.samples,
                precision=config.compute.precision,
            )
            for batch, blob in islice(fetched, len(share.batches)):
                bytes_in += len(blob)
                with failing_as(name_batch(batch.index, self._rank, round)):
                    self._add(part, batch, blob, seed)
            made = part.result()
            with failing_as(name_batch(share.index, self._rank, round)):
                mean.add(raw(made.gradient), codec("none"), made.buffers, made.samples, made.loss)
        return replace(mean.result(buffers), bytes_in=bytes_in)

    def _update(
        self,
        round: int,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
        steps: LocalSteps,
    ) -> RoundGradient:
        """What a worker's steps with all of these batches come to, one after the other."""
        data, bytes_in, kept = [], 0, None
        steps = self._moments.place(steps, round)
        if steps.begins_with is not None:
            with failing_as(name_batches(batches, self._rank, round)):
                blob = self._store.get(steps.begins_with)
                kept = decode_moments(blob, str(steps.begins_with))
                bytes_in += len(blob)
        for batch in batches:
            with failing_as(name_batch(batch.index, self._rank, round)):
                blob = self._fetch(batch)
                x, y = opened(blob, batch)
                data.append((arranged(x, self._channels_last), y))
                bytes_in += len(blob)
        config = self._spec.config
        with failing_as(name_batches(batches, self._rank, round)):
            made = local_update(
                self._model,
                self._layout,
                config.loss,
                flat,
                buffers,
                data,
                steps,
                seed=gradient_seed(seed, batches[0].index),
                precision=config.compute.precision,
                kept=kept,
            )
        bytes_out = 0
        if steps.leaves is not None:
            bytes_out = self._store.put(steps.leaves, encode_moments(made.moments)).size
            self._moments.tidy(steps, round)
        mean = BatchMean(self._layout, [whole(batches)])
        mean.add(codec("none").encode(made.gradient, 0), codec("none"), made.buffers, made.samples, made.loss)
        return replace(mean.result(buffers), bytes_in=bytes_in, bytes_out=bytes_out)

    def close(self) -> None:
        """A running computation ends at its next batch."""
        self._closed = True

    def _add(self, part: GradientMean, batch: BatchRef, blob: bytes, seed: int) -> None:
        if self._closed:
            raise PermanentError("the peer was stopped")
        x, y = opened(blob, batch)
        part.add(arranged(x, self._channels_last), y, seed=gradient_seed(seed, batch.index))

    def _fetch(self, batch: BatchRef) -> bytes:
        places = self._spec.places
        place = Place(places.peer_buckets[self._rank], batch.key, places.account)
        if batch.length is None:
            return self._store.get(place)
        return self._store.get_range(place, batch.offset, batch.length)
