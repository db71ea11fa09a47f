"""The asynchronous state machine where peers fall silent, are taken over, and come back; and where weights travel."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import Superseded
from contract.records import MemberRef
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.asynchronous import HELPERS, PATIENCE_LOOKS, AsyncMachine, AsyncRules, Phase
from tests.unit.test_asynchronous import W0, W1, W2, averaged, claim, header, run_rounds

PEERS = 4


def weights(rank: int, round: int, incarnation: int = 1, **changes: Any) -> FrameHeader:
    values: dict[str, Any] = {
        "kind": Kind.WEIGHTS,
        "base_weights": f"{rank:032x}{round:032x}",
        "samples": 0,
        "payload_bytes": 20,
        "digest": f"{rank:02}{round:02}{incarnation:02}{0:02}" * 8,
        "incarnation": incarnation,
    }
    return header(rank, round, **{**values, **changes})


def machine(incarnation: int = 1, average_every: int = 0, keep_every: int = 0, rank: int = 0) -> AsyncMachine:
    return AsyncMachine(
        AsyncRules(
            me=MemberRef(rank=rank, incarnation=incarnation),
            peers=PEERS,
            rounds=50,
            max_staleness=2,
            initial_weights=W0,
            validates=lambda t: False,
            frames=FrameRules(run="run", codec="none", elements=5, buffers_bytes=0),
            average_every=average_every,
            keep_every=keep_every,
        )
    )


def joined(average_every: int = 0, keep_every: int = 0, rank: int = 0) -> AsyncMachine:
    peer = machine(average_every=average_every, keep_every=keep_every, rank=rank)
    peer.handle(s.Started())
    for other in set(range(PEERS)) - {rank}:
        peer.handle(s.MemberSeen(claim(other)))
    assert peer.phase is Phase.COMPUTING
    return peer


def restarted() -> AsyncMachine:
    """Rank 0 in its second incarnation, once it has seen everybody's claims."""
    peer = machine(incarnation=2)
    peer.handle(s.Started())
    for other in range(1, PEERS):
        commands = peer.handle(s.MemberSeen(claim(other)))
    assert (commands, peer.phase) == ([s.FindWeights(None)], Phase.CATCHING_UP)
    return peer


def hear(peer: AsyncMachine, *rounds: int) -> list[s.Command]:
    """Heartbeats of ranks 1, 2, …"""
    return [c for rank, round in enumerate(rounds, 1) for c in peer.handle(s.Heard(rank, 1, round))]


# ------------------------------------------------------------------------------------------------------ who is gone


def test_who_is_silent_is_left_out_until_it_is_heard_again() -> None:
    peer = joined()
    for rank in (1, 2):
        peer.handle(s.ContributionHeld(header(rank)))
    peer.handle(s.Heard(1, 1, 0))
    assert peer.handle(s.Silent(frozenset({1}))) == [s.TellPresence(0, (1,), ())]
    assert averaged(peer.handle(s.ContributionHeld(header(0)))) == [(0, 0), (2, 0)]
    peer.handle(s.Applied(0, W1))
    # What it has sent before is no reason to wait for more, and is not looked for either.
    assert peer.handle(s.FrameArrived(header(1, 1), b"", 1)) == []
    (find, _) = peer.handle(s.PollDue())
    assert isinstance(find, s.FindLatest)
    assert {member.rank for member, _ in find.known} == {3}
    assert peer.handle(s.Silent(frozenset())) == []  # after an outage everybody has the whole time again, the dead too
    assert peer.handle(s.FrameArrived(header(1, 1), b"", 1)) == []
    assert peer.handle(s.Heard(1, 1, 2)) == [s.TellPresence(1, (), (MemberRef(rank=1, incarnation=1),))]
    assert peer.handle(s.FrameArrived(header(1, 1), b"", 1)) == [s.Hold(header(1, 1), b"", 1)]


def test_a_frame_that_was_being_fetched_when_its_sender_fell_silent_is_not_used() -> None:
    peer = joined()
    peer.handle(s.Silent(frozenset({1})))
    peer.handle(s.ContributionHeld(header(1)))
    assert averaged(peer.handle(s.ContributionHeld(header(0)))) == [(0, 0)]


def test_nothing_of_a_process_is_used_once_its_successor_is_known() -> None:
    peer = joined(average_every=1)
    run_rounds(peer, 1)
    peer.handle(s.ContributionHeld(header(1)))
    peer.handle(s.ContributionHeld(weights(1, 1)))
    peer.handle(s.MemberSeen(claim(1, 2)))
    (average,) = peer.handle(s.ContributionHeld(header(0, 1)))
    assert isinstance(average, s.Average)
    assert ([h.rank for h in average.headers], average.weights) == ([0], ())
    peer.handle(s.Applied(1, W1))
    assert peer.handle(s.FrameArrived(header(1, 2), b"", 1)) == [s.Reject("incarnation", 1, 2)]
    assert peer.handle(s.FrameArrived(weights(1, 2), b"", 1)) == [s.Reject("incarnation", 1, 2)]


