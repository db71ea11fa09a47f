"""Means over parts of a round's gradients, which are added up further: what a reducer makes, and a peer in its place.

Shapes: n parameters (`Layout.elements`). A part is a mean gradient g (n,) over s samples, with the buffers after the
forward passes. What becomes of buffers in the end depends on those that the round started from (WeightedMean), which a
reducer does not have. So a part keeps of a floating-point buffer the mean, and of any other one its lowest and highest
values: a counter or a flag has changed where one of the two differs from the start.

    gradient = sum over k of (s_k / S) * g_k       float32, in the order of the tree (contract/tree.py)
    float buffer = sum over k of (s_k / S) * b_k   float64, then cast to the buffer's dtype; kept where all agree

Where gradients are missing, S is the sum over those that came.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.averaging import GradientSum, advanced, is_float
from contract.codec import GradientCodec, codec, raw
from contract.errors import CorruptObject
from contract.extensions import Measured, Reduced
from contract.tensors import BUFFER_DTYPES, Buffers, Entry, Layout, check_values, pack_buffers, unpack_buffers
from contract.tree import tree


def buffer_kinds(layout: Layout) -> tuple[str, ...]:
    """The buffers of a layout without their names: `float32:128` for so many values that follow one another."""
    kinds: list[tuple[str, int]] = []
    for entry in layout.buffers:
        if kinds and kinds[-1][0] == entry.dtype:
            kinds[-1] = entry.dtype, kinds[-1][1] + entry.elements
        else:
            kinds.append((entry.dtype, entry.elements))
    return tuple(f"{dtype}:{elements}" for dtype, elements in kinds)


def nameless_layout(elements: int, kinds: Sequence[str]) -> Layout:
    """A layout of the same bytes, for whoever has no model. Raises CorruptObject."""
    entries = []
    for position, kind in enumerate(kinds):
        dtype, _, count = kind.partition(":")
        if dtype not in BUFFER_DTYPES or not (count.isascii() and count.isdigit()):
            raise CorruptObject(f"{kind!r} is no kind of buffer")
        entries.append(Entry(str(position), (int(count),), dtype))
    return Layout((Entry("gradient", (elements,)),), tuple(entries))


@dataclass(frozen=True)
class Bounds:
    """Buffers of one or several gradients."""

    values: Buffers
    """By name: the mean where they are floats, else the lowest."""
    highest: Buffers
    """Of those that are no floats."""

    @classmethod
    def of(cls, buffers: Buffers) -> Bounds:
        """Those of one gradient."""
        return cls(buffers, {name: value for name, value in buffers.items() if not is_float(value)})

    def pack(self, layout: Layout) -> bytes:
        """All values in layout order, then the highest ones. Raises WeightsMismatch for another layout."""
        return pack_buffers(layout, self.values) + pack_buffers(_counters(layout), self.highest)

    @classmethod
    def unpack(cls, layout: Layout, blob: bytes | memoryview) -> Bounds:
        """Inverse of `pack`. Raises CorruptObject."""
        values, highest = blob[: layout.buffers_bytes], blob[layout.buffers_bytes :]
        return cls(unpack_buffers(layout, values), unpack_buffers(_counters(layout), highest))

    def settled(self, layout: Layout, base: Buffers) -> Buffers:
        """The buffers for the next weights, after a round that started from `base`; see `WeightedMean.result`.

        Raises WeightsMismatch for a base of another layout.
        """
        check_values(layout, None, base)
        settled = {}
        for entry in layout.buffers:
            lowest, start = self.values[entry.name], base[entry.name]
            changed = (lowest != start) | (self.highest.get(entry.name, lowest) != start)
            settled[entry.name] = lowest if is_float(start) else advanced(start, changed)
        return settled


def bounds_bytes(layout: Layout) -> int:
    """Size of packed bounds."""
    return layout.buffers_bytes + _counters(layout).buffers_bytes


def _counters(layout: Layout) -> Layout:
    """The layout's buffers that are no floats."""
    kept = (entry for entry in layout.buffers if not np.issubdtype(np.dtype(entry.dtype), np.floating))
    return replace(layout, buffers=tuple(kept))


@dataclass(frozen=True)
class Partial:
    """A mean over some gradients."""

    gradient: NDArray[np.float32]
    """(n,)."""
    bounds: Bounds
    samples: int
    loss: float
    """Mean over the samples."""
    reduced: Reduced


