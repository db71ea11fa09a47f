"""From a task and its bytes to the frame that goes back; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.batches import opened
from contract.codec import codec
from contract.gradients import BatchGradient, batch_gradient
from contract.local_steps import LocalSteps, local_update
from contract.optimizers import Moments
from contract.tasks import GradientTask
from contract.tensors import Buffers, Layout, pack_buffers
from contract.wire import FrameHeader, Kind, decode_header, encode


@dataclass(frozen=True)
class Weights:
    """Weights as a worker keeps them: flat (n,) float32, and buffers."""

    flat: NDArray[np.float32]
    buffers: Buffers

    @property
    def nbytes(self) -> int:
        """Memory of both, in bytes."""
        return self.flat.nbytes + sum(value.nbytes for value in self.buffers.values())


@dataclass(frozen=True)
class Result:
    """A frame with what the answer repeats of it."""

    frame: bytes
    digest: str
    samples: int
    loss: float
    moments: Moments = field(default_factory=dict)
    """What the worker's own optimizer keeps."""


def gradient_frame(task: GradientTask, model: nn.Module, layout: Layout, weights: Weights, batch: bytes) -> Result:
    """Gradient of the batch file `batch` at `weights`, encoded with the task's codec. Equal tasks give equal bytes.

    Raises CorruptObject when the batch isn't the one that the task names, and whatever `batch_gradient` raises.
    """
    x, y = opened(batch, task.batch)
    made = batch_gradient(
        model, layout, task.loss, weights.flat, weights.buffers, x, y, seed=task.batch_seed, precision=task.precision
    )
    return result_frame(task, layout, made)


def update_frame(
    task: GradientTask,
    steps: LocalSteps,
    model: nn.Module,
    layout: Layout,
    weights: Weights,
    data: Sequence[tuple[Tensor, Tensor]],
    kept: Moments | None = None,
) -> Result:
    """The same for the update that the task's `steps` with these batches come to, from the moments `kept` on."""
    made = local_update(
        model, layout, task.loss, weights.flat, weights.buffers, data, steps, seed=task.batch_seed,
        precision=task.precision, kept=kept,
    )  # fmt: skip
    return replace(result_frame(task, layout, made), moments=made.moments)


def result_frame(task: GradientTask, layout: Layout, made: BatchGradient) -> Result:
    """The frame of what a worker has made, as the answer to `task`."""
    header = FrameHeader(
        kind=Kind.GRADIENT,
        run=task.run,
        round=task.round,
        base_round=task.round,
        base_weights=task.weights_sha256,
        rank=task.rank,
        incarnation=task.incarnation,
        samples=made.samples,
        loss=made.loss,
        codec=task.codec,
        seed=task.batch_seed,
        elements=layout.elements,
    )
    payload = codec(task.codec).encode(made.gradient, task.batch_seed)
    frame = encode(header, payload, pack_buffers(layout, made.buffers))
    return Result(frame, decode_header(frame).digest, made.samples, made.loss)