def test_a_frame_of_an_unknown_successor_is_taken_once_its_claim_is_read() -> None:
    peer = joined()
    frame = header(1, 0, incarnation=2)
    assert peer.handle(s.FrameArrived(frame, b"x", 1)) == [s.FindMembers((1,))]
    commands = peer.handle(s.MemberSeen(claim(1, 2)))
    assert s.Hold(frame, b"x", 1) in commands
    peer.handle(s.ContributionHeld(frame))
    assert averaged(peer.handle(s.ContributionHeld(header(0)))) == [(0, 0), (1, 0)]


def test_a_heartbeat_of_an_unknown_successor_is_a_reason_to_look() -> None:
    peer = joined()
    assert peer.handle(s.Heard(1, 2, 0)) == [s.FindMembers((1,))]
    assert peer.handle(s.Heard(1, 1, 5)) == []


def test_a_claim_on_the_own_rank_ends_this_process() -> None:
    (fail,) = joined().handle(s.MemberSeen(claim(0, 2)))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, Superseded)


# ------------------------------------------------------------------------------------------------------ coming back


def test_the_next_living_peers_put_their_weights_for_one_that_comes_back() -> None:
    helped = []
    for rank in (0, 2, 3):
        peer = joined(rank=rank)
        peer.handle(s.Silent(frozenset({1, 2} - {rank})))
        peer.handle(s.ContributionHeld(header(rank, 0)))
        peer.handle(s.Applied(0, W1))
        if s.PutWeights(1, (1,)) in peer.handle(s.MemberSeen(claim(1, 2))):
            helped.append(rank)
    assert helped == [0, 2, 3]  # rank 2 does not know that the others take it for dead
    healthy = [joined(rank=rank) for rank in (0, 2, 3)]
    for peer in healthy:
        peer.handle(s.ContributionHeld(header(peer.rules.me.rank, 0)))
        peer.handle(s.Applied(0, W1))
    helped = [p.rules.me.rank for p in healthy if s.PutWeights(1, (1,)) in p.handle(s.MemberSeen(claim(1, 2)))]
    assert helped == [2, 3]
    assert len(helped) == HELPERS


def test_weights_that_are_owed_are_put_when_the_average_under_way_is_applied() -> None:
    peer = joined()
    run_rounds(peer, 1)
    peer.handle(s.ContributionHeld(header(0, 1)))
    assert peer.phase is Phase.AVERAGING
    assert peer.handle(s.MemberSeen(claim(3, 2))) == [s.TellPresence(1, (), (MemberRef(rank=3, incarnation=2),))]
    assert peer.handle(s.Applied(1, W2)) == [s.PutWeights(2, (3,)), s.Compute(2, W2, False)]


def test_a_restarted_peer_goes_on_from_weights_as_new_as_a_frame_must_be() -> None:
    peer = restarted()
    peer.handle(s.WeightsSought())
    assert hear(peer, 20, 18, 21) == []
    assert peer.handle(s.FrameArrived(weights(2, 19), b"", 2)) == []  # the first frame would be stale when it comes
    assert peer.handle(s.FrameArrived(weights(1, 20), b"", 1)) == [s.TakeUp(weights(1, 20))]
    assert peer.handle(s.FrameArrived(weights(3, 21), b"", 3)) == []  # one at a time
    assert peer.handle(s.CaughtUp(20, W2, None)) == [s.Compute(20, W2, False)]
    assert averaged(peer.handle(s.ContributionHeld(header(0, 20, incarnation=2)))) == [(0, 20)]
    assert peer.handle(s.Applied(20, W1)) == [s.Compute(21, W1, False)]


def test_a_restarted_peer_waits_to_hear_where_everybody_stands() -> None:
    peer = restarted()
    peer.handle(s.FrameArrived(weights(1, 3), b"", 1))
    peer.handle(s.WeightsSought())
    assert hear(peer, 3, 4) == []
    assert peer.handle(s.Silent(frozenset({3}))) == [s.TellPresence(0, (3,), ()), s.TakeUp(weights(1, 3))]


def test_where_weights_are_gone_the_next_best_do() -> None:
    peer = restarted()
    for rank, round in ((1, 9), (2, 8)):  # both new enough
        peer.handle(s.FrameArrived(weights(rank, round), b"", rank))
    hear(peer, 9, 9, 9)
    assert peer.handle(s.WeightsSought()) == [s.TakeUp(weights(1, 9))]
    assert peer.handle(s.HoldFailed(weights(1, 9))) == [s.TakeUp(weights(2, 8))]


