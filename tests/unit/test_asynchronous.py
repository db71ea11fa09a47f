"""The asynchronous state machine, event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.errors import RunFailed, Superseded
from contract.records import Member, MemberRef, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.asynchronous import AsyncMachine, AsyncRules, Phase

W0, W1, W2 = "0" * 64, "1" * 64, "2" * 64


def claim(rank: int, incarnation: int = 1) -> Member:
    return Member(run="run", rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce="n")


def header(rank: int, round: int = 0, **changes: Any) -> FrameHeader:
    values: dict[str, Any] = {
        "kind": Kind.UPDATE,
        "run": "run",
        "round": round,
        "base_round": round,
        "base_weights": f"{rank}" * 64,
        "rank": rank,
        "incarnation": 1,
        "samples": 10,
        "codec": "none",
        "seed": 0,
        "elements": 5,
        "digest": f"{rank:02}{round:02}" * 16,
    }
    return FrameHeader(**{**values, **changes})


def joined(rank: int = 0, peers: int = 3, rounds: int = 20, validated: tuple[int, ...] = ()) -> AsyncMachine:
    peer = AsyncMachine(
        AsyncRules(
            me=MemberRef(rank=rank, incarnation=1),
            peers=peers,
            rounds=rounds,
            max_staleness=2,
            initial_weights=W0,
            validates=lambda t: t in validated,
            frames=FrameRules(run="run", codec="none", elements=5, buffers_bytes=0),
        )
    )
    commands = peer.handle(s.Started())
    for other in range(peers):
        if other != rank:
            commands = peer.handle(s.MemberSeen(claim(other)))
    assert commands == [s.Compute(0, W0, validate=False)]
    return peer


def run_rounds(peer: AsyncMachine, count: int) -> list[s.Command]:
    """Rounds in which nothing new comes from others; the commands of the last step."""
    commands: list[s.Command] = []
    for _ in range(count):
        peer.handle(s.ContributionHeld(header(0, peer.round)))
        commands = peer.handle(s.Applied(peer.round, W1))
    return commands


def averaged(commands: list[s.Command]) -> list[tuple[int, int]]:
    (average,) = [command for command in commands if isinstance(command, s.Average)]
    return [(h.rank, h.round) for h in average.headers]


def stop(weights: str = W2, reason: str = "epoch_limit") -> Stop:
    writer = MemberRef(rank=1, incarnation=1)
    return Stop(run="run", reason=reason, round=3, weights_sha256=weights, writer=writer, nonce="n")


def test_the_own_gradient_is_averaged_with_the_latest_of_each_sender_in_rank_order() -> None:
    peer = joined()
    for sender, round in ((2, 0), (1, 0), (1, 1), (1, 2)):
        frame = header(sender, round)
        assert peer.handle(s.FrameArrived(frame, b"x", sender)) == [s.Hold(frame, b"x", sender)]
        assert peer.handle(s.ContributionHeld(frame)) == []
    assert averaged(peer.handle(s.ContributionHeld(header(0)))) == [(0, 0), (1, 2), (2, 0)]


def test_a_frame_is_used_until_it_is_too_old_and_then_rejected_once() -> None:
    peer = joined()
    peer.handle(s.ContributionHeld(header(1, 0)))
    for round in range(3):
        assert averaged(peer.handle(s.ContributionHeld(header(0, round)))) == [(0, round), (1, 0)]
        peer.handle(s.Applied(round, W1))
    commands = peer.handle(s.ContributionHeld(header(0, 3)))
    assert commands[0] == s.Reject("stale", 1, 0)
    assert averaged(commands) == [(0, 3)]
    peer.handle(s.Applied(3, W1))
    assert averaged(peer.handle(s.ContributionHeld(header(0, 4)))) == [(0, 4)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2, "base_round": 2}, "stale"),
        ({"round": 4, "base_round": 4}, "outdated"),
        ({"elements": 6, "round": 9, "base_round": 9}, "shape"),
        ({"incarnation": 0, "round": 9, "base_round": 9}, "incarnation"),
        ({"rank": 5, "round": 9, "base_round": 9}, "member"),
        ({"rank": 0, "round": 9, "base_round": 9}, "member"),
    ],
)
def test_what_does_not_fit_is_rejected_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    peer = joined()
    run_rounds(peer, 5)
    peer.handle(s.ContributionHeld(header(1, 5)))
    odd = replace(header(1), **changes)
    assert peer.handle(s.FrameArrived(odd, b"", 1)) == [s.Reject(reason, 1, odd.round)]


def test_a_frame_from_ahead_has_no_staleness_and_one_that_comes_twice_is_ignored() -> None:
    peer = joined()
    ahead = header(1, 15)
    assert peer.handle(s.FrameArrived(ahead, b"x", 1)) == [s.Hold(ahead, b"x", 1)]
    peer.handle(s.ContributionHeld(ahead))
    assert peer.handle(s.FrameArrived(ahead, b"x", 1)) == []
    assert averaged(peer.handle(s.ContributionHeld(header(0)))) == [(0, 0), (1, 15)]


def test_a_frame_of_a_process_that_never_held_the_rank_is_dropped() -> None:
    peer = joined()
    peer.handle(s.ContributionHeld(header(1, 0, incarnation=7)))
    commands = peer.handle(s.ContributionHeld(header(0)))
    assert commands[0] == s.Reject("incarnation", 1, 0)
    assert averaged(commands) == [(0, 0)]


def test_the_own_weights_are_validated_where_it_is_due_and_at_the_end() -> None:
    peer = joined(rounds=3, validated=(1,))
    assert run_rounds(peer, 1) == [s.Validate(1)]
    assert peer.handle(s.Validated(1, 0.5, 0.5)) == [s.Compute(1, W1, False)]
    assert run_rounds(peer, 2) == [s.Validate(3)]
    assert peer.handle(s.Validated(3, 0.5, 0.5)) == [s.CreateStop("epoch_limit", 3)]


def test_early_stopping_and_a_wish_to_end_become_the_common_stop() -> None:
    peer = joined(validated=(1,))
    run_rounds(peer, 1)
    assert peer.handle(s.Validated(1, 0.5, 0.5, stop="early_stopping")) == [s.CreateStop("early_stopping", 1)]
    assert joined().handle(s.EndRequested("interrupted")) == [s.CreateStop("interrupted", 0)]


def test_the_final_weights_are_adopted_whatever_this_peer_was_doing() -> None:
    peer = joined()
    run_rounds(peer, 2)
    assert peer.handle(s.StopFound(stop())) == [s.Adopt(2, W2)]
    assert peer.handle(s.StopFound(stop())) == []
    assert peer.handle(s.ContributionHeld(header(0, 2))) == []
    assert peer.handle(s.Adopted(2, W2)) == [s.Finish("epoch_limit")]
    assert (peer.base, peer.phase) == (W2, Phase.ENDED)


@pytest.mark.parametrize("weights", [W1, ""])
def test_nothing_is_adopted_where_the_stop_names_the_own_weights_or_none(weights: str) -> None:
    peer = joined()
    run_rounds(peer, 1)
    assert peer.handle(s.StopFound(stop(weights, "failed: peer 1"))) == [s.Finish("failed: peer 1")]


def test_looks_into_s3_ask_only_for_those_who_have_been_quiet() -> None:
    peer = joined()
    peer.handle(s.ContributionHeld(header(1, 4)))
    quiet = MemberRef(rank=2, incarnation=1)
    assert peer.handle(s.PollDue()) == [s.FindLatest(((quiet, -1),)), s.FindStop()]
    (find, _) = peer.handle(s.PollDue())
    assert find == s.FindLatest(((MemberRef(rank=1, incarnation=1), 4), (quiet, -1)))


def test_commits_and_results_mean_nothing_here() -> None:
    assert joined().handle(s.CommitMissing(0)) == []
    assert joined().handle(s.ResultMissing(0)) == []


def test_a_start_without_the_others_fails_and_a_takeover_stops() -> None:
    peer = AsyncMachine(joined().rules)
    peer.handle(s.Started())
    assert peer.handle(s.PollDue()) == [s.FindMembers((1, 2)), s.FindStop()]
    (fail,) = peer.handle(s.DeadlineReached(5.0))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, RunFailed)
    (fail,) = joined().handle(s.MemberSeen(claim(0, 2)))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, Superseded)
