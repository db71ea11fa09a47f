"""A whole run of several peers in one process: stepped in turn with virtual time, or each in threads of its own.

QuadraticGradients pull the weights towards a point that belongs to the rank, so that the weighted mean of the points is
where a run must end; TorchGradients compute real ones.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract import models
from contract.batches import BatchRef, Manifest, decode_batch, encode_batch
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.errors import GradientFailed
from contract.events import EventLog
from contract.gradients import batch_gradient
from contract.joining import Joined, joined_ranks, take_rank
from contract.keys import Places
from contract.local_steps import LocalSteps
from contract.modelspec import ModelSpec
from contract.records import Member, PeerReport
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.signing import SigningKey
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout, encode_weights, flatten, read_buffers, weights_hash
from peer_agent.actions import Actions, Ports
from peer_agent.actions_async import AsyncActions
from peer_agent.actions_sync import SyncActions
from peer_agent.background import Finished, Threads
from peer_agent.exchange.null import NullExchange, S3Pulses
from peer_agent.keyring import USE
from peer_agent.membership import claim
from peer_agent.ports import Beat, Delivery, Exchange, ExchangeCounts, RoundGradient
from peer_agent.runner import Runner
from tests.fakes.clock import FakeClock
from tests.fakes.exchange import MemoryBroker, SteppedNullExchange
from tests.fakes.store import MemoryStore

CLASSES, SIZE = 3, 4


def build_model(classes: int, channels: int, image_size: int, norm: bool = False, hidden: int = 0) -> torch.nn.Module:
    """A linear classifier, behind BatchNorm where `norm` is true, and behind a layer of `hidden` units where there are
    some."""
    layers: list[torch.nn.Module] = [torch.nn.BatchNorm2d(channels)] if norm else []
    layers += [torch.nn.Flatten()]
    if hidden:
        layers += [torch.nn.Linear(channels * image_size**2, hidden), torch.nn.ReLU()]
    layers += [torch.nn.Linear(hidden or channels * image_size**2, classes)]
    return torch.nn.Sequential(*layers)


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images x (count, 1, SIZE, SIZE) whose brightest third tells the class y (count,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    x[torch.arange(count), 0, y] += 1.5
    return x, y


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


@dataclass
class Peer:
    """One peer of a Stage."""

    runner: Runner
    exchange: SteppedExchange
    gradients: Any
    metrics: CountingMetrics
    error: Exception | None = None
    report: PeerReport | None = None

    @property
    def actions(self) -> Actions:
        return self.runner.actions


@dataclass
class Cast:
    """All peers of one run over one store and one broker; `broker=False` leaves S3 alone to carry it."""

    config: RunConfig
    sample_counts: tuple[int, ...]
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: FakeClock = field(default_factory=FakeClock)
    broker: bool = True
    norm: bool = False
    events: Path | None = None
    gradients: Callable[[RunSpec, MemoryStore, int], Any] | None = None
    late: int = 0
    """So many of the highest ranks are not there at the start; the test adds them."""
    threads: bool = False
    """Real time, real waiting and jobs in threads, for `play_in_threads`."""

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        buckets = tuple(f"peer-{rank}" for rank in range(self.config.peers))
        places = Places(run="trial", run_bucket="run", peer_buckets=buckets, region="local")
        self.spec = prepare_run(self.store, self.config, self.sample_counts, places, self.norm)
        clock = SystemClock() if self.threads else self.clock
        self.memory_broker = MemoryBroker(self.config.peers, clock, self.config.membership.heartbeat_seconds)
        self.peers = [self.add(rank) for rank in range(self.config.peers - self.late)]

    def add(self, rank: int, peer_id: str | None = None) -> Peer:
        """A peer with its rank claimed, not started yet."""
        inner = self.memory_broker.join(rank) if self.broker else self._lonely(rank)
        key = SigningKey.generate()
        # Once the inbox stands, as `python -m peer_agent` does it.
        member = self.claim(rank, peer_id or f"peer-{rank}", key)
        exchange = SteppedExchange(inner, self.clock, waits=self.threads)
        spec = self.spec
        if rank >= self.config.peers:
            spec = spec.including(joined_ranks(self.store, spec.places, self.config.peers))
        elements = Layout.of(models.build(self.spec.model)).elements
        gradients = (
            self.gradients(spec, self.store, rank)
            if self.gradients
            else QuadraticGradients(rank, spec.samples[rank], elements)
        )
        metrics = CountingMetrics()
        ports = Ports(
            store=self.store,
            exchange=exchange,
            gradients=gradients,
            metrics=metrics,
            events=EventLog(self.events, self.spec.run, rank, self.clock),
            clock=SystemClock() if self.threads else self.clock,
            background=Threads(1) if self.threads else Inline(),
            key=key,
        )
        actions_of_mode = SyncActions if self.config.mode == "sync" else AsyncActions
        return Peer(Runner(actions_of_mode(spec, member, ports)), exchange, gradients, metrics)

    def join(self, samples: int) -> Peer:
        """A peer with data of its own takes the next free rank and starts."""
        spec = self.spec

        def make(rank: int) -> Joined:
            bucket = f"joined-{rank}"
            earlier = (f"joined-{other}" for other in range(self.config.peers, rank))
            places = spec.places.with_buckets((*earlier, bucket))
            manifest = _put_batches(self.store, places, rank, samples, self.config.batch_size)
            return Joined(
                run=spec.run,
                rank=rank,
                samples=samples,
                batches=len(manifest.batches),
                bucket=bucket,
                manifest_sha256=hashlib.sha256(manifest.to_json()).hexdigest(),
                nonce=f"{rank}",
            )

        rank = take_rank(self.store, spec.places, self.config.peers, make).rank
        self.peers.append(self.add(rank))
        self.advance(rank, self.peers[rank].runner.start)
        return self.peers[rank]

    def claim(self, rank: int, peer_id: str, key: SigningKey | None = None) -> Member:
        """Claim a rank as a new process would."""
        key = key or SigningKey.generate()
        nonce = hashlib.sha256(f"{rank} {peer_id} {key.public}".encode()).hexdigest()
        return claim(
            self.store,
            self.spec.places,
            rank=rank,
            peer_id=peer_id,
            nonce=nonce,
            public_keys={USE: key.public},
            sign=key.sign,
        )

    def _lonely(self, rank: int) -> Exchange:
        """No broker; in virtual time its waiting is SteppedExchange's."""
        clock = SystemClock() if self.threads else self.clock
        places, config = self.spec.places, self.config
        seconds = config.membership.heartbeat_seconds
        if self.threads:
            return NullExchange(
                clock,
                S3Pulses(self.store, places, rank=rank, peers=config.peers, clock=clock, heartbeat_seconds=seconds),
            )
        return SteppedNullExchange(clock, self.store, places, rank=rank, peers=config.peers, heartbeat_seconds=seconds)

    def play(
        self, order: Callable[[int], Sequence[int]] | None = None, each_turn: Callable[[int], None] | None = None
    ) -> None:
        """Step all peers in turn until each has ended; `order(turn)` may give another order, or leave some out."""
        for rank in self._running(None, 0):
            self.advance(rank, self.peers[rank].runner.start)
        turn = 0
        while any(peer.report is None and peer.error is None for peer in self.peers):
            if each_turn is not None:
                each_turn(turn)
            for rank in self._running(order, turn):
                self.advance(rank, self.peers[rank].runner.step)
            turn += 1
            assert turn < 20_000, f"no end in sight: {[p.runner.machine.__dict__ for p in self.peers]}"

    def play_in_threads(self) -> None:
        """Run all peers at once, each in a thread; returns when all have ended."""

        def run(peer: Peer) -> None:
            try:
                peer.report = peer.runner.run()
            except Exception as error:
                peer.error = error

        threads = [threading.Thread(target=run, args=(peer,)) for peer in self.peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)

    def advance(self, rank: int, what: Callable[[], None]) -> None:
        """One call into a peer, with what `Runner.run` does around it."""
        peer = self.peers[rank]
        try:
            what()
        except Exception as error:
            peer.error = error
            peer.runner.give_up(error)
            return
        if peer.runner.ended:
            try:
                peer.report = peer.runner.conclude()
            except Exception as error:
                peer.error = error

    def _running(self, order: Callable[[int], Sequence[int]] | None, turn: int) -> list[int]:
        ranks = range(len(self.peers)) if order is None else order(turn)
        return [rank for rank in ranks if self.peers[rank].report is None and self.peers[rank].error is None]

    def reports(self) -> list[PeerReport]:
        """The reports as they lie in the store, in rank order."""
        return [
            PeerReport.from_json(self.store.get(self.spec.places.report(rank))) for rank in range(self.config.peers)
        ]

    def keys(self, part: str) -> list[str]:
        """Keys in the run's bucket under runs/<run>/<part> or expiring/<run>/<part>, without that prefix."""
        prefix = f"{'expiring' if part in ('weights/', 'contributions/', 'wanted/') else 'runs'}/{self.spec.run}/{part}"
        return [key.removeprefix(prefix) for key in self.store.list(self.spec.places.run_bucket, prefix)]

    def close(self) -> None:
        for peer in self.peers:
            peer.actions.close()


