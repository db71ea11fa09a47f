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
from contract.extensions import Measured
from contract.tensors import Buffers, Layout
from peer_agent.ports import RoundGradient, Work


class BatchMean:
    """Sample-weighted mean of gradient, buffers and loss over a round's batches, added in the order of the round."""

    def __init__(self, layout: Layout, batches: Sequence[BatchRef | Share]) -> None:
        self._samples = sum(batch.samples for batch in batches)
        self._mean = WeightedMean(layout, self._samples)
        self._loss = 0.0

    def add(
        self, payload: bytes | memoryview, codec: GradientCodec, buffers: Buffers, samples: int, loss: float
    ) -> None:
        """Add one batch, or the mean of several: a gradient (n,) as `codec` encoded it.

        Raises CorruptObject, WeightsMismatch.
        """
        self._mean.add(payload, codec, buffers, samples)
        self._loss += samples / self._samples * loss

    def result(
        self,
        base_buffers: Buffers,
        *,
        invocations: int,
        executions: int,
        bytes_in: int,
        bytes_out: int,
        work: Work | None = None,
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
            work=work,
        )


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
