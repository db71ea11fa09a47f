"""The sample-weighted mean of contributions, one at a time, in memory bounded by the model.

Shapes: n parameters (`Layout.elements`). A contribution k is an encoded gradient g_k (n,), the buffers after its
forward passes, and the number s_k of samples it stands for. With S the sum of all s_k:

    gradient = sum over k of (s_k / S) * g_k         accumulated in float32, in the order of `add`
    float buffer = sum over k of (s_k / S) * b_k     accumulated in float64, then cast to the buffer's dtype

One contribution that is far off moves it as far as it likes; contract/robust.py has what bears some of those.

The order of additions is part of the result's bits, so contributions are added in rank (or batch) order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.codec import F32, GradientCodec
from contract.errors import CorruptObject
from contract.tensors import Buffers, Layout, check_values

#: Values whose squares are summed at a time.
_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """What there is to say about an aggregate. Contributions are told by position from 0, in the order of `add`."""

    left_out: tuple[int, ...] = ()
    """Those of whose gradient nothing is in it."""
    clipped: tuple[int, ...] = ()
    """Those whose gradient was scaled down."""
    note: str = ""
    """Why it is weaker than the configuration asks for; empty where it is not."""


class SampleCount:
    """Checks that contributions hold as many samples as were announced."""

    def __init__(self, total: int) -> None:
        """Raises CorruptObject unless `total` is positive."""
        if total < 1:
            raise CorruptObject(f"a mean over {total} samples does not exist")
        self.total = total
        self._held = 0

    def take(self, samples: int) -> None:
        """One more contribution. Raises CorruptObject for a count that isn't positive or exceeds what is left."""
        if samples < 1:
            raise CorruptObject(f"a contribution stands for {samples} samples; at least 1 is needed")
        if self._held + samples > self.total:
            raise CorruptObject(
                f"the contributions hold at least {self._held + samples} samples, but {self.total} were announced"
            )
        self._held += samples

    def check_complete(self) -> None:
        """Raises CorruptObject where samples are missing."""
        if self._held != self.total:
            raise CorruptObject(f"the contributions hold {self._held} samples, but {self.total} were announced")


class BufferMean:
    """Sample-weighted mean of buffers; holds three arrays of each one's size."""

    def __init__(self, layout: Layout, total_samples: int) -> None:
        """`total_samples` is S, the sum over all that is to come."""
        self._layout, self._total = layout, total_samples
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._lowest: Buffers = {}
        self._highest: Buffers = {}

    def add(self, buffers: Buffers, samples: int) -> None:
        """Add the buffers of one contribution. Raises WeightsMismatch for those of another layout."""
        check_values(self._layout, None, buffers)
        for name, value in buffers.items():
            if name not in self._lowest:
                self._lowest[name], self._highest[name] = value.copy(), value.copy()
                if is_float(value):
                    self._sums[name] = value.astype(np.float64) * samples
                continue
            np.minimum(self._lowest[name], value, out=self._lowest[name])
            np.maximum(self._highest[name], value, out=self._highest[name])
            if is_float(value):
                self._sums[name] += value.astype(np.float64) * samples

    def result(self, base_buffers: Buffers) -> Buffers:
        """The mean, see `WeightedMean.result`. Raises WeightsMismatch for a base of another layout."""
        check_values(self._layout, None, base_buffers)
        return {entry.name: self._buffer(entry.name, base_buffers[entry.name]) for entry in self._layout.buffers}

    def _buffer(self, name: str, base: NDArray[Any]) -> NDArray[Any]:
        lowest, highest = self._lowest[name], self._highest[name]
        if is_float(base):
            mean = (self._sums[name] / self._total).astype(base.dtype)
            return np.where(lowest == highest, lowest, mean)
        return advanced(base, (lowest != base) | (highest != base))


