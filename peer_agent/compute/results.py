"""The gradients of a round's items in S3: which are there already, and which turn out to be of no use.

An item's gradient belongs to (run, round, weights, batch). What a predecessor on this rank, or an earlier attempt of
this process, had computed of the same is as good as new, so it is looked for before items are computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from contract import header as frame_header
from contract import wire
from contract.errors import CorruptObject, GradientFailed, ObjectMissing, StoreUnavailable
from contract.gradient_frames import differences
from contract.keys import Place
from contract.store import ObjectStore
from contract.tasks import GradientTask
from contract.wire import FrameHeader
from peer_agent.compute.batches import failing_as, name_batch
from peer_agent.compute.reduced import Tree

#: Headers read at the same time.
READERS = 8


class Sized(Protocol):
    """What one invocation computes: a batch, or what goes by its first batch's index."""

    @property
    def index(self) -> int: ...

    @property
    def samples(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Unusable(GradientFailed):
    """The result of one item cannot be used."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index
        """Of the item."""


@contextlib.contextmanager
def using(index: int, task: GradientTask) -> Iterator[None]:
    """Turn what goes wrong inside into Unusable for this item; what may pass (TransientError) stays what it is."""
    try:
        with failing_as(name_batch(index, task.rank, task.round)):
            yield
    except GradientFailed as error:
        raise Unusable(index, str(error)) from error


class Results:
    """Those of one round's task."""

    def __init__(self, store: ObjectStore, task: GradientTask) -> None:
        self._store, self._task = store, task
        self._found: dict[int, int] = {}  # incarnations by index of the item, where a result was there already

    def incarnation(self, index: int) -> int:
        """Which one computed, or is to compute, the gradient of an item."""
        return self._found.get(index, self._task.incarnation)

    def place(self, index: int) -> Place:
        """Where the gradient of an item is, or is to be."""
        task = self._task
        return task.places.gradient(task.rank, task.round, self.incarnation(index), index)

    def missing(self, items: Sequence[T]) -> list[T]:
        """Those of `items` of which no gradient at the task's weights is in S3. Raises StoreUnavailable."""
        task = self._task
        prefix = task.places.gradients(task.rank, task.round)
        lying: dict[int, list[int]] = {}
        for key in self._store.list(prefix.bucket, prefix.key, prefix.owner):
            incarnation, index = task.places.parse_gradient(task.rank, task.round, key)
            lying.setdefault(index, []).append(incarnation)

        def find(item: T) -> int | None:
            for incarnation in sorted(lying.get(item.index, ()), reverse=True):
                place = task.places.gradient(task.rank, task.round, incarnation, item.index)
                header = self._header(place)
                if header is not None and not differences(header, task, item.samples):
                    return incarnation
            return None

        with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
            found = dict(zip((item.index for item in items), pool.map(find, items), strict=True))
        self._found.update({index: incarnation for index, incarnation in found.items() if incarnation is not None})
        return [item for item in items if found[item.index] is None]

    def forget(self, index: int) -> None:
        """Remove a result of no use, so that whoever tries again does not take it for one."""
        with contextlib.suppress(StoreUnavailable):
            self._store.delete([self.place(index)])
        self._found.pop(index, None)

    def _header(self, place: Place) -> FrameHeader | None:
        """Of the frame there; None where there is none or it is none. The payload is checked by whoever reads it."""
        try:
            length = frame_header.declared_length(self._store.get_range(place, 0, frame_header.FIXED_BYTES))
            return wire.decode_header(self._store.get_range(place, 0, length))
        except (CorruptObject, ObjectMissing):
            return None


@dataclass
class Effort:
    """What a round has taken so far, and what has come to nothing."""

    executions: int = 0
    invocations: int = 0
    reducers: int = 0
    reductions: int = 0
    """Executions that were asked to add gradients up."""
    children: int = 0
    """Executions that distributed maps started."""
    bytes_out: int = 0
    tree: Tree | None = None
    """What the last execution's reducers were asked; None without any."""
    not_reduced: str = ""
    """Why there is no mean of theirs."""
    failures: dict[int, str] = field(default_factory=dict)
    """Sentences on failed items, by index; those whose cause is known stand first."""
    missing: list[int] = field(default_factory=list)
    """Indices of all items that are given up."""

    @contextlib.contextmanager
    def charged(self) -> Iterator[None]:
        """A round that fails inside carries what it took all the same."""
        try:
            yield
        except GradientFailed as error:
            error.invocations, error.executions = self.invocations, self.executions
            raise
