"""Topologies: who reads what of whose contribution, who averages which shard, and who is told. Pure.

    all_gather       every peer reads every contribution whole and averages for itself (the paper)
    reduce_scatter   shard i of the contributions is averaged by the i-th member, and everyone reads the averages

P members take part in a round, named by their ranks in rank order; C is the size of one compressed gradient. The commit
comes first in every topology: which contributions count is decided once (invariant 2), and what a topology moves
afterwards is a function of the commit and of what lies in S3. So anyone may compute it again, and gets the same bytes.

    bytes per peer and round     sent             received
    all_gather                   C                (P - 1) C
    reduce_scatter               (1 + 1/P) C      2 (1 - 1/P) C

A further topology is a `Topology` in `TOPOLOGIES`, and its name in contract/config.py. What the protocol asks of one is
all there is: a star has one shard and one owner; a tree has one shard and more messages; a ring or gossip that passes
sums on would have its hops between the commit and the averages, which only `needs` tells of (docs/decisions/0024).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from contract.errors import ConfigError
from contract.extensions import MAX_SHARDS

NAMES = ("all_gather", "reduce_scatter")
#: Ranks in ascending order.
Ranks = Sequence[int]

#: About as many bytes has a frame before its payload, and a row of its shard table.
_HEADER_BYTES, _ROW_BYTES = 288, 48


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a peer must have before it can apply a commit."""

    whole: bool = False
    """Every contribution that the commit lists, whole."""
    shards: tuple[int, ...] = ()
    """Of every such contribution these shards, to average them for everyone."""
    averages: tuple[int, ...] = ()
    """The averages of these shards, whoever has made them."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of objects that one peer moves in one round, own contribution included; messages and weights not."""

    sent: float
    received: float


class Topology(Protocol):
    """One topology. Everything is a function of the members' ranks, so that all peers agree without a word."""

    @property
    def name(self) -> str:
        """Its name in configurations."""
        ...

    @property
    def inline(self) -> bool:
        """Whether the message that announces a contribution may carry all of it; otherwise its header goes alone."""
        ...

    def shards(self, members: Ranks) -> int:
        """Into how many shards the contributions to a round are cut; 0: they stay whole, without a table."""
        ...

    def needs(self, rank: int, members: Ranks) -> Needs:
        """What the peer of `rank`, member or observer, needs while nobody is silent."""
        ...

    def makers(self, shard: int, members: Ranks, live: Collection[int]) -> Iterator[int]:
        """Who averages a shard, the first for a start and the others after it, each when those before are silent.

        `live` are the ranks that the commit keeps or takes in and that are not silent. Whoever asks for a few makers of
        many shards must not have to pay for all: hence an iterator.
        """
        ...

    def recipient(self, kind: str, *, leader: int, writer: int) -> int | None:
        """The one rank to which a message of this kind goes, or None: to everyone.

        `leader` is the leader of the round, `writer` who wrote its commit.
        """
        ...

    def traffic(self, peers: int, compressed_bytes: float) -> Traffic:
        """What a peer is expected to move in a round of `peers` members that all contribute."""
        ...


@dataclass(frozen=True)
class AllGather:
    """Every contribution to everyone. Works with any aggregator; what a peer receives grows with the peers."""

    name: str = "all_gather"
    inline: bool = True

    def shards(self, members: Ranks) -> int:
        return 0

    def needs(self, rank: int, members: Ranks) -> Needs:
        return Needs(whole=True)

    def makers(self, shard: int, members: Ranks, live: Collection[int]) -> Iterator[int]:
        return iter(())

    def recipient(self, kind: str, *, leader: int, writer: int) -> int | None:
        return None

    def traffic(self, peers: int, compressed_bytes: float) -> Traffic:
        frame = compressed_bytes + _HEADER_BYTES
        return Traffic(sent=frame, received=(peers - 1) * frame)


@dataclass(frozen=True)
class ReduceScatter:
    """Shard i is the i-th member's. Members, not contributors: everyone knows them before the first contribution is
    cut, and a commit that leaves one out changes no table.

    A contribution's header goes to the round's leader alone, and that of an average to the commit's writer, who tells
    everyone (`reduced`) when all are there. So a peer sends and receives as many messages however many peers there are.
    """

    name: str = "reduce_scatter"
    inline: bool = False

    def shards(self, members: Ranks) -> int:
        return min(len(members), MAX_SHARDS)

    def needs(self, rank: int, members: Ranks) -> Needs:
        count = self.shards(members)
        own = tuple(shard for shard in range(count) if members[shard] == rank)
        return Needs(shards=own, averages=tuple(range(count)))

    def makers(self, shard: int, members: Ranks, live: Collection[int]) -> Iterator[int]:
        for step in range(len(members)):
            rank = members[(shard + step) % len(members)]
            if rank in live or not live:
                yield rank
        yield from sorted(set(live) - set(members))

    def recipient(self, kind: str, *, leader: int, writer: int) -> int | None:
        return {"frame": leader, "shard": writer}.get(kind)

    def traffic(self, peers: int, compressed_bytes: float) -> Traffic:
        shards = min(peers, MAX_SHARDS)
        part, header = compressed_bytes / shards, _HEADER_BYTES + _ROW_BYTES * shards
        average = part + _HEADER_BYTES
        return Traffic(
            sent=compressed_bytes + header + average,
            received=(peers - 1) * (part + header) + (shards - 1) * average,
        )


def topology(name: str) -> Topology:
    """The topology called `name`. Raises ConfigError for an unknown one."""
    try:
        return TOPOLOGIES[name]
    except KeyError as error:
        raise ConfigError(f"topology {name!r} is none of {', '.join(TOPOLOGIES)}") from error


_ALL: tuple[Topology, ...] = (AllGather(), ReduceScatter())
#: All topologies by name.
TOPOLOGIES: Mapping[str, Topology] = MappingProxyType({each.name: each for each in _ALL})
if tuple(TOPOLOGIES) != NAMES:
    raise ImportError(f"topologies {tuple(TOPOLOGIES)} are registered where {NAMES} are promised")
