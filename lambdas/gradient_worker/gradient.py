"""From a task and its bytes to the frame that goes back; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.batches import BatchRef, opened
from contract.clock import Clock
from contract.codec import codec, raw
from contract.errors import PeerlessError
from contract.extensions import Measured, measured_extension
from contract.gradient_frames import header
from contract.gradients import BatchGradient, GradientMean, arranged
from contract.local_steps import LocalSteps, local_update
from contract.optimizers import Moments
from contract.tasks import GradientTask
from contract.tensors import Buffers, Layout, flatten, pack_buffers
from contract.wire import Blob, decode_header, encode


@dataclass(frozen=True)
class Weights:
    """Weights as a worker keeps them."""

    flat: NDArray[np.float32] | None
    """(n,) float32; None where the model's own parameters are the only copy."""
    buffers: Buffers


@dataclass(frozen=True)
class Result:
    """A frame with what the answer repeats of it."""

    frame: bytes
    digest: str
    samples: int
    loss: float
    measured: Measured
    moments: Moments = field(default_factory=dict)
    """What the worker's own optimizer keeps."""


@contextmanager
def naming(task: GradientTask, batch: BatchRef) -> Iterator[None]:
    """Errors from inside say which batch they befell, and keep their class, so that Retry rules still match."""
    try:
        yield
    except PeerlessError as error:
        where = f"batch {batch.index} of rank {task.rank} in round {task.round}"
        raise type(error)(f"{where}: {error}") from error


def gradient_frame(
    task: GradientTask,
    model: nn.Module,
    layout: Layout,
    weights: Weights,
    batches: Iterable[tuple[BatchRef, bytes]],
    *,
    clock: Clock,
    peak_bytes: Callable[[], int],
    cold_start: bool,
    weights_fetched: bool,
) -> Result:
    """Mean gradient of the task's `batches` (each with its file's bytes) at `weights`, encoded with the task's codec.

    Without `weights.flat` the model holds the weights. Equal tasks give equal payloads and buffers; what the worker
    measured on the way (the other arguments say it, or how to) differs. Raises CorruptObject when a batch isn't the one
    that the task names, and whatever `GradientMean.add` raises, naming the batch.
    """
    mean = GradientMean(
        model,
        layout,
        task.loss,
        weights.flat,
        weights.buffers,
        sum(batch.samples for batch in task.batches),
        precision=task.precision,
    )
    seconds = 0.0
    for batch, blob in batches:
        with naming(task, batch):
            x, y = opened(blob, batch)
            begun = clock.monotonic()
            mean.add(arranged(x, task.channels_last), y, seed=task.seed_of(batch))
            seconds += clock.monotonic() - begun
    made = mean.result()
    measured = Measured(
        step_seconds=seconds / len(task.batches),
        peak_bytes=peak_bytes(),
        cold_start=cold_start,
        weights_fetched=weights_fetched,
    )
    return _result(task, layout, made, measured)


def update_frame(
    task: GradientTask,
    steps: LocalSteps,
    model: nn.Module,
    layout: Layout,
    weights: Weights,
    data: Sequence[tuple[Tensor, Tensor]],
    kept: Moments | None = None,
    *,
    clock: Clock,
    peak_bytes: Callable[[], int],
    cold_start: bool,
    weights_fetched: bool,
) -> Result:
    """The same for the update that the task's `steps` with the batches `data`, x (N, …) as `arranged` and y (N, …)
    each, come to, from the moments `kept` on. Raises what `local_update` raises, naming the first batch."""
    begun = clock.monotonic()
    with naming(task, task.batch):
        made = local_update(
            model,
            layout,
            task.loss,
            flatten(model, layout) if weights.flat is None else weights.flat,
            weights.buffers,
            data,
            steps,
            seed=task.batch_seed,
            precision=task.precision,
            kept=kept,
        )
    measured = Measured(
        step_seconds=(clock.monotonic() - begun) / steps.count(len(data)),
        peak_bytes=peak_bytes(),
        cold_start=cold_start,
        weights_fetched=weights_fetched,
    )
    return replace(_result(task, layout, made, measured), moments=made.moments)


def _result(task: GradientTask, layout: Layout, made: BatchGradient, measured: Measured) -> Result:
    """The frame of what a worker has made, as the answer to `task`."""
    with naming(task, task.batch):
        told = header(
            task,
            samples=made.samples,
            loss=made.loss,
            codec=task.codec,
            seed=task.batch_seed,
            elements=layout.elements,
            extensions=(measured_extension(measured),),
        )
        frame = encode(told, _payload(task, made.gradient), pack_buffers(layout, made.buffers))
    return Result(frame, decode_header(frame).digest, made.samples, made.loss, measured)


def _payload(task: GradientTask, gradient: NDArray[np.float32]) -> Blob:
    """The encoded gradient (n,), which is finite; with codec none a view, because the frame is a copy as it is."""
    if task.codec == "none":
        return raw(gradient)
    return codec(task.codec).encode(gradient, task.batch_seed)
