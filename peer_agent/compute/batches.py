"""What both gradient services share: fetching one object ahead, and the sample-weighted mean over batches.

Shapes: n parameters (`Layout.elements`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from contract.averaging import WeightedMean
from contract.batches import BatchRef
from contract.codec import GradientCodec
from contract.errors import GradientFailed, PeerlessError, TransientError
from contract.tensors import Buffers, Layout
from peer_agent.ports import RoundGradient

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(fetch: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    """Each item with what `fetch` makes of it, in order; the next is fetched while the caller works on one.

    Two results at most are in memory, whatever the number of items. Raises what `fetch` raises, at that item.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        upcoming = pool.submit(fetch, items[0])
        for position, item in enumerate(items):
            value = upcoming.result()
            if position + 1 < len(items):
                upcoming = pool.submit(fetch, items[position + 1])
            yield item, value


class BatchMean:
    """Sample-weighted mean of gradient, buffers and loss over a round's batches, added in the order of the round."""

    def __init__(self, layout: Layout, batches: Sequence[BatchRef]) -> None:
        self._samples = sum(batch.samples for batch in batches)
        self._mean = WeightedMean(layout, self._samples)
        self._loss = 0.0

    def add(
        self, payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int, loss: float
    ) -> None:
        """Add one batch: its gradient (n,) as `codec` encoded it. Raises CorruptObject, WeightsMismatch."""
        self._mean.add(payload, codec, buffers, samples)
        self._loss += samples / self._samples * loss

    def result(
        self, base_buffers: Buffers, *, invocations: int, executions: int, bytes_in: int, bytes_out: int
    ) -> RoundGradient:
        """The mean. Raises CorruptObject when batches are missing."""
        gradient, buffers = self._mean.result(base_buffers)
        return RoundGradient(
            gradient=gradient,
            buffers=buffers,
            samples=self._samples,
            loss=self._loss,
            invocations=invocations,
            executions=executions,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        )


def name_batch(batch: int, rank: int, round: int) -> str:
    """How every message about a gradient names its batch, the workers' own ones too."""
    return f"batch {batch} of rank {rank} in round {round}"


def name_batches(batches: Sequence[BatchRef], rank: int, round: int) -> str:
    """The same of several that one worker takes steps with."""
    more = f" and {len(batches) - 1} more" if len(batches) > 1 else ""
    return name_batch(batches[0].index, rank, round).replace(" of", f"{more} of", 1)


def whole(batches: Sequence[BatchRef]) -> BatchRef:
    """What stands for all batches of one worker: its first one, with the samples of all."""
    return replace(batches[0], samples=sum(batch.samples for batch in batches))


@contextmanager
def failing_as(where: str) -> Iterator[None]:
    """Turn what goes wrong inside into GradientFailed for `where`; what may pass (TransientError) stays what it is."""
    try:
        yield
    except TransientError:
        raise
    except (PeerlessError, MemoryError) as error:
        cause = str(error) or "out of memory"
        raise GradientFailed(f"no gradient for {where}: {cause} ({type(error).__name__})") from error
