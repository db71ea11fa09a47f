"""The means that reducers make of a round's gradients: what an execution is asked, and what came of it.

A mean that is not there, or not the one that was asked for, costs the peer nothing but time: the gradients themselves
stay in S3 until the round is done, and it adds them up in the order of the same tree, to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.codec import codec
from contract.config import ComputeConfig
from contract.errors import CorruptObject
from contract.gradient_frames import checked
from contract.keys import Place
from contract.partial import Bounds, Partial, bounds_bytes, buffer_kinds
from contract.reduce_tasks import Group, Sized, groups, shared_dict
from contract.store import ObjectStore
from contract.tasks import Failure, GradientTask, items_json
from contract.tensors import Layout
from contract.tree import reducers, reduces
from peer_agent.compute.causes import cause
from peer_agent.compute.diagnosis import CHILD_FAILED

LEVELS = ("level1", "level2", "level3")


def is_reduced(compute: ComputeConfig, elements: int, count: int) -> bool:
    """Whether a round's `count` gradients (n,) are added up as a tree; alike in both gradient services."""
    encoded = codec(compute.gradient_codec).encoded_bytes(elements)
    return reduces(compute.reduce, count, encoded, codec("none").encoded_bytes(elements))


def planned_reducers(compute: ComputeConfig, elements: int, count: int) -> int:
    """Invocations that add up a round's `count` gradients (n,), without retries."""
    return reducers(count) if is_reduced(compute, elements, count) else 0


@dataclass(frozen=True)
class Tree:
    """What the reducers of one round are asked."""

    task: GradientTask
    levels: tuple[tuple[Group, ...], ...]
    shared: Mapping[str, Any]

    @classmethod
    def over(
        cls,
        task: GradientTask,
        items: Sequence[Sized],
        incarnation: Callable[[int], int],
        layout: Layout,
        tolerant: bool,
    ) -> Tree:
        """The tree over `items`; `incarnation` tells by index which one computed, or is to compute, it."""
        shared = shared_dict(elements=layout.elements, buffers=buffer_kinds(layout), tolerant=tolerant)
        return cls(task, groups(items, incarnation), shared)

    @property
    def reducers(self) -> int:
        """Invocations, without retries."""
        return sum(len(level) for level in self.levels)

    @property
    def place(self) -> Place:
        """Where the mean over all is to be."""
        return self._partial(self.levels[-1][0])

    def part(self, distributed: bool) -> dict[str, Any]:
        """The part `reduce` of the execution's input; of a `distributed` map the first level lies in S3."""
        levels = [[group.to_dict() for group in level] for level in self.levels]
        named: dict[str, Any] = dict(zip(LEVELS, levels + [[]] * (len(LEVELS) - len(levels)), strict=True))
        if distributed:
            del named[LEVELS[0]]
            named["groups"] = {"bucket": self.groups_place.bucket, "key": self.groups_place.key}
        return {"shared": self.shared, **named}

    @property
    def groups_place(self) -> Place:
        """Where a distributed map finds the first level."""
        return self.task.places.groups(self.task.rank, self.task.round, self.task.incarnation)

    def groups_json(self) -> bytes:
        """The first level as it lies there."""
        return items_json(self.levels[0])

    def garbage(self, distributed: bool) -> list[Place]:
        """What the reducers left, and what they were given."""
        left = [self._partial(group) for level in self.levels for group in level]
        return [*left, self.groups_place] if distributed else left

    def read(self, store: ObjectStore, layout: Layout, used: Sequence[Sized]) -> tuple[Partial, int]:
        """The mean over all, if it is over exactly the gradients of the items `used`; and the bytes read.

        Raises CorruptObject, ObjectMissing, WeightsMismatch, StoreUnavailable.
        """
        blob = store.get(self.place)
        frame = checked(
            blob,
            self.place,
            dataclasses.replace(self.task, codec="none"),
            sum(item.samples for item in used),
            elements=layout.elements,
            buffers_bytes=bounds_bytes(layout),
        )
        header = frame.header
        if header.reduced is None or header.reduced.items != tuple(item.index for item in used):
            raise CorruptObject(f"{self.place} holds no mean over the {len(used)} gradients of this round")
        codec("none").check(frame.payload, layout.elements)
        gradient = np.frombuffer(frame.payload, "<f4").astype(np.float32)  # a copy, as the frame's bytes are read-only
        bounds = Bounds.unpack(layout, frame.buffers)
        return Partial(gradient, bounds, header.samples, header.loss or 0.0, header.reduced), len(blob)

    def _partial(self, group: Group) -> Place:
        task = self.task
        return task.places.partial(task.rank, task.round, task.incarnation, group.level, group.number)


@dataclass(frozen=True)
class Outcome:
    """What an execution's output says of its reducers."""

    invocations: int
    """Retries included, as far as the output counts them; those of a stage that failed are taken to be all."""
    failure: str
    """Why there is no mean over all; "" where there is one."""

    @classmethod
    def of(
        cls,
        description: Mapping[str, Any],
        tree: Tree,
        compute: ComputeConfig,
        children: Callable[[], Sequence[tuple[str, Failure]]] = tuple,
    ) -> Outcome:
        """From `describe_execution`'s answer. `children` gives inputs and failures of a distributed map's children,
        whose own words say more than the map's."""
        try:
            output = json.loads(description["output"])
            levels, failure = output.get("reducers"), output.get("not_reduced")
        except (KeyError, TypeError, ValueError, AttributeError):
            status = str(description["status"]).lower().replace("_", " ")
            return cls(0, f"its execution {status}")
        if isinstance(failure, dict):
            told = Failure.parse(str(failure.get("Error") or ""), str(failure.get("Cause") or ""))
            if told.name == CHILD_FAILED:
                told = next((failure for given, failure in children() if '"group"' in given), told)
            return cls(tree.reducers, cause(told, compute))
        if not isinstance(levels, dict):
            return cls(0, "the state machine has no reducers")
        counts = [told for level in LEVELS for told in levels.get(level) or () if type(told) is int]
        if len(counts) != tree.reducers:
            return cls(tree.reducers, f"of {tree.reducers} reducers {len(counts)} have answered")
        return cls(len(counts) + sum(counts), "")
