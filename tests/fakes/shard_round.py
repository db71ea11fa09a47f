"""One round with shards over a store in memory, without machine and messages: contributions, commit, and the peers'
dealings with them. Every peer counts what it moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contract import wire
from contract.codec import F32, codec
from contract.config import RunConfig
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.packing import packing
from contract.records import Commit, Contributor, MemberRef
from contract.runspec import RunSpec, ValidationSet
from contract.seeds import public_seed
from contract.tensors import Buffers, Entry, Layout, pack_buffers
from peer_agent.exchange.topology import Topology, topology
from peer_agent.pieces import Pieces
from peer_agent.reduction import Shards
from peer_agent.shards import Averaged, Reduction
from tests.fakes.store import MemoryStore

ROUND, BASE = 7, "ab" * 32


def model(elements: int, channels: Sequence[int] = ()) -> Layout:
    """A layout with n parameters, and for each number of channels the buffers of a BatchNorm."""
    buffers: list[Entry] = []
    for number, count in enumerate(channels):
        buffers += [Entry(f"{number}.mean", (count,)), Entry(f"{number}.var", (count,))]
        buffers += [Entry(f"{number}.count", (), "int64")]
    return Layout((Entry("w", (elements,)),), tuple(buffers))


def base_buffers(layout: Layout) -> Buffers:
    """What the round starts from."""
    return {entry.name: np.ones(entry.shape, entry.dtype) for entry in layout.buffers}


def buffers_of(layout: Layout, rank: int) -> Buffers:
    """What a peer's forward passes leave behind."""
    drawn = np.random.default_rng(1_000 + rank)
    return {
        e.name: (drawn.random(e.shape) if e.dtype == "float32" else np.full(e.shape, 2 + rank)).astype(e.dtype)
        for e in layout.buffers
    }


def gradient_of(elements: int, rank: int) -> F32:
    """A peer's gradient: something that all have in common, and something of its own."""
    common = np.random.default_rng(1).standard_normal(elements, np.float32)
    return common + np.random.default_rng(100 + rank).standard_normal(elements, np.float32)