def prepare_run(
    store: ObjectStore,
    config: RunConfig,
    sample_counts: Sequence[int],
    places: Places,
    norm: bool = False,
    hidden: int = 0,
) -> RunSpec:
    """Put batches, manifests, validation set, initial weights and run.json into the store."""
    options = {"norm": norm, "hidden": hidden}
    model_spec = ModelSpec(
        name="tests.fakes.peers:build_model", classes=CLASSES, channels=1, image_size=SIZE, options=options
    )
    model = models.initial_weights(model_spec, config.seed)
    layout = Layout.of(model)
    flat, buffers = flatten(model, layout), read_buffers(model, layout)
    sha256 = weights_hash(layout, flat, buffers)
    weights = encode_weights(layout, flat, buffers, run=places.run, round=0, rank=0, incarnation=0)
    store.put(places.weights(sha256), weights)
    manifests = [_put_batches(store, places, rank, n, config.batch_size) for rank, n in enumerate(sample_counts)]
    batches = tuple(len(manifest.batches) for manifest in manifests)
    validation = encode_batch(*samples(64, seed=99))
    store.put(places.validation(), validation)
    spec = RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=model_spec,
        samples=tuple(sample_counts),
        batches=batches,
        rounds_per_epoch=rounds_per_epoch(batches, config.batches_per_round),
        initial_weights=sha256,
        validation=ValidationSet(sha256=hashlib.sha256(validation).hexdigest(), samples=64),
        state_machines=("",) * config.peers,
    )
    store.put(places.spec(), spec.to_json())
    return spec


def _put_batches(store: ObjectStore, places: Places, rank: int, count: int, size: int) -> Manifest:
    x, y = samples(count, seed=rank)
    refs = []
    for index, start in enumerate(range(0, count, size)):
        blob = encode_batch(x[start : start + size], y[start : start + size])
        place = places.batch(rank, index)
        store.put(place, blob)
        digest = hashlib.sha256(blob).hexdigest()
        refs.append(BatchRef(index=index, key=place.key, samples=min(size, count - start), sha256=digest))
    manifest = Manifest(rank=rank, batches=tuple(refs))
    store.put(places.manifest(rank), manifest.to_json())
    return manifest
