"""The gradients of a round's items in S3: which are there already, and which turn out to be of no use.

An item's gradient belongs to (run, round, weights, batch). What a predecessor on this rank, or an earlier attempt of
this process, had computed of the same is as good as new, so it is looked for before items are computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from contract import header as frame_header
from contract import wire
from contract.errors import CorruptObject, GradientFailed, ObjectMissing, StoreUnavailable
from contract.keys import Place
from contract.store import ObjectStore
from contract.tasks import GradientTask
from contract.wire import FrameHeader
from peer_agent.compute.batches import failing_as, name_batch

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


@contextmanager
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
        self._earlier: dict[int, Place] = {}  # of items by index, where not this incarnation computed them

    def place(self, index: int) -> Place:
        """Where the gradient of an item is, or is to be."""
        task = self._task
        computed = task.places.gradient(task.rank, task.round, task.incarnation, index)
        return self._earlier.get(index, computed)

    def missing(self, items: Sequence[T]) -> list[T]:
        """Those of `items` of which no gradient at the task's weights is in S3. Raises StoreUnavailable."""
        task = self._task
        prefix = task.places.gradients(task.rank, task.round)
        lying: dict[int, list[int]] = {}
        for key in self._store.list(prefix.bucket, prefix.key, prefix.owner):
            incarnation, index = task.places.parse_gradient(task.rank, task.round, key)
            lying.setdefault(index, []).append(incarnation)

        def find(item: T) -> Place | None:
            for incarnation in sorted(lying.get(item.index, ()), reverse=True):
                place = task.places.gradient(task.rank, task.round, incarnation, item.index)
                header = self._header(place)
                if header is not None and not differences(header, task, item.samples):
                    return place
            return None

        with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
            found = dict(zip((item.index for item in items), pool.map(find, items), strict=True))
        self._earlier.update({index: place for index, place in found.items() if place is not None})
        return [item for item in items if found[item.index] is None]

    def forget(self, index: int) -> None:
        """Remove a result of no use, so that whoever tries again does not take it for one."""
        with contextlib.suppress(StoreUnavailable):
            self._store.delete([self.place(index)])
        self._earlier.pop(index, None)

    def _header(self, place: Place) -> FrameHeader | None:
        """Of the frame there; None where there is none or it is none. The payload is checked by whoever reads it."""
        try:
            length = frame_header.declared_length(self._store.get_range(place, 0, frame_header.FIXED_BYTES))
            return wire.decode_header(self._store.get_range(place, 0, length))
        except (CorruptObject, ObjectMissing):
            return None


def differences(header: FrameHeader, task: GradientTask, samples: int) -> Mapping[str, tuple[object, object]]:
    """What a frame is (found, asked for) that the task's result for an item of so many samples would not be.

    An earlier incarnation of the rank may have computed it.
    """
    found = {
        "weights": (header.base_weights, task.weights_sha256),
        "kind": (header.kind, wire.Kind.GRADIENT),
        "run": (header.run, task.run),
        "round": (header.round, task.round),
        "rank": (header.rank, task.rank),
        "incarnation": (header.incarnation, min(header.incarnation, task.incarnation)),
        "codec": (header.codec, task.codec),
        "samples": (header.samples, samples),
    }
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}
