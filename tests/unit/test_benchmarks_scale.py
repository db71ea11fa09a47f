"""Parts of `python -m benchmarks scale` and `recovery`: the simulated run, and what is made of the figures."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest

from benchmarks import recovery, scale
from benchmarks.meeting import Gathering
from benchmarks.recovery import Loss
from benchmarks.simulated_peer import StuckError
from benchmarks.simulation import Faults, Tally, Timing, World
from peer_agent.exchange.topology import NAMES

NO_FAULTS = Faults(lost=0.0, doubled=0.0, crashes=0.0)


def test_without_faults_each_peer_announces_each_round_and_one_commits() -> None:
    world = World(5, 4, faults=NO_FAULTS)
    tally = world.run()
    published, arrived = dict(tally.published), dict(tally.arrived)
    assert published.pop("heartbeat") > 5 * 3
    # From the first commit, whose announcement counts, to the last one with contributions.
    assert published == {"frame": 15, "commit": 3, "result": 3}
    assert {kind: arrived[kind] for kind in ("commit", "result")} == {"commit": 12, "result": 12}
    assert 3 * (5 - 1) <= arrived["frame"] <= 60, "some may come after the commit"
    assert (tally.rounds, tally.crashes, tally.dropped, tally.rejected) == (3, 0, 0, Counter())
    for round, result in world.store.results.items():
        assert [c.rank for c in world.store.commits[round].contributors] == [0, 1, 2, 3, 4]
        assert world.store.commits[round + 1].base_weights == {"0": result.weights_sha256}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_under_faults_the_run_ends_for_everyone_and_the_same_seed_plays_it_again(seed: int) -> None:
    faults = Faults(lost=0.05, doubled=0.05, crashes=0.03)
    world = World(6, 8, seed=seed, faults=faults)
    tally = world.run()
    assert (tally.rounds, tally.wronged) == (7, 0)
    assert tally.arrived != World(6, 8, seed=seed, faults=NO_FAULTS).run().arrived
    assert World(6, 8, seed=seed, faults=faults).run() == tally
    for round, result in world.store.results.items():
        assert world.store.commits[round + 1].base_weights == {"0": result.weights_sha256}


def test_processes_that_die_are_dropped_and_come_back() -> None:
    world = World(5, 12, seed=4, faults=Faults(crashes=0.1))
    tally = world.run()
    assert tally.crashes > 0
    assert max(member.incarnation for member in world.store.members.values()) > 1
    assert tally.dropped > tally.wronged == 0
    members = [{member.rank for member in commit.members} for _, commit in sorted(world.store.commits.items())]
    assert any(after - before for before, after in pairwise(members))


def test_a_run_that_comes_to_no_end_says_where_it_stands() -> None:
    with pytest.raises(StuckError, match=r"no end after 3 s: 2 at collecting 0"):
        World(2, 4, faults=NO_FAULTS, timing=Timing(limit=3.0)).run()


def test_bytes_are_of_the_peer_and_the_way_with_the_most() -> None:
    before = Gathering(counts={r: {"bytes_sent": 10.0, "bytes_received": 100.0 * r} for r in (0, 1)})
    after = Gathering(
        counts={0: {"bytes_sent": 70.0, "bytes_received": 30.0}, 1: {"bytes_sent": 20.0, "bytes_received": 180.0}}
    )
    assert scale.bytes_each(before, after, 4) == 20.0


def test_control_leaves_contributions_out() -> None:
    def tally(peers: int, heartbeats: int) -> Tally:
        published = Counter({"frame": 4 * peers, "commit": 4, "heartbeat": peers * heartbeats})
        arrived = Counter({"frame": 4 * peers * (peers - 1), "commit": 4 * (peers - 1)})
        requests = Counter({"control": 8 * peers, "data": 4 * peers * peers})
        return Tally(peers, rounds=4, published=published, arrived=arrived, requests=requests)

    few, many = tally(16, 4), tally(256, 8)
    assert scale.published(few) == pytest.approx(1 + 1 / 16)
    assert scale.delivered(few) == pytest.approx(15 / 16)
    figures = {figure.name: figure for figure in scale.control_figures("ring", [few, many])}
    assert figures["ring_control_16_peers"].value == pytest.approx(1 + 1 + 2)
    assert figures["ring_control_256_peers"].value == pytest.approx(2 + 1 + 2)
    growth = figures["ring_control_growth_from_16_peers"]
    assert (growth.value, growth.must, growth.aim) == pytest.approx((1.25, 2.0, 1.0))
    assert figures["ring_announcements_delivered_256_peers"].value == pytest.approx(255)
    assert figures["ring_data_requests_16_peers"].value == pytest.approx(16)
    assert [figure.must for figure in scale.byte_figures({4: 1.0, 8: 3.0})] == [2.2, 2.2]


@pytest.mark.parametrize("way", NAMES)
def test_control_grows_no_faster_than_the_logarithm_of_the_peers(way: str) -> None:
    few, many = (scale.simulate(peers, 4, way, Faults(crashes=0.02)) for peers in (16, 64))
    assert many.crashes > 0, "it happens under faults"
    assert few.wronged == many.wronged == 0
    for count in (scale.control, scale.beside_heartbeats):
        assert count(many) <= count(few) * 2 * math.log(64) / math.log(16), "twice, for what so few rounds bring"
    assert few.arrived["silent"] == 0, "everyone hears everyone"
    # Told to everyone, a single death would come to more: it has eight watchers.
    assert 0 < many.each(many.arrived["silent"]) < 3.0


def test_a_round_of_a_survivor_lasts_until_its_next_one_begins() -> None:
    events = [
        {"event": "round_started", "rank": rank, "round": round, "t": t}
        for rank, round, t in [(0, 0, 1.0), (1, 0, 1.0), (0, 1, 2.0), (0, 2, 6.0), (0, 3, 7.0)]
    ]
    assert recovery.begun(events, 0) == {0: 1.0, 1: 2.0, 2: 6.0, 3: 7.0}
    assert recovery.lengths(events, 0, 1) == [4.0, 1.0]
    assert recovery.lengths(events, 1, 0) == []


def test_the_worst_kill_counts_and_the_timeout_has_a_limit_too() -> None:
    losses = [Loss(median=0.2, longest=2.4, dropped_after=2.1), Loss(median=0.4, longest=3.0, dropped_after=1.8)]
    found = {figure.name: figure for figure in recovery.figures(losses)}
    assert found["longest_round_beyond_timeout"].value == pytest.approx(3.0 - recovery.TIMEOUT_SECONDS)
    assert found["heartbeat_timeout"].must == pytest.approx(2.9)
    assert found["seconds_until_dropped"].value == 2.1
