"""What one gradient reducer is asked, and what it answers: small JSON, never a tensor.

An event is `{"common": {...}, "shared": {...}, "group": {...}, "retries": n}`. `common` is that of the round's gradient
tasks (contract/tasks.py), `shared` the same for all groups of the round. Gradients and means stay in S3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, Protocol

from contract import jsonform
from contract.errors import CorruptObject
from contract.keys import Place, Places
from contract.tree import tree


class Sized(Protocol):
    """What one gradient is of: a batch, or what goes by its first batch's index."""

    @property
    def index(self) -> int: ...

    @property
    def samples(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of the tree: gradients (level 1), or means of the level below. Raises ValueError for neither."""

    level: int
    """From 1."""
    number: int
    """Within its level, from 0."""
    samples: int
    """Of all that may be in it."""
    items: tuple[tuple[int, ...], ...] = ()
    """Of each gradient: index, samples, incarnation that computed it."""
    first: int = 0
    """The first mean's number in the level below."""
    count: int = 0
    """Means of the level below."""

    def __post_init__(self) -> None:
        gradients = self.level == 1 and self.items and not self.count and all(len(item) == 3 for item in self.items)
        means = self.level > 1 and not self.items and self.count > 0 and self.first >= 0
        if not (gradients or means) or self.number < 0 or self.samples < 1:
            raise ValueError(f"group {self.number} of level {self.level} has nothing to add up")

    def to_dict(self) -> dict[str, Any]:
        """One item of a state machine's map, without what is empty."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return {name: value for name, value in form.items() if value or name in ("number", "first")}


def groups(items: Sequence[Sized], incarnation: Callable[[int], int]) -> tuple[tuple[Group, ...], ...]:
    """The tree over a round's gradients, level by level. `incarnation` tells by index which one computed it."""
    levels: list[tuple[Group, ...]] = []
    for level, sizes in enumerate(tree(len(items)), start=1):
        made = []
        for number, (start, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
            if level == 1:
                each = tuple((item.index, item.samples, incarnation(item.index)) for item in items[start:end])
                samples = sum(item.samples for item in items[start:end])
                made.append(Group(level=level, number=number, samples=samples, items=each))
            else:
                samples = sum(below.samples for below in levels[-1][start:end])
                made.append(Group(level=level, number=number, samples=samples, first=start, count=end - start))
        levels.append(tuple(made))
    return tuple(levels)


@dataclass(frozen=True, kw_only=True)
class ReduceTask:
    """One invocation's mean: everything that the result depends on."""

    places: Places
    rank: int
    """The peer that asks; its bucket holds the gradients and receives the means."""
    round: int
    incarnation: int
    weights_sha256: str
    """Name of the weights that the gradients are at (64 hex digits)."""
    codec: str
    """Of the gradients; means are float32, codec none."""
    elements: int
    """Length n of a gradient."""
    buffers: tuple[str, ...]
    """Kinds of buffers (contract/partial.py)."""
    tolerant: bool
    """Whether gradients may be missing."""
    group: Group

    def __post_init__(self) -> None:
        if self.elements < 1:
            raise ValueError(f"a gradient has at least one element, not {self.elements}")
        self.places.manifest(self.rank)  # raises ValueError for a rank without a bucket

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.places.run

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"group {self.group.number} of level {self.group.level} of rank {self.rank} in round {self.round}"

    @property
    def output(self) -> Place:
        """Where the mean goes; the same for every attempt."""
        return self.places.partial(self.rank, self.round, self.incarnation, self.group.level, self.group.number)

    def gradient(self, index: int, incarnation: int) -> Place:
        """Where the gradient of an item is."""
        return self.places.gradient(self.rank, self.round, incarnation, index)

    def below(self, number: int) -> Place:
        """Where a mean of the level below is."""
        return self.places.partial(self.rank, self.round, self.incarnation, self.group.level - 1, number)

    @classmethod
    def from_event(cls, event: object) -> ReduceTask:
        """Raises CorruptObject naming the first field that doesn't fit."""
        parts: dict[str, dict[str, Any]] = {}
        for name in ("common", "shared", "group"):
            part = event.get(name) if isinstance(event, dict) else None
            if not isinstance(part, dict):
                raise CorruptObject(f"the event of a gradient reducer lacks `{name}`")
            parts[name] = part
        known = {field.name for field in fields(cls)}
        common = {name: value for name, value in parts["common"].items() if name in known}
        return jsonform.from_dict(cls, {**common, **parts["shared"], "group": parts["group"]}, "task")


def shared_dict(*, elements: int, buffers: Sequence[str], tolerant: bool) -> dict[str, Any]:
    """The part of the event that is the same for all groups of a round."""
    return {"elements": elements, "buffers": list(buffers), "tolerant": tolerant}


@dataclass(frozen=True, kw_only=True)
class ReduceAnswer:
    """What a reducer answers once the mean lies in S3."""

    level: int
    group: int
    items: int
    """Gradients in the mean; with 0 there is none."""
    samples: int
    bytes_in: int
    seconds: float
    """From the event's arrival to the stored mean."""
    retries: int = 0
    """How many attempts of the state machine came before this one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form