class GradientSum:
    """Adds up gradients (n,), each times its weight, in float32 and in the order given; holds one gradient.

    Small payloads wait for each other, up to half a gradient's bytes of them: a pass over the gradient costs more than
    several of them do. What waits must not change before `result`.
    """

    def __init__(self, elements: int) -> None:
        self._gradient = np.zeros(elements, np.float32)
        self._waiting: list[tuple[bytes | memoryview, float]] = []
        self._codec: GradientCodec | None = None  # of what waits

    def add(self, payload: bytes | memoryview, codec: GradientCodec, weight: float) -> None:
        """Add a gradient as `codec` encoded it. Raises CorruptObject."""
        room = self._gradient.nbytes // 2
        alone = 2 * len(payload) > room
        if alone or codec is not self._codec:
            self._add_waiting()
        if alone:
            codec.accumulate(payload, self._gradient, weight)
            return
        codec.check(payload, self._gradient.size)
        self._codec = codec
        self._waiting.append((payload, weight))
        if (len(self._waiting) + 1) * len(payload) > room:  # before the next one is read
            self._add_waiting()

    def _add_waiting(self) -> None:
        if self._waiting and self._codec is not None:
            payloads, weights = zip(*self._waiting, strict=True)
            self._codec.accumulate_many(payloads, self._gradient, weights)
        self._waiting = []

    def result(self) -> NDArray[np.float32]:
        """The sum (n,), float32."""
        self._add_waiting()
        return self._gradient


class WeightedMean:
    """Adds contributions in the order given; holds a GradientSum and a BufferMean."""

    remarks = Remarks()

    def __init__(self, layout: Layout, total_samples: int) -> None:
        """`total_samples` is S, the sum over all contributions to come. Raises CorruptObject unless it is positive."""
        self._count = SampleCount(total_samples)
        self._layout = layout
        self._total = total_samples
        self._gradient = GradientSum(layout.elements)
        self._buffers = BufferMean(layout, total_samples)

    def add(
        self,
        gradient_payload: bytes | memoryview,
        codec: GradientCodec,
        buffers: Buffers,
        samples: int,
        scale: float = 1.0,
    ) -> None:
        """Add one contribution: a gradient (n,) as `codec` encoded it, its buffers and its sample count.

        `scale` multiplies the gradient, and leaves its weight among the samples and its buffers alone.

        Raises CorruptObject for a payload that doesn't decode, a count that isn't positive or one that exceeds the
        announced total; WeightsMismatch for buffers of another layout. After an error the mean is of no use.
        """
        self._count.take(samples)
        check_values(self._layout, None, buffers)
        self._gradient.add(gradient_payload, codec, samples / self._total * scale)
        self._buffers.add(buffers, samples)

    def result(self, base_buffers: Buffers) -> tuple[NDArray[np.float32], Buffers]:
        """The mean gradient (n,), float32, and the buffers for the next weights.

        `base_buffers` are the buffers that all contributions started from. Floating-point buffers are averaged; where
        all contributions agree, their value is kept exactly. An integer that any contribution changed is a counter and
        becomes base + 1, however many batches ran; one that nobody changed (an index, a mask) stays. A boolean that
        any contribution changed flips. Raises CorruptObject when the contributions' samples do not sum up to the total.
        """
        self._count.check_complete()
        check_values(self._layout, None, base_buffers)
        return self._gradient.result(), self._buffers.result(base_buffers)


def advanced(base: NDArray[Any], changed: NDArray[np.bool_]) -> NDArray[Any]:
    """`base`, integer or boolean, one further (or flipped) where `changed`."""
    advance = np.bitwise_xor if base.dtype == np.bool_ else np.add
    after: NDArray[Any] = np.asarray(advance(base, changed.astype(base.dtype)))
    return after


def is_float(value: NDArray[Any]) -> bool:
    """Whether a buffer is averaged; integers and booleans advance."""
    return np.issubdtype(value.dtype, np.floating)


def clip_factor(gradient: F32, clip_norm: float) -> float:
    """What `gradient` (n,) is multiplied by to have at most the L2 norm `clip_norm`; 1 where that is 0."""
    if not clip_norm:
        return 1.0
    parts = (gradient[start : start + _CHUNK] for start in range(0, gradient.size, _CHUNK))
    norm = math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts))
    return min(1.0, clip_norm / norm) if norm else 1.0
