"""Peers with data of their own that join a run under way, leave it, or die in it; over an object store and a broker in
memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import RunFailed
from peer_agent import signals as s
from peer_agent.newcomers import UNJOINED
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import LR, commits, configuration, events, exchange, weights

SAMPLES = (24, 24, 12)
#: More than any peer of the start has: what a contribution may claim goes by the rank.
BROUGHT = 96


def rounds(cast: Cast) -> int:
    """The round at which the first peer stands."""
    return cast.peers[0].runner.machine.round


def listed(cast: Cast) -> list[list[int]]:
    """Contributors of each round."""
    return [[contributor.rank for contributor in commit.contributors] for commit in commits(cast)]


def play_with(cast: Cast, plans: dict[int, Any]) -> None:
    """Play; each of `plans` is called once when the first peer stands at its round."""
    due = dict(plans)

    def each(turn: int) -> None:
        for round in [round for round in due if rounds(cast) >= round]:
            due.pop(round)()

    cast.play(each_turn=each)
    assert not due


def recomputed(cast: Cast) -> np.ndarray:
    """The weights that the commits lead to: every contributor pulls to its rank, weighted by its samples."""
    flat = weights(cast, cast.spec.initial_weights).astype(np.float64)
    for commit in commits(cast):
        total = sum(c.samples for c in commit.contributors)
        if total:
            point = sum(c.rank * c.samples for c in commit.contributors) / total
            flat = flat - LR * (flat - point)
    return flat


@pytest.mark.parametrize(
    ("broker", "settings"),
    [
        (True, {"topology": "all_gather"}),
        (False, {"error_feedback": True}),
        (True, {"topology": "reduce_scatter"}),
    ],
    ids=["all_gather", "s3 alone", "reduce_scatter"],
)
def test_a_peer_joins_with_its_own_data_and_ends_with_the_others(
    broker: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = configuration(
        epochs=12,
        early_stopping={"patience": 0},
        scheduler={"min_lr": LR},
        checkpoint={"every_rounds": 5},
        exchange=exchange(**settings),
    )
    cast = Cast(config, SAMPLES, broker=broker, events=tmp_path / "events.jsonl")
    play_with(cast, {7: lambda: cast.join(BROUGHT)})
    reports = [peer.report for peer in cast.peers]
    assert {(r.reason, r.weights_sha256) for r in reports if r} == {("epoch_limit", cast.reports()[0].weights_sha256)}
    assert len([r for r in reports if r]) == 4
    with_it = [3 in ranks for ranks in listed(cast)[:-1]]
    assert not any(with_it[:8])
    assert with_it[-1]
    first = with_it.index(True)
    assert all(with_it[first:]), "a member from its first round on"
    assert all(len(ranks) == 3 + with_it[t] for t, ranks in enumerate(listed(cast)[:-1])), "nobody was left out"
    (own,) = {c.samples for commit in commits(cast) for c in commit.contributors if c.rank == 3}
    assert own == BROUGHT
    assert len(commits(cast)) == 12 * 3 + 1, "the run is as long as it was planned"
    assert [e["rank"] for e in events(tmp_path) if e["event"] == "caught_up"] == [3]
    assert {e["member"] for e in events(tmp_path) if e["event"] == "member_joined"} == {3}
    assert "residual_lost" not in {e["event"] for e in events(tmp_path)}, "a newcomer has none to lose"
    final = weights(cast, cast.reports()[0].weights_sha256)
    assert np.allclose(final, recomputed(cast), atol=2e-5), "float32 steps against float64"
    cast.close()


def test_two_join_at_once_and_a_third_later() -> None:
    cast = Cast(configuration(epochs=12, early_stopping={"patience": 0}), SAMPLES)

    def two() -> None:
        cast.join(16)
        cast.join(40)

    play_with(cast, {3: two, 20: lambda: cast.join(8)})
    assert sorted(cast.keys("joined/")) == ["0003.json", "0004.json", "0005.json"]
    assert len({peer.report.weights_sha256 for peer in cast.peers if peer.report}) == 1
    assert listed(cast)[-2] == [0, 1, 2, 3, 4, 5]
    cast.close()


def test_who_joined_may_leave_and_nobody_waits_for_it(tmp_path: Path) -> None:
    cast = Cast(configuration(epochs=12, early_stopping={"patience": 0}), SAMPLES, events=tmp_path / "events.jsonl")
    at: dict[str, float] = {}

    def leave() -> None:
        assert 3 in listed(cast)[-1]
        at["asked"] = cast.clock.now()
        cast.peers[3].runner.request_end("interrupted")

    play_with(cast, {3: lambda: cast.join(BROUGHT), 30: leave})
    assert [peer.report.reason for peer in cast.peers if peer.report] == ["epoch_limit"] * 3 + ["left"]
    dropped = [e for e in events(tmp_path) if e["event"] == "member_dropped"]
    assert {(e["member"], e["reason"]) for e in dropped} == {(3, "left")}
    assert max(e["t"] for e in dropped) - at["asked"] < 5, "before its heartbeats could be missed"
    assert {r.weights_sha256 for r in cast.reports()} == {cast.reports()[0].weights_sha256}
    assert listed(cast)[-2] == [0, 1, 2]
    cast.close()


def test_who_has_not_been_taken_in_leaves_at_once() -> None:
    cast = Cast(configuration(), SAMPLES)
    play_with(cast, {2: lambda: cast.join(16).runner.request_end("interrupted")})
    assert cast.peers[3].report is not None
    assert cast.peers[3].report.reason == s.LEFT
    assert all(3 not in ranks for ranks in listed(cast))
    cast.close()


def test_who_joined_and_dies_is_dropped() -> None:
    cast = Cast(configuration(epochs=12, early_stopping={"patience": 0}), SAMPLES)

    def die() -> None:
        assert 3 in listed(cast)[-1]
        cast.memory_broker.silence(3)
        cast.peers[3].error = RunFailed("killed")

    play_with(cast, {3: lambda: cast.join(BROUGHT), 30: die})
    assert {r.reason for r in cast.reports()} == {"epoch_limit"}
    assert listed(cast)[-2] == [0, 1, 2]
    cast.close()


def test_what_fails_with_who_joined_ends_nobody_else() -> None:
    cast = Cast(configuration(epochs=12, early_stopping={"patience": 0}), SAMPLES)

    def join() -> None:
        cast.join(16).gradients.fails_in_round = 25

    play_with(cast, {3: join})
    assert "batch" in str(cast.peers[3].error)
    assert {r.reason for r in cast.reports()} == {"epoch_limit"}
    cast.close()


def test_a_claim_on_a_rank_that_nobody_joined_as_is_rejected_and_counted() -> None:
    cast = Cast(configuration(), SAMPLES)
    claims = []
    play_with(cast, {2: lambda: claims.extend(cast.peers[0].actions.find_members([cast.claim(7, "nobody").rank]))})
    assert claims == []
    assert cast.peers[0].actions.trust.conduct.counts[7, UNJOINED] == 1
    assert all(7 not in {member.rank for member in commit.members} for commit in commits(cast))
    cast.close()


def test_a_contribution_may_claim_no_more_samples_than_its_rank_brought() -> None:
    cast = Cast(configuration(epochs=12, early_stopping={"patience": 0}), SAMPLES)

    def boast() -> None:
        cast.join(16).gradients._samples = 17

    play_with(cast, {3: boast})
    assert cast.peers[0].actions.trust.conduct.counts[3, "samples"] > 0
    assert "excludes rank 3" in str(cast.peers[3].error), "it has signed what no honest peer does"
    assert {r.reason for r in cast.reports()} == {"epoch_limit"}
    assert all(3 not in {member.rank for member in commit.members} for commit in commits(cast)[-3:])
    cast.close()


def test_who_falls_behind_what_is_kept_goes_on_from_a_later_checkpoint(tmp_path: Path) -> None:
    config = configuration(epochs=12, early_stopping={"patience": 0}, checkpoint={"every_rounds": 2})
    cast = Cast(config, SAMPLES, broker=False, events=tmp_path / "events.jsonl")

    def order(turn: int) -> list[int]:
        """The newcomer has caught up when it starts, and then stands still until what came next is gone."""
        return [0, 1, 2, *([3] if len(cast.peers) > 3 and rounds(cast) > 16 else [])]

    joined: list[int] = []

    def each(turn: int) -> None:
        if rounds(cast) >= 3 and not joined:
            joined.append(cast.join(16).actions.me.rank)

    cast.play(order=order, each_turn=each)
    assert "contributions/000005" not in "".join(cast.keys("contributions/"))
    assert [e["rank"] for e in events(tmp_path) if e["event"] == "caught_up"] == [3, 3]
    assert {peer.report.weights_sha256 for peer in cast.peers if peer.report} == {cast.reports()[0].weights_sha256}
    assert listed(cast)[-2] == [0, 1, 2, 3]
    cast.close()