@pytest.mark.parametrize("found", [True, False])
def test_patience_ends_with_the_newest_there_are(found: bool) -> None:
    """A predecessor's own weights do as well: where all were killed nobody else has any."""
    peer = restarted()
    hear(peer, 30, 30, 30)
    if found:
        peer.handle(s.FrameArrived(weights(0, 7), b"", 0))
    for _ in range(PATIENCE_LOOKS - 1):
        assert peer.handle(s.WeightsSought()) == []
        assert peer.handle(s.PollDue()) == [s.FindWeights(None), s.FindStop()]
    last = peer.handle(s.WeightsSought())
    assert last == ([s.TakeUp(weights(0, 7))] if found else [s.Compute(0, W0, False)])


def test_who_comes_back_early_begins_at_the_beginning() -> None:
    peer = restarted()
    hear(peer, 1, 1, 0)
    assert peer.handle(s.WeightsSought()) == [s.Compute(0, W0, False)]


def test_weights_are_kept_every_so_many_rounds_and_nobody_hears_of_it() -> None:
    peer = joined(keep_every=3)
    commands = [run_rounds(peer, 1) for _ in range(6)]
    puts = [command for answer in commands for command in answer if isinstance(command, s.PutWeights)]
    assert puts == [s.PutWeights(3, ()), s.PutWeights(6, ())]


# ---------------------------------------------------------------------------------------------- averages of weights


def test_weights_are_put_when_their_round_begins_and_averaged_before_its_step() -> None:
    peer = joined(average_every=3)
    assert run_rounds(peer, 3) == [s.PutWeights(3, None), s.Compute(3, W1, False)]
    for rank, round in ((3, 3), (1, 3)):
        peer.handle(s.FrameArrived(weights(rank, round), b"", rank))
        peer.handle(s.ContributionHeld(weights(rank, round)))
    (average,) = peer.handle(s.ContributionHeld(header(0, 3)))
    assert average == s.Average(3, (header(0, 3),), (weights(1, 3), weights(3, 3)))
    peer.handle(s.Applied(3, W2))
    (average,) = peer.handle(s.ContributionHeld(header(0, 4)))
    assert average == s.Average(4, (header(0, 4),))


def test_weights_that_are_too_old_or_of_a_silent_peer_are_not_averaged() -> None:
    peer = joined(average_every=6)
    run_rounds(peer, 3)
    for rank in (1, 2):
        peer.handle(s.ContributionHeld(weights(rank, 3 + rank)))
    peer.handle(s.ContributionHeld(weights(3, 3)))
    run_rounds(peer, 3)
    peer.handle(s.Silent(frozenset({2})))
    commands = peer.handle(s.ContributionHeld(header(0, 6)))
    assert commands == [s.Reject("stale", 3, 3), s.Average(6, (header(0, 6),), (weights(1, 4),))]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank": 1, "round": 3}, "stale"),
        ({"rank": 1, "round": 7}, "outdated"),
        ({"elements": 6}, "shape"),
        ({"payload_bytes": 24}, "oversized"),
        ({"codec": "fp16"}, "codec"),
        ({"samples": 9}, "samples"),
        ({"run": "other"}, "run"),
        ({"base_round": 5}, "base_round"),
        ({"shards": 2}, "kind"),
        ({"incarnation": 0}, "incarnation"),
        ({"rank": 5}, "member"),
        ({"rank": 0}, "member"),
    ],
)
def test_weights_that_do_not_fit_are_rejected_with_their_reason(changes: dict[str, Any], reason: str) -> None:
    peer = joined(average_every=6)
    run_rounds(peer, 6)
    peer.handle(s.ContributionHeld(weights(1, 8)))
    rank, round = changes.pop("rank", 2), changes.pop("round", 6)
    odd = weights(rank, round, **changes)
    assert peer.handle(s.FrameArrived(odd, b"", 1)) == [s.Reject(reason, 1, round)]


def test_where_weights_are_not_averaged_those_of_others_are_ignored() -> None:
    peer = joined()
    run_rounds(peer, 2)
    assert peer.handle(s.FrameArrived(weights(1, 2), b"", 1)) == []
    (find, _) = peer.handle(s.PollDue())
    assert isinstance(find, s.FindLatest)


def test_weights_that_no_message_announced_are_looked_for() -> None:
    peer = joined(average_every=1)
    run_rounds(peer, 1)
    peer.handle(s.ContributionHeld(weights(1, 1)))
    _, find, _ = peer.handle(s.PollDue())
    assert find == s.FindWeights(((MemberRef(rank=2, incarnation=1), -1), (MemberRef(rank=3, incarnation=1), -1)))
