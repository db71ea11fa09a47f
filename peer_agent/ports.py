"""What the runner needs from the outside, as small protocols.

The real ports are `peer_agent.exchange` (RabbitMQ), `peer_agent.compute` (Step Functions, or this process),
`peer_agent.metrics` and `contract.store` (S3). Tests give their own. Timeouts are in seconds and given by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.batches import BatchRef
from contract.clock import Clock
from contract.events import EventLog
from contract.local_steps import LocalSteps
from contract.signing import SigningKey
from contract.store import ObjectStore, StoreCounts
from contract.tensors import Buffers
from peer_agent.background import Background


@dataclass(frozen=True)
class Delivery:
    """One message from this peer's inbox, not acknowledged yet."""

    sender: int | None
    """Rank of the sender, as the message's properties name it; None when they name none."""
    kind: str
    """`frame`: a contribution's wire frame, or its header part alone (claim check). `commit`, `result`, `hello` (a
    member record), `stop`: the JSON of contract.records."""
    body: bytes
    token: object
    """Whatever the exchange needs to acknowledge it."""


@dataclass(frozen=True)
class Beat:
    """One heartbeat of another process."""

    sender: int | None
    """Rank of the sender as the way shows it by which it came; None where it shows none."""
    body: bytes
    """The JSON of contract.records.Heartbeat."""
    at: float
    """When it arrived, in monotonic seconds."""


class ExchangeCounts(Protocol):
    """Bytes of message bodies and numbers of messages since the start; a body sent to n peers counts n times."""

    bytes_sent: int
    bytes_received: int
    messages_sent: int
    messages_received: int


class Exchange(Protocol):
    """Messages and heartbeats between peers. Losing, doubling and reordering them costs time and nothing else.

    Nothing here waits for a broker that is away: `away_seconds` tells, and S3 alone carries the run meanwhile.
    """

    counts: ExchangeCounts

    @property
    def away_seconds(self) -> float:
        """How long nothing can have been heard from others; 0 while messages and heartbeats come through."""

    @property
    def up_since(self) -> float | None:
        """Since when they have come through, in monotonic seconds; None while they do not. Another value than the last
        tells of an outage in between: nobody's silence before it counts."""

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        """Put a persistent message into the inbox of every other peer that has one, or of rank `to` alone.

        Returns once it is confirmed, or after a few seconds without: then it waits, and is sent when the broker is
        back, unless too many later ones have come. Raises BrokerUnavailable once closed.
        """

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        """What has arrived; waits for at least one message, up to the timeout. Raises BrokerUnavailable once closed."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Let the broker forget a message; only after its effect is durable."""

    def beat(self, body: bytes) -> None:
        """Say this to those who watch this peer, now and at regular intervals, until the next call or `close`; it goes
        on while the caller computes."""

    def beats(self) -> list[Beat]:
        """The heartbeats of those whom this peer watches, since the last call. One of the own rank is another
        process's, which holds the rank too."""

    def admit(self, rank: int) -> None:
        """Hear `rank`, which joined after the start, and watch it where it is this peer's turn. Does no harm twice."""

    def close(self, *, retire: bool = False) -> None:
        """Leave the broker. Unacknowledged messages stay in the inbox for a successor.

        `retire` says that the run has ended: the inbox is removed.
        """


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the gradient workers of a round measured themselves."""

    batches_per_worker: int
    """Batches of the largest invocation."""
    step_seconds: float
    """Forward and backward pass of one batch, the median over the invocations."""
    peak_bytes: int
    """Largest resident set of a worker's process."""
    cold_starts: int
    """Invocations that were their process's first."""
    weights_fetched: int
    """Invocations for which the weights came from S3."""


@dataclass(frozen=True, kw_only=True)
class RoundGradient:
    """The sample-weighted mean over one peer's batches of one round."""

    gradient: NDArray[np.float32]
    """Shape (n,), in the layout's order; where workers take steps of their own, their update."""
    buffers: Buffers
    """After the forward passes, averaged over batches by samples (integer counters: the base's, plus one)."""
    samples: int
    loss: float
    """Mean training loss over the samples."""
    invocations: int = 0
    """Lambda invocations, retries included; 0 in process."""
    reducers: int = 0
    """Those among them that added gradients up."""
    executions: int = 0
    """State machine executions; 0 in process."""
    reductions: int = 0
    """Those among them that were asked to add gradients up."""
    children: int = 0
    """Executions that their distributed maps started."""
    items: int = 0
    """Invocations that the round's batches were divided into, without retries and reducers."""
    bytes_in: int = 0
    """Bytes fetched: gradients from S3, or batches in process."""
    bytes_out: int = 0
    """Bytes uploaded: inputs of the execution."""
    not_reduced: str = ""
    """Why the peer had to add its gradients up itself, where reducers should have; the result is the same."""
    failures: tuple[str, ...] = ()
    """A sentence for each batch (or invocation) that failed and is not in the mean, as `compute.tolerated_failures`
    allows; `samples` counts the others' alone."""
    batches_failed: int = 0
    """Batches that are not in the mean: those of failed invocations."""
    work: Work | None = None
    """None where no worker measured anything, as in process."""


class GradientService(Protocol):
    """Computes one peer's gradient of a round, wherever."""

    def compute(
        self,
        *,
        round: int,
        incarnation: int,
        weights_sha256: str,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
        steps: LocalSteps | None = None,
    ) -> RoundGradient:
        """Gradient at `flat` (n,) float32 and `buffers`, which `weights_sha256` names and which lie in the run's bucket
        under that hash; or the update that `steps` with these batches, one after the other, come to. Raises
        GradientFailed naming the batch and the cause."""

    def close(self) -> None:
        """Give back what it holds; a running execution is stopped."""


class StageRecord(Protocol):
    """The figures of one stage while it runs; whoever moves bytes adds them here."""

    bytes_in: int
    bytes_out: int


class Metrics(Protocol):
    """Time, CPU, memory and bytes per stage of the paper's Table I: compute, send, receive, update, convergence."""

    def stage(self, name: str, round: int) -> AbstractContextManager[StageRecord]:
        """Measure what happens inside; emits a `stage` event at its end."""

    def totals(self) -> dict[str, dict[str, Any]]:
        """Per stage: seconds, cpu_percent, peak_bytes, peak_rss_bytes, bytes_in, bytes_out."""


class CountedStore(ObjectStore, Protocol):
    """An object store that counts what goes through it."""

    counts: StoreCounts


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything outside of this process's own memory."""

    store: CountedStore
    exchange: Exchange
    gradients: GradientService
    metrics: Metrics
    events: EventLog
    clock: Clock
    background: Background
    key: SigningKey
    """This process's own, which its member record names."""
