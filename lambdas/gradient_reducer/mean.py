"""From a task and the frames of its group to the frame of their mean; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from contract.codec import codec, raw
from contract.errors import CorruptObject, PeerlessError
from contract.extensions import reduced_extension
from contract.gradient_frames import checked, header
from contract.keys import Place
from contract.partial import Bounds, PartialMean, bounds_bytes, item_alone, nameless_layout
from contract.reduce_tasks import ReduceTask
from contract.tensors import Layout, unpack_buffers
from contract.wire import encode


@dataclass(frozen=True)
class Input:
    """One frame of a group."""

    name: str
    """How messages name it."""
    place: Place
    samples: int | None
    """None where it may have fewer than announced."""
    index: int | None
    """Of the item whose gradient it is; None for a mean."""


def inputs(task: ReduceTask) -> list[Input]:
    """The frames of the group, in the order in which they are added up."""
    group = task.group
    if group.level == 1:
        return [
            Input(f"batch {index}", task.gradient(index, incarnation), samples, index)
            for index, samples, incarnation in group.items
        ]
    numbers = range(group.first, group.first + group.count)
    return [Input(f"group {n} of level {group.level - 1}", task.below(n), None, None) for n in numbers]


@contextmanager
def naming(task: ReduceTask, name: str = "") -> Iterator[None]:
    """Errors from inside say which group and which of its frames they befell, and keep their class, so that Retry
    rules still match."""
    try:
        yield
    except PeerlessError as error:
        raise type(error)(f"{task.name}: {f'{name}: ' if name else ''}{error}") from error


@dataclass(frozen=True)
class Result:
    """A frame with what the answer repeats of it."""

    frame: bytes
    items: int
    samples: int


def mean_frame(task: ReduceTask, blobs: Iterable[tuple[Input, bytes | None]]) -> Result | None:
    """The sample-weighted mean over the group's `blobs`; None stands for one that is missing and may be.

    Holds the mean and one blob, where the iterable does. None where all are missing. Raises CorruptObject and
    WeightsMismatch, naming group and frame, for a frame that is not what the task names.
    """
    with naming(task):
        layout = nameless_layout(task.elements, task.buffers)
    mean = PartialMean(layout, task.group.samples)
    for source, blob in blobs:
        if blob is not None:
            with naming(task, source.name):
                _add(mean, task, layout, source, blob)
        del blob  # before the next one is fetched
    with naming(task):
        made = mean.result()
        if made is None:
            return None
        told = header(
            task,
            samples=made.samples,
            loss=made.loss,
            codec="none",
            seed=0,
            elements=task.elements,
            extensions=(reduced_extension(made.reduced),),
        )
        frame = encode(told, raw(made.gradient), made.bounds.pack(layout))
    return Result(frame, len(made.reduced.items), made.samples)


def _add(mean: PartialMean, task: ReduceTask, layout: Layout, source: Input, blob: bytes) -> None:
    if source.index is not None:
        frame = checked(
            blob, source.place, task, source.samples, elements=task.elements, buffers_bytes=layout.buffers_bytes
        )
        bounds = Bounds.of(unpack_buffers(layout, frame.buffers))
        reduced = item_alone(source.index, frame.header.measured)
    else:
        frame = checked(
            blob,
            source.place,
            replace(task, codec="none"),
            source.samples,
            elements=task.elements,
            buffers_bytes=bounds_bytes(layout),
        )
        if frame.header.reduced is None:
            raise CorruptObject(f"{source.place} holds a gradient in place of a mean")
        bounds, reduced = Bounds.unpack(layout, frame.buffers), frame.header.reduced
    told = frame.header
    mean.add(frame.payload, codec(told.codec), bounds, told.samples, told.loss or 0.0, reduced)
