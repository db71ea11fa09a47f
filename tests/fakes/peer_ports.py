"""A peer's ports without processes, sockets and waiting.

QuadraticGradients pull the weights towards a point that belongs to the rank, so that the weighted mean of the points is
where a run must end; TorchGradients compute real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import models
from contract.batches import BatchRef, decode_batch
from contract.errors import GradientFailed
from contract.gradients import batch_gradient
from contract.local_steps import LocalSteps
from contract.runspec import RunSpec
from contract.tensors import Buffers, Layout
from peer_agent.background import Finished
from peer_agent.ports import Beat, Delivery, Exchange, ExchangeCounts, RoundGradient
from tests.fakes.clock import FakeClock
from tests.fakes.store import MemoryStore


class Inline:
    """Background that runs a job when its outcome is asked for."""

    def __init__(self) -> None:
        self._jobs: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = []

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def start(self, job: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        self._jobs.append((job, then))

    def finished(self, timeout_seconds: float) -> list[Finished]:
        jobs, self._jobs = self._jobs, []
        return [self._outcome(job, then) for job, then in jobs]

    @staticmethod
    def _outcome(job: Callable[[], Any], then: Callable[[Any], Any]) -> Finished:
        try:
            return Finished(then, value=job())
        except Exception as error:
            return Finished(then, error=error)


@dataclass
class _Stage:
    bytes_in: int = 0
    bytes_out: int = 0


class CountingMetrics:
    """Counts entries and bytes per stage; measures no time."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, int]] = []
        self.stages: dict[str, _Stage] = {}

    @contextmanager
    def stage(self, name: str, round: int) -> Any:
        self.entered.append((name, round))
        yield self.stages.setdefault(name, _Stage())

    def totals(self) -> dict[str, dict[str, Any]]:
        return {n: {"seconds": 0.0, "bytes_in": s.bytes_in, "bytes_out": s.bytes_out} for n, s in self.stages.items()}


class SteppedExchange:
    """An exchange whose waiting is virtual. `loses(kind, body)` says what never arrives; `twice` doubles the rest."""

    def __init__(self, inner: Exchange, clock: FakeClock, waits: bool = False) -> None:
        self.inner, self._clock, self._waits = inner, clock, waits
        self.counts: ExchangeCounts = inner.counts
        self.loses: Callable[[str, bytes], bool] = lambda kind, body: False
        self.twice = False
        self.sent: list[str] = []

    @property
    def away_seconds(self) -> float:
        return self.inner.away_seconds

    @property
    def up_since(self) -> float | None:
        return self.inner.up_since

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        self.sent.append(kind)
        if not self.loses(kind, body):
            for _ in range(1 + self.twice):
                self.inner.publish(kind, body, to)

    def beat(self, body: bytes) -> None:
        self.inner.beat(body)

    def beats(self) -> list[Beat]:
        return self.inner.beats()

    def admit(self, rank: int) -> None:
        self.inner.admit(rank)

    def poll(self, timeout_seconds: float) -> list[Delivery]:
        found = self.inner.poll(timeout_seconds if self._waits else 0.0)
        if not found and not self._waits:
            self._clock.sleep(timeout_seconds)
        return found

    def acknowledge(self, delivery: Delivery) -> None:
        self.inner.acknowledge(delivery)

    def close(self, *, retire: bool = False) -> None:
        self.inner.close(retire=retire)


class QuadraticGradients:
    """Gradient of half the squared distance to this rank's own point: weights minus point, exactly."""

    def __init__(self, rank: int, samples: int, elements: int) -> None:
        self.point = np.full(elements, float(rank), np.float32)
        self._samples = samples
        self.weights_seen: list[str] = []
        self.fails_in_round: int | None = None
        self.closed = False

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
        if round == self.fails_in_round:
            raise GradientFailed(f"batch {batches[0].index} of round {round} failed: the test wants it")
        self.weights_seen.append(weights_sha256)
        return RoundGradient(
            gradient=flat - self.point,
            buffers=buffers,
            samples=self._samples,
            loss=float(np.mean((flat - self.point) ** 2) / 2),
            invocations=len(batches),
            executions=1,
            bytes_in=0,
            bytes_out=0,
        )

    def close(self) -> None:
        self.closed = True


class TorchGradients:
    """The mean over the real batches' gradients, weighted by samples, in float64."""

    def __init__(self, spec: RunSpec, store: MemoryStore, rank: int) -> None:
        self._spec, self._store, self._rank = spec, store, rank
        self._model = models.build(spec.model)
        self._layout = Layout.of(self._model)

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
        found = []
        for batch in batches:
            x, y = decode_batch(self._store.get(self._spec.places.batch(self._rank, batch.index)), batch.sha256)
            loss = self._spec.config.loss
            found.append(batch_gradient(self._model, self._layout, loss, flat, buffers, x, y, seed=seed))
        total = sum(b.samples for b in found)
        mean = sum(b.gradient.astype(np.float64) * (b.samples / total) for b in found)
        averaged = {
            name: (
                sum(b.buffers[name].astype(np.float64) * (b.samples / total) for b in found).astype(value.dtype)
                if np.issubdtype(value.dtype, np.floating)
                else np.asarray(value + 1)
            )
            for name, value in buffers.items()
        }
        return RoundGradient(
            gradient=np.asarray(mean, np.float32),
            buffers=averaged,
            samples=total,
            loss=sum(b.loss * b.samples for b in found) / total,
            invocations=0,
            executions=0,
            bytes_in=0,
            bytes_out=0,
        )

    def close(self) -> None:
        """Holds nothing."""
