"""What one peer's part of a run used by the piece, as the peer itself counts it: what a run's bill is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Used:
    """Counts of one process, from its start on; what a process used that died without a report is not in any."""

    store_gets: int = 0
    """The peer's own requests to S3 that read, failed attempts included."""
    store_puts: int = 0
    """The same that write or list, which cost alike."""
    store_bytes: int = 0
    """Bytes of the objects that it wrote."""
    worker_gets: int = 0
    """Reads of its gradient workers and reducers, and of Step Functions for a distributed map. Counted from what each
    invocation must read, and for weights from what workers told."""
    worker_puts: int = 0
    """Writes of the same."""
    worker_seconds: float = 0.0
    """Forward and backward passes as workers told them: their median per batch, times the batches. What an invocation
    does besides (reading, writing, the codec) is not in it."""
    cold_starts: int = 0
    """Invocations that workers told to be their process's first. Reducers do not tell."""
    reducers: int = 0
    """Invocations that added gradients up, retries included."""
    reductions: int = 0
    """Executions that did so."""
    children: int = 0
    """Executions that distributed maps started."""
    caught: int = 0
    """Items whose failure an execution caught, as `compute.tolerated_failures` allows."""
    execution_seconds: float = 0.0
    """How long its executions lasted, as the stage that waited for them."""