class PartialMean:
    """Sample-weighted mean of gradients, or of means over groups of them, in the order of `add`; holds one gradient."""

    def __init__(self, layout: Layout, samples: int) -> None:
        """`samples` are those of all that may come. Raises ValueError unless it is positive."""
        if samples < 1:
            raise ValueError(f"a mean over {samples} samples does not exist")
        self._layout, self._announced = layout, samples
        self._gradient = GradientSum(layout.elements)
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._lowest: Buffers = {}
        self._highest: Buffers = {}
        self._samples, self._loss = 0, 0.0
        self._reduced: list[Reduced] = []

    def add(
        self,
        payload: bytes | memoryview,
        codec: GradientCodec,
        bounds: Bounds,
        samples: int,
        loss: float,
        reduced: Reduced,
    ) -> None:
        """Add one gradient (n,), or mean, as `codec` encoded it.

        Raises CorruptObject for a payload that doesn't decode and for more samples than announced, WeightsMismatch for
        buffers of another layout. After an error the mean is of no use.
        """
        if not 0 < samples <= self._announced - self._samples:
            raise CorruptObject(
                f"a mean over at most {self._announced} samples cannot have {samples} beside {self._samples} of them"
            )
        check_values(self._layout, None, bounds.values)
        check_values(_counters(self._layout), None, bounds.highest)
        self._gradient.add(payload, codec, samples / self._announced)
        self._samples += samples
        self._loss += samples / self._announced * loss
        self._reduced.append(reduced)
        for name, value in bounds.values.items():
            self._add_buffer(name, value, bounds.highest.get(name, value), samples)

    def _add_buffer(self, name: str, lowest: NDArray[Any], highest: NDArray[Any], samples: int) -> None:
        first = name not in self._lowest
        if is_float(lowest):
            weighted = lowest.astype(np.float64) * samples
            self._sums[name] = weighted if first else self._sums[name] + weighted
        # Of arrays without dimensions NumPy makes scalars.
        self._lowest[name] = np.asarray(lowest if first else np.minimum(self._lowest[name], lowest))
        self._highest[name] = np.asarray(highest if first else np.maximum(self._highest[name], highest))

    def result(self) -> Partial | None:
        """The mean over what came; None where nothing did."""
        if not self._samples:
            return None
        gradient, loss = self._gradient.result(), self._loss
        if self._samples != self._announced:
            missing = self._announced / self._samples
            np.multiply(gradient, np.float32(missing), out=gradient)
            loss *= missing
        values = dict(self._lowest)
        for name, total in self._sums.items():
            lowest = self._lowest[name]
            mean = (total / self._samples).astype(lowest.dtype)
            values[name] = np.where(lowest == self._highest[name], lowest, mean)
        highest = {name: value for name, value in self._highest.items() if name not in self._sums}
        return Partial(gradient, Bounds(values, highest), self._samples, loss, _together(self._reduced))


def item_alone(index: int, measured: Measured | None) -> Reduced:
    """What there is to say of one gradient in a mean."""
    return Reduced(
        items=(index,),
        told=measured is not None,
        step_seconds=measured.step_seconds if measured else 0.0,
        peak_bytes=measured.peak_bytes if measured else 0,
        cold_starts=measured is not None and measured.cold_start,
        weights_fetched=measured is not None and measured.weights_fetched,
    )


def _together(parts: Sequence[Reduced]) -> Reduced:
    measured = [part.step_seconds for part in parts if part.told]
    return Reduced(
        items=tuple(index for part in parts for index in part.items),
        told=sum(part.told for part in parts),
        step_seconds=statistics.median(measured) if measured else 0.0,
        peak_bytes=max(part.peak_bytes for part in parts),
        cold_starts=sum(part.cold_starts for part in parts),
        weights_fetched=sum(part.weights_fetched for part in parts),
    )


class TreeMean:
    """The same tree in one process: gradients come in the order of the round, and each group is added to the next level
    as soon as it is complete. Holds one gradient per level, three at most."""

    def __init__(self, layout: Layout, samples: Sequence[int]) -> None:
        """`samples` of each gradient to come, two at least."""
        self._layout, self._samples = layout, [list(samples)]
        self._sizes = tree(len(samples))
        for sizes in self._sizes:
            below, start = self._samples[-1], 0
            totals = []
            for size in sizes:
                totals.append(sum(below[start : start + size]))
                start += size
            self._samples.append(totals)
        self._group = [0] * len(self._sizes)  # by level: the group that is being filled,
        self._filled = [0] * len(self._sizes)  # and how many have come or are known to be missing
        self._means: list[PartialMean | None] = [None] * len(self._sizes)
        self._done: Partial | None = None

    def add(
        self,
        payload: bytes | memoryview,
        codec: GradientCodec,
        buffers: Buffers,
        samples: int,
        loss: float,
        index: int = 0,
        measured: Measured | None = None,
    ) -> None:
        """The next gradient (n,). Raises what `PartialMean.add` does."""
        self._mean(0).add(payload, codec, Bounds.of(buffers), samples, loss, item_alone(index, measured))
        self._advance(0)

    def skip(self) -> None:
        """The next gradient is missing."""
        self._mean(0)
        self._advance(0)

    def result(self) -> Partial:
        """The mean over all. Raises CorruptObject while gradients are to come, or where all are missing."""
        if self._done is None:
            raise CorruptObject("a mean over no gradients, or before all have come, does not exist")
        return self._done

    def _mean(self, level: int) -> PartialMean:
        mean = self._means[level]
        if mean is None:
            mean = self._means[level] = PartialMean(self._layout, self._samples[level + 1][self._group[level]])
        return mean

    def _advance(self, level: int) -> None:
        self._filled[level] += 1
        if self._filled[level] < self._sizes[level][self._group[level]]:
            return
        part = self._mean(level).result()
        self._means[level] = None
        self._group[level] += 1
        self._filled[level] = 0
        if level + 1 == len(self._sizes):
            self._done = part
            return
        mean = self._mean(level + 1)
        if part is not None:
            mean.add(raw(part.gradient), codec("none"), part.bounds, part.samples, part.loss, part.reduced)
        del part
        self._advance(level + 1)
