"""Topologies as pure functions: what is read, who averages what and who takes over, who is told, and bytes."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.config import ExchangeConfig
from contract.errors import ConfigError
from contract.extensions import MAX_SHARDS
from peer_agent.exchange.topology import NAMES, TOPOLOGIES, Needs, Ranks, Topology, Traffic, topology

members_of = st.sets(st.integers(0, 60), min_size=1, max_size=20).map(sorted)


@dataclass(frozen=True)
class Star:
    """Another plug-in: the lowest rank averages everything for all. What makes it work is all in here."""

    name: str = "star"
    inline: bool = False

    def shards(self, members: Ranks) -> int:
        return 1

    def needs(self, rank: int, members: Ranks) -> Needs:
        return Needs(shards=(0,) if rank == members[0] else (), averages=(0,))

    def makers(self, shard: int, members: Ranks, live: Collection[int]) -> Iterator[int]:
        return iter([rank for rank in members if rank in live] or members)

    def recipient(self, kind: str, *, leader: int, writer: int) -> int | None:
        return leader if kind == "frame" else None

    def traffic(self, peers: int, compressed_bytes: float) -> Traffic:
        return Traffic(sent=2 * compressed_bytes, received=(peers - 1) * compressed_bytes)


ALL: list[Topology] = [*TOPOLOGIES.values(), Star()]
every = pytest.mark.parametrize("tested", ALL, ids=lambda tested: tested.name)


def test_every_configurable_topology_exists() -> None:
    assert set(typing.get_args(ExchangeConfig.model_fields["topology"].annotation)) == set(NAMES) == set(TOPOLOGIES)
    assert topology("all_gather").name == "all_gather"
    with pytest.raises(ConfigError, match="topology 'ring' is none of all_gather, reduce_scatter"):
        topology("ring")


@every
@settings(deadline=None)
@given(members=members_of)
def test_every_shard_has_one_owner_and_everyone_gets_everything(tested: Topology, members: list[int]) -> None:
    shards = tested.shards(members)
    needs = {rank: tested.needs(rank, members) for rank in members}
    owned = [shard for rank in members for shard in needs[rank].shards]
    assert sorted(owned) == list(range(shards))
    for needed in (*needs.values(), tested.needs(99, members)):
        assert needed.whole == (shards == 0)
        assert needed.averages == tuple(range(shards))
    assert tested.needs(99, members).shards == (), "an observer owns nothing"


@every
@settings(deadline=None)
@given(members=members_of, data=st.data())
def test_whoever_is_live_takes_over_in_an_order_that_all_know(
    tested: Topology, members: list[int], data: st.DataObject
) -> None:
    live = data.draw(st.sets(st.sampled_from([*members, 97, 98])))
    for shard in range(tested.shards(members)):
        order = tuple(tested.makers(shard, members, live))
        assert len(set(order)) == len(order) > 0
        if live & set(members):
            assert set(order) <= live
        (owner,) = (rank for rank in members if shard in tested.needs(rank, members).shards)
        if owner in live:
            assert order[0] == owner


def test_reduce_scatter_gives_shard_i_to_the_ith_member_and_then_to_the_next() -> None:
    tested, members = topology("reduce_scatter"), [1, 4, 6, 9]
    assert [tested.needs(rank, members).shards for rank in members] == [(0,), (1,), (2,), (3,)]
    assert tuple(tested.makers(2, members, {1, 4, 6, 9})) == (6, 9, 1, 4)
    assert tuple(tested.makers(2, members, {1, 4, 9})) == (9, 1, 4)
    assert tuple(tested.makers(2, members, {1, 4, 12, 11})) == (1, 4, 11, 12), "newcomers help last"
    assert tuple(tested.makers(2, members, ())) == (6, 9, 1, 4)


def test_orders_of_takeover_differ_so_that_no_one_inherits_everything() -> None:
    tested, members = topology("reduce_scatter"), list(range(6))
    live = {0, 2, 4}
    heirs = [next(tested.makers(shard, members, live)) for shard in range(6)]
    assert sorted(heirs) == [0, 0, 2, 2, 4, 4]


def test_all_gather_tells_everyone_and_reduce_scatter_whom_it_concerns() -> None:
    kinds = ("frame", "shard", "reduced", "commit", "result", "stop", "hello")
    to = {name: {kind: topology(name).recipient(kind, leader=1, writer=2) for kind in kinds} for name in TOPOLOGIES}
    assert to["all_gather"] == dict.fromkeys(kinds)
    assert to["reduce_scatter"] == dict.fromkeys(kinds) | {"frame": 1, "shard": 2}
    assert topology("all_gather").inline
    assert not topology("reduce_scatter").inline


def test_more_members_than_a_table_has_rows_share_fewer_shards() -> None:
    tested, members = topology("reduce_scatter"), range(MAX_SHARDS + 3)
    assert tested.shards(members) == MAX_SHARDS
    assert tested.needs(MAX_SHARDS - 1, members).shards == (MAX_SHARDS - 1,)
    assert tested.needs(MAX_SHARDS, members).shards == ()
    assert list(islice(tested.makers(MAX_SHARDS - 1, members, members), 2)) == [MAX_SHARDS - 1, MAX_SHARDS]


@pytest.mark.parametrize("peers", [4, 8, 16, 100])
def test_traffic_stays_flat_under_reduce_scatter_and_grows_under_all_gather(peers: int) -> None:
    size = 100e6
    gathered, scattered = (topology(name).traffic(peers, size) for name in NAMES)
    assert gathered.received / size == pytest.approx(peers - 1, rel=0.01)
    assert gathered.sent / size == pytest.approx(1, rel=0.01)
    assert scattered.sent / size == pytest.approx(1 + 1 / peers, rel=0.01)
    assert scattered.received / size == pytest.approx(2 - 2 / peers, rel=0.01)
    assert max(scattered.sent, scattered.received) / size < 2.0


def test_a_lone_member_receives_nothing() -> None:
    for tested in TOPOLOGIES.values():
        assert tested.traffic(1, 1e6).received == 0
