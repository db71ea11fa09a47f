"""Entry point of the Lambda function: parses the event, calls, answers.

Errors keep their class, because AWS reports the class name and the state machine's Retry rules go by it.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch

from contract.batches import BatchRef, Manifest, opened
from contract.clock import Clock, SystemClock
from contract.env import WorkerEnv
from contract.errors import PeerlessError
from contract.optimizers import decode_moments, encode_moments
from contract.store import ObjectStore, S3Store
from contract.tasks import GradientAnswer, GradientTask
from lambdas.gradient_worker.gradient import gradient_frame, update_frame
from lambdas.gradient_worker.warm import Warm


class GradientWorker:
    """One warm process: its store and its caches."""

    def __init__(self, env: WorkerEnv, store: ObjectStore | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._store = store or S3Store(region=env.region, endpoint_url=env.endpoint_url)
        self._warm = Warm(self._store, env.code_dir)
        self._cold = True

    def __call__(self, event: Mapping[str, Any]) -> GradientAnswer:
        """Compute one task and store its gradient. Raises the errors of contract.errors, naming the batch."""
        begun = self._clock.monotonic()
        cold, self._cold = self._cold, False
        task = GradientTask.from_event(event)
        try:
            key, digest, samples, loss = self._compute(task)
        except PeerlessError as error:
            # The same class, so that Retry rules still match, with the batch in the sentence.
            where = f"batch {task.batch.index} of rank {task.rank} in round {task.round}"
            raise type(error)(f"{where}: {error}") from error
        return GradientAnswer(
            batch=task.batch.index,
            key=key,
            digest=digest,
            samples=samples,
            loss=loss,
            seconds=self._clock.monotonic() - begun,
            peak_bytes=_peak_bytes(),
            cold_start=cold,
            retries=int(event.get("retries", 0)),
        )

    def _compute(self, task: GradientTask) -> tuple[str, str, int, float]:
        if torch.get_num_threads() != task.threads:
            torch.set_num_threads(task.threads)
        self._warm.require_code(task.code_digest)
        model, layout = self._warm.model(task.model)
        weights = self._warm.weights(task, layout)
        if task.steps is None:
            result = gradient_frame(task, model, layout, weights, self._fetch(task, task.batch))
        else:
            begins_with = task.steps.begins_with
            kept = None if begins_with is None else decode_moments(self._store.get(begins_with), str(begins_with))
            manifest = Manifest.from_json(self._store.get(task.places.manifest(task.rank)))
            batches = manifest.chosen(task.steps.batches)
            data = [opened(self._fetch(task, batch), batch) for batch in batches]
            result = update_frame(task, task.steps, model, layout, weights, data, kept)
            if task.steps.leaves is not None:  # before the update, which says that all is done
                self._store.put(task.steps.leaves, encode_moments(result.moments))
        self._store.put(task.output, result.frame)
        return task.output.key, result.digest, result.samples, result.loss

    def _fetch(self, task: GradientTask, batch: BatchRef) -> bytes:
        place = task.place_of(batch)
        if batch.length is None:
            return self._store.get(place)
        return self._store.get_range(place, batch.offset, batch.length)


_worker: GradientWorker | None = None


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """AWS's entry point; the process's worker is made at its first invocation."""
    global _worker
    if _worker is None:
        _worker = GradientWorker(WorkerEnv.read(os.environ))
    return _worker(event).to_dict()


def _peak_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
