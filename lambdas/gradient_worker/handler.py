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
from torch import Tensor

from contract.ahead import fetched_ahead
from contract.batches import BatchRef, Manifest, opened
from contract.clock import Clock, SystemClock
from contract.env import WorkerEnv
from contract.gradients import ParametersChanged, arranged
from contract.local_steps import LocalSteps
from contract.optimizers import Moments, decode_moments, encode_moments
from contract.store import ObjectStore, S3Store
from contract.tasks import GradientAnswer, GradientTask
from lambdas.gradient_worker.gradient import Result, Weights, gradient_frame, naming, update_frame
from lambdas.gradient_worker.warm import Kept, Warm


class GradientWorker:
    """One warm process: its store and its caches."""

    def __init__(self, env: WorkerEnv, store: ObjectStore | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._store = store or S3Store(region=env.region, endpoint_url=env.endpoint_url)
        self._warm = Warm(self._store, env.code_dir, env.shared_dir)
        self._cold = True

    def __call__(self, event: Mapping[str, Any]) -> GradientAnswer:
        """Compute one task and store its gradient. Raises the errors of contract.errors, naming the batch."""
        begun = self._clock.monotonic()
        cold, self._cold = self._cold, False
        task = GradientTask.from_event(event)
        result = self._compute(task, cold)
        return GradientAnswer(
            batch=task.batch.index,
            key=task.output.key,
            digest=result.digest,
            samples=result.samples,
            loss=result.loss,
            seconds=self._clock.monotonic() - begun,
            step_seconds=result.measured.step_seconds,
            peak_bytes=_peak_bytes(),
            cold_start=cold,
            weights_fetched=result.measured.weights_fetched,
            retries=int(event.get("retries", 0)),
        )

    def _compute(self, task: GradientTask, cold: bool) -> Result:
        if torch.get_num_threads() != task.threads:
            torch.set_num_threads(task.threads)
        fetches = self._warm.fetches
        with naming(task, task.batch):
            self._warm.require_code(task.code_digest)
            kept = self._warm.model(task.model, task.channels_last)
        while True:
            with naming(task, task.batch):
                weights = self._warm.weights(task, kept)
            try:
                result = self._result(task, kept, weights, cold, fetched=self._warm.fetches > fetches)
                break
            except ParametersChanged:
                kept.name, kept.apart = "", True
            except BaseException:
                kept.name = ""  # nobody knows what the model holds now
                raise
        with naming(task, task.batch):
            if task.steps is not None and task.steps.leaves is not None:
                # Before the update, which says that all is done.
                self._store.put(task.steps.leaves, encode_moments(result.moments))
            self._store.put(task.output, result.frame)
        return result

    def _result(self, task: GradientTask, kept: Kept, weights: Weights, cold: bool, fetched: bool) -> Result:
        """Raises ParametersChanged where the model can't hold its weights."""
        if task.steps is None:
            return gradient_frame(
                task,
                kept.model,
                kept.layout,
                weights,
                fetched_ahead(lambda batch: self._fetch(task, batch), task.batches),
                clock=self._clock,
                peak_bytes=_peak_bytes,
                cold_start=cold,
                weights_fetched=fetched,
            )
        data, moments = self._to_step_with(task, task.steps)
        return update_frame(
            task,
            task.steps,
            kept.model,
            kept.layout,
            weights,
            data,
            moments,
            clock=self._clock,
            peak_bytes=_peak_bytes,
            cold_start=cold,
            weights_fetched=fetched,
        )

    def _to_step_with(
        self, task: GradientTask, steps: LocalSteps
    ) -> tuple[list[tuple[Tensor, Tensor]], Moments | None]:
        """The batches that the steps are taken with, and the moments that they begin with."""
        with naming(task, task.batch):
            begins_with = steps.begins_with
            kept = None if begins_with is None else decode_moments(self._store.get(begins_with), str(begins_with))
            manifest = Manifest.from_json(self._store.get(task.places.manifest(task.rank)))
            batches = manifest.chosen(steps.batches)
        data = []
        for batch in batches:
            blob = self._fetch(task, batch)
            with naming(task, batch):
                x, y = opened(blob, batch)
                data.append((arranged(x, task.channels_last), y))
        return data, kept

    def _fetch(self, task: GradientTask, batch: BatchRef) -> bytes:
        with naming(task, batch):
            if batch.length is None:
                return self._store.get(task.place_of(batch))
            return self._store.get_range(task.place_of(batch), batch.offset, batch.length)


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