@dataclass
class ShardRound:
    """A round of `members`, each of which has `samples` of its rank plus one; `commit` makes what they agree on."""

    layout: Layout
    members: Sequence[int]
    codec: str = "qsgd4"
    topology: Topology = field(default_factory=lambda: topology("reduce_scatter"))
    aggregation: dict[str, Any] = field(default_factory=dict)
    gradient: Callable[[int, int], F32] = gradient_of

    def __post_init__(self) -> None:
        self.shared = MemoryStore()
        self.shards = self.topology.shards(self.members)
        self.spec = self._spec()
        self.base = base_buffers(self.layout)
        self.stores = {rank: self.view() for rank in self.members}
        self.frames: dict[int, bytes] = {}  # by rank
        self.peers = {rank: self.peer(rank) for rank in self.members}

    def view(self) -> MemoryStore:
        """The shared store, with counts of its own."""
        view = MemoryStore()
        view.objects = self.shared.objects
        return view

    def peer(self, rank: int, **options: Any) -> Shards:
        """What a peer does; its own contribution it has at hand."""
        own = {"kept": lambda digest: self._kept(rank, digest)} | options
        return Shards(self.spec, self.layout, self.stores.get(rank) or self.view(), **own)

    def contribute(self, rank: int) -> wire.FrameHeader:
        """Encode, cut and store a peer's contribution."""
        sharding = self.peers[rank].sharding(self.shards)
        seed = public_seed(self.spec.config.seed, "rounding", rank, ROUND)
        header = wire.FrameHeader(
            kind=wire.Kind.UPDATE,
            run=self.spec.run,
            round=ROUND,
            base_round=ROUND,
            base_weights=BASE,
            rank=rank,
            incarnation=0,
            samples=rank + 1,
            loss=0.5,
            codec=self.codec,
            seed=seed,
            elements=self.layout.elements,
            extensions=(wire.accuracy_extension(0.5),) if rank == self.members[0] else (),
        )
        payload = sharding.codec.encode(self.gradient(self.layout.elements, rank), seed)
        packed = pack_buffers(self.layout, buffers_of(self.layout, rank))
        self.frames[rank] = sharding.frame(header, payload, packed)
        self.store_whole(rank, self.frames[rank])
        return wire.decode_header(self.frames[rank])

    def store_whole(self, rank: int, frame: bytes) -> None:
        """Put a frame as a peer's contribution, in place of the pieces that are there."""
        sharding, places = self.peers[rank].sharding(self.shards), self.spec.places
        for piece in range(len(sharding.pieces)):
            place = places.piece(ROUND, rank, 0, piece)
            self.shared.objects.pop((place.bucket, place.key), None)
        pieces = Pieces(self.stores[rank], places, packing(self.spec.config.exchange.packing))
        pieces.put(frame, sharding, MemberRef(rank=rank, incarnation=0))
        self.stores[rank].create(self.place(rank), wire.header_part(frame))

    def commit(self, contributors: Sequence[int] | None = None) -> Commit:
        """The commit of these ranks' contributions (None: all members'); those that are lacking are made."""
        listed = self.members if contributors is None else contributors
        headers = [
            wire.decode_header(self.frames[rank]) if rank in self.frames else self.contribute(rank) for rank in listed
        ]
        return Commit(
            run=self.spec.run,
            round=ROUND,
            base_weights={"0": BASE},
            contributors=tuple(
                Contributor(
                    rank=h.rank, incarnation=0, key=self.place(h.rank).key, digest=h.digest, samples=h.samples, loss=0.5
                )
                for h in headers
            ),
            members=tuple(MemberRef(rank=rank, incarnation=0) for rank in self.members),
            writer=MemberRef(rank=self.members[0], incarnation=0),
            nonce="n",
        )

    def place(self, rank: int) -> Any:
        return self.spec.places.contribution(ROUND, rank, 0)

    def reduction(self, rank: int, commit: Commit) -> Reduction:
        return self.peers[rank].reduction(commit, self.shards)

    def reduce(self, commit: Commit) -> dict[int, Averaged]:
        """Every member makes its shards and stores them; what they made, by shard."""
        made: dict[int, Averaged] = {}
        for rank in self.members:
            for shard in self.topology.needs(rank, self.members).shards:
                reduction = self.reduction(rank, commit)
                made[shard] = self.peers[rank].average(reduction, shard, self.base)
                self.peers[rank].publish(reduction, shard, made[shard])
        return made

    def whole_average(self, commit: Commit) -> F32:
        """What all_gather makes of the same contributions, in float64."""
        total = sum(c.samples for c in commit.contributors)
        decoder = self.peers[self.members[0]].sharding(self.shards).codec
        parts = (
            decoder.decode(self._payload(c.rank), self.layout.elements).astype(np.float64) * (c.samples / total)
            for c in commit.contributors
        )
        average: F32 = sum(parts, start=np.zeros(self.layout.elements))
        return average

    @property
    def compressed_bytes(self) -> int:
        """One compressed gradient."""
        return codec(self.codec).encoded_bytes(self.layout.elements)

    def _payload(self, rank: int) -> memoryview:
        return wire.decode(self.frames[rank], expected_elements=None, expected_buffers_bytes=None).payload

    def _kept(self, rank: int, digest: str) -> bytes | None:
        frame = self.frames.get(rank)
        return frame if frame is not None and wire.decode_header(frame).digest == digest else None

    def _spec(self) -> RunSpec:
        peers = max(self.members) + 1
        config = RunConfig.model_validate(
            {"peers": peers, "seed": 3, "exchange": {"codec": self.codec}, "aggregation": self.aggregation}
        )
        return RunSpec(
            run="r",
            config=config,
            places=Places(run="r", run_bucket="run", peer_buckets=("peer",) * peers, region="eu-west-1"),
            model=ModelSpec(name="mlp", classes=2, channels=1, image_size=4),
            samples=(8,) * peers,
            batches=(1,) * peers,
            rounds_per_epoch=1,
            initial_weights=BASE,
            validation=ValidationSet(sha256=BASE, samples=4),
            state_machines=("",) * peers,
        )
