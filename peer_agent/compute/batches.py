"""What both gradient services share: the sample-weighted mean over batches, and how errors name them.

Shapes: n parameters (`Layout.elements`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from contract.averaging import WeightedMean
from contract.batches import BatchRef, Share
from contract.codec import GradientCodec
from contract.errors import GradientFailed, PeerlessError, TransientError
from contract.extensions import Measured, Reduced
from contract.partial import Partial, TreeMean
from contract.tensors import Buffers, Layout
from peer_agent.ports import RoundGradient, Work


class BatchMean:
    """Sample-weighted mean of gradient, buffers and loss over a round's batches, added in the order of the round."""

    def __init__(self, layout: Layout, batches: Sequence[BatchRef | Share], *, as_tree: bool = False) -> None:
        """`as_tree`: in the groups in which reducers would add them up, which other bits follow from."""
        self._layout = layout
        samples = [batch.samples for batch in batches]
        self._samples = sum(samples)
        self._tree = TreeMean(layout, samples) if as_tree else None
        self._mean = None if as_tree else WeightedMean(layout, self._samples)
        self._loss = 0.0

    def add(
        self, payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int, loss: float
    ) -> None:
        """Add one batch, or the mean of several: a gradient (n,) as `codec` encoded it.

        Raises CorruptObject, WeightsMismatch.
        """
        if self._tree is not None:
            self._tree.add(payload, codec, buffers, samples, loss)
        if self._mean is not None:
            self._mean.add(payload, codec, buffers, samples)
            self._loss += samples / self._samples * loss

    def skip(self) -> None:
        """The next one is missing; only a tree is told."""
        if self._tree is not None:
            self._tree.skip()

    def result(self, base_buffers: Buffers) -> RoundGradient:
        """The mean, without what it has taken. Raises CorruptObject when batches are missing that were not skipped."""
        if self._tree is not None:
            return of_part(self._layout, self._tree.result(), base_buffers)
        assert self._mean is not None
        gradient, buffers = self._mean.result(base_buffers)
        return RoundGradient(gradient=gradient, buffers=buffers, samples=self._samples, loss=self._loss)


def of_part(layout: Layout, part: Partial, base_buffers: Buffers) -> RoundGradient:
    """The same of a mean over all. Raises WeightsMismatch for a base of another layout."""
    buffers = part.bounds.settled(layout, base_buffers)
    return RoundGradient(gradient=part.gradient, buffers=buffers, samples=part.samples, loss=part.loss)


def work_of(batches_per_worker: int, measured: Sequence[Measured]) -> Work | None:
    """What the workers of a round told, together; None where none told anything. `batches_per_worker`: at most."""
    if not measured:
        return None
    return Work(
        batches_per_worker=batches_per_worker,
        step_seconds=statistics.median(each.step_seconds for each in measured),
        peak_bytes=max(each.peak_bytes for each in measured),
        cold_starts=sum(each.cold_start for each in measured),
        weights_fetched=sum(each.weights_fetched for each in measured),
    )


def work_told(batches_per_worker: int, told: Reduced) -> Work | None:
    """The same where a reducer has put it together."""
    if not told.told:
        return None
    return Work(
        batches_per_worker=batches_per_worker,
        step_seconds=told.step_seconds,
        peak_bytes=told.peak_bytes,
        cold_starts=told.cold_starts,
        weights_fetched=told.weights_fetched,
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
