"""A whole run of several peers in one process: stepped in turn with virtual time, or each in threads of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contract import models
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.events import EventLog
from contract.joining import Joined, joined_ranks, take_rank
from contract.keys import Places
from contract.records import Member, PeerReport
from contract.runspec import RunSpec
from contract.signing import SigningKey
from contract.tensors import Layout
from peer_agent.actions import Actions
from peer_agent.actions_async import AsyncActions
from peer_agent.actions_sync import SyncActions
from peer_agent.background import Threads
from peer_agent.exchange.null import NullExchange, S3Pulses
from peer_agent.keyring import USE
from peer_agent.membership import claim
from peer_agent.ports import Exchange, Ports
from peer_agent.runner import Runner
from tests.fakes.clock import FakeClock
from tests.fakes.exchange import MemoryBroker, SteppedNullExchange
from tests.fakes.peer_ports import CountingMetrics, Inline, QuadraticGradients, SteppedExchange
from tests.fakes.small_run import prepare_run, put_batches
from tests.fakes.store import MemoryStore


@dataclass
class Peer:
    """One peer of a Cast."""

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
            manifest = put_batches(self.store, places, rank, samples, self.config.batch_size)
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
