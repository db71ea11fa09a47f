"""From the contributions of a round to the next weights: one gradient of all, then one step of torch.optim.

n is the number of parameters; weights and gradients are flat float32 vectors of shape (n,) in the layout's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.averaging import Remarks
from contract.codec import codec
from contract.config import AggregationConfig, OptimizerConfig
from contract.optimizers import build, clip
from contract.robust import aggregation
from contract.tensors import Buffers, Layout, unpack_buffers, weights_hash
from contract.wire import Frame, FrameHeader


class Update:
    """This peer's weights, buffers and optimizer state. Where workers take steps, the mean of their updates is what is
    called a gradient here.

    The optimizer works on one flat parameter: all optimizers on offer are elementwise, so this equals a step on the
    model's own tensors, and needs no model. What the model has frozen stays as it is, bit for bit. `flat` is a new
    array after every step; nothing writes into an old one.
    """

    def __init__(
        self,
        layout: Layout,
        flat: NDArray[np.float32],
        buffers: Buffers,
        config: OptimizerConfig,
        aggregation: AggregationConfig = AggregationConfig(),  # noqa: B008 (frozen)
        scratch: Path | None = None,
    ) -> None:
        """`scratch` is a folder on disk with room for one model per contribution; the weighted mean does not use it."""
        self._layout, self._aggregation, self._scratch = layout, aggregation, scratch
        self._config = config
        self.remarks = Remarks()
        """About the latest step's aggregate, with ranks for positions; `step` alone has anything to say."""
        self._parameter = nn.Parameter(torch.from_numpy(flat.copy()))
        self.optimizer = build(self._parameter, config)
        self.flat = flat
        self.buffers = buffers
        self.weights_sha256 = weights_hash(layout, flat, buffers)

    def step(self, headers: Sequence[FrameHeader], frames: Iterable[Frame]) -> str:
        """Aggregate `frames`, which come one by one in the order of `headers`, take a step, and return the new hash.

        Beside weights and optimizer state this takes the memory of one gradient and of one frame, whatever their number
        (invariant 12). Raises CorruptObject, and OSError where scratch files do not fit; nothing has changed then.
        """
        gradient, buffers, remarks = self._aggregate(sum(header.samples for header in headers), frames)
        self.remarks = Remarks(
            left_out=tuple(headers[at].rank for at in remarks.left_out),
            clipped=tuple(headers[at].rank for at in remarks.clipped),
            note=remarks.note,
        )
        self._descend(gradient)
        del gradient  # before the weights are copied
        return self._go_on(buffers)

    def take(self, gradient: NDArray[np.float32], buffers: Buffers) -> str:
        """Take a step with this gradient (n,), which clipping changes, and go on with these buffers; the new hash."""
        self._descend(gradient)
        return self._go_on(buffers)

    def _descend(self, gradient: NDArray[np.float32]) -> None:
        self._parameter.grad = torch.from_numpy(gradient)
        clip(self._parameter.grad, self._config)
        self.optimizer.step()
        self._parameter.grad = None

    def _go_on(self, buffers: Buffers) -> str:
        with torch.no_grad():  # the one flat parameter decays as a whole, frozen parts included
            for part in self._layout.frozen:
                self._parameter[part] = torch.from_numpy(self.flat[part])
        self._take(self._parameter.detach().numpy().copy(), buffers)
        return self.weights_sha256

    def _aggregate(self, samples: int, frames: Iterable[Frame]) -> tuple[NDArray[np.float32], Buffers, Remarks]:
        """Gradient (n,) and buffers of all frames, which hold `samples` samples together; and what there is to say."""
        with aggregation(self._aggregation, self._layout, samples, self._scratch) as aggregator:
            for frame in frames:
                buffers = unpack_buffers(self._layout, frame.buffers)
                aggregator.add(frame.payload, codec(frame.header.codec), buffers, frame.header.samples)
                del frame  # before the next one is read
            return *aggregator.result(self.buffers), aggregator.remarks

    def adopt(self, flat: NDArray[np.float32], buffers: Buffers) -> None:
        """Go on from these weights; the optimizer's state stays this peer's own."""
        with torch.no_grad():
            self._parameter.copy_(torch.from_numpy(np.ascontiguousarray(flat)))
        self._take(self._parameter.detach().numpy().copy(), buffers)

    def _take(self, flat: NDArray[np.float32], buffers: Buffers) -> None:
        self.flat, self.buffers = flat, buffers
        self.weights_sha256 = weights_hash(self._layout, flat, buffers)
