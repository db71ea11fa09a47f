"""The round's state machine up to the commit, event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.errors import RunFailed, Superseded
from contract.records import MemberRef
from contract.wire import Kind, accuracy_extension
from peer_agent import signals as s
from peer_agent.exchange.topology import topology
from tests.fakes.round_events import (
    W0,
    W1,
    W2,
    applied,
    claim,
    commit,
    header,
    hold,
    joined,
    machine,
    member,
    result,
    stop,
)

# --------------------------------------------------------------------------------------------------------- joining


def test_a_peer_looks_for_the_others_and_computes_once_all_are_seen() -> None:
    peer = machine(rank=1)
    assert peer.handle(s.Started()) == [s.CatchUp()]
    assert peer.handle(s.CaughtUp(0, W0, None)) == [s.FindMembers((0, 2))]
    assert peer.handle(s.MemberSeen(claim(2))) == []
    assert peer.handle(s.MemberSeen(claim(2))) == []
    assert peer.handle(s.MemberSeen(claim(0, incarnation=3))) == [s.Compute(0, W0, validate=False)]
    assert peer.members == (member(0, 3), member(1), member(2))


def test_while_joining_looks_repeat_and_the_deadline_names_who_is_missing() -> None:
    peer = machine(rank=1)
    peer.handle(s.CaughtUp(0, W0, None))
    peer.handle(s.MemberSeen(claim(0)))
    assert peer.handle(s.PollDue()) == [s.FindMembers((2,)), s.FindStop()]
    (fail,) = peer.handle(s.DeadlineReached(180.0))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, RunFailed)
    assert str(fail.error) == "peer 2 did not arrive within 180 s"


def test_a_stop_before_the_start_ends_at_once() -> None:
    peer = machine()
    peer.handle(s.CaughtUp(0, W0, None))
    assert peer.handle(s.StopFound(stop())) == [s.FindCommit(0)]
    assert peer.handle(s.CommitMissing(0)) == [s.Finish("interrupted")]
    assert peer.handle(s.MemberSeen(claim(1))) == []


def test_a_frame_that_comes_before_its_senders_claim_waits_for_it() -> None:
    peer = machine(rank=0)
    peer.handle(s.CaughtUp(0, W0, None))
    early = header(1, incarnation=2)
    assert peer.handle(s.FrameArrived(early, b"x", 1)) == [s.FindMembers((1,))]
    assert peer.handle(s.MemberSeen(claim(1, incarnation=1))) == [s.FindMembers((1,))], "not that claim"
    assert peer.handle(s.MemberSeen(claim(1, incarnation=2))) == [s.Hold(early, b"x", 1)]
    peer.handle(s.ContributionHeld(early))
    assert peer.handle(s.MemberSeen(claim(2))) == [s.Compute(0, W0, False)]
    assert set(peer.gathering.held) == {1}


def test_a_frame_of_a_process_that_was_replaced_before_the_start_is_rejected() -> None:
    peer = machine(rank=0)
    peer.handle(s.CaughtUp(0, W0, None))
    peer.handle(s.MemberSeen(claim(1)))
    peer.handle(s.ContributionHeld(header(1)))
    peer.handle(s.MemberSeen(claim(1, incarnation=2)))
    assert peer.handle(s.MemberSeen(claim(2))) == [s.Reject("incarnation", 1, 0), s.Compute(0, W0, False)]


def test_a_later_claim_on_the_own_rank_stops_this_process() -> None:
    (fail,) = joined().handle(s.MemberSeen(claim(0, incarnation=2)))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, Superseded)


# ------------------------------------------------------------------------------------------------------ collecting


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": "another"}, "run"),
        ({"kind": Kind.WEIGHTS}, "kind"),
        ({"kind": Kind.GRADIENT}, "kind"),
        ({"shards": 2}, "kind"),
        ({"group": 1}, "kind"),
        ({"codec": "fp16"}, "codec"),
        ({"elements": 6}, "shape"),
        ({"buffers_bytes": 4}, "shape"),
        ({"samples": 0}, "samples"),
        ({"base_round": 1}, "base_round"),
        ({"base_weights": W1}, "base_weights"),
        ({"rank": 7}, "member"),
        ({"incarnation": 0}, "incarnation"),
        ({"round": 2, "base_round": 2}, "ahead"),
    ],
)
def test_what_does_not_fit_is_rejected_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    peer = joined()
    odd = replace(header(1), **changes)
    assert peer.handle(s.FrameArrived(odd, b"", 1)) == [s.Reject(reason, 1, odd.round)]


def test_a_frame_of_a_past_round_is_stale() -> None:
    peer = joined()
    applied(peer)
    peer.handle(s.ResultFound(result()))
    assert peer.round == 1
    assert peer.handle(s.FrameArrived(header(1, digest="f" * 64), b"", 1)) == [s.Reject("stale", 1, 0)]


def test_a_message_that_its_commit_overtook_is_no_rejection() -> None:
    peer = joined()
    applied(peer)
    peer.handle(s.ResultFound(result()))
    assert peer.round == 1
    assert peer.handle(s.FrameArrived(header(2), b"", 2)) == []


def test_a_frame_that_comes_twice_is_ignored_and_a_second_version_rejected() -> None:
    peer = joined()
    hold(peer, 1)
    assert peer.handle(s.FrameArrived(header(1), b"", 1)) == []
    assert peer.handle(s.FrameArrived(header(1, digest="f" * 64), b"", 1)) == [s.Reject("conflict", 1, 0)]


def test_an_early_frame_of_the_next_round_counts_there_if_its_weights_fit() -> None:
    peer = joined()
    for rank, base in ((1, W1), (2, W2)):
        early = header(rank, 1, base)
        assert peer.handle(s.FrameArrived(early, b"", rank)) == [s.Hold(early, b"", rank)]
        peer.handle(s.ContributionHeld(early))
    applied(peer)
    commands = peer.handle(s.ResultFound(result()))
    assert s.Reject("base_weights", 2, 1) in commands
    assert set(peer.gathering.held) == {1}


def test_only_the_leader_commits_and_leadership_takes_turns() -> None:
    for rank in range(3):
        commands = hold(joined(rank), 2, 0, 1)
        assert [type(c) for c in commands] == ([s.CreateCommit] if rank == 1 else [])
    peer = joined()
    leaders = []
    base = W0
    for t in range(4):
        leaders.append(peer.leader.rank)
        weights = f"{t + 1}" * 64
        applied(peer, t, base, weights)
        peer.handle(s.ResultFound(result(t, weights)))
        base = weights
    assert leaders == [1, 2, 0, 1]


def test_the_commit_lists_contributions_in_rank_order_with_the_validators_figures() -> None:
    peer = joined(rank=1, validated=(0,))
    hold(peer, 2, 1)
    validated = header(0, validation_loss=0.25, extensions=(accuracy_extension(0.75),))
    (create,) = peer.handle(s.ContributionHeld(validated))
    assert isinstance(create, s.CreateCommit)
    draft = create.draft
    assert [c.rank for c in draft.contributors] == [0, 1, 2]
    assert draft.contributors[2].key == "contributions/0/2-1"
    assert (draft.validation_loss, draft.validation_accuracy) == (0.25, 0.75)
    assert (draft.base_weights, draft.final, draft.extensions) == ({"0": W0}, False, {})
    assert draft.members == (member(0), member(1), member(2))


def test_the_validator_takes_turns_and_validates_where_it_is_due() -> None:
    seen = {}
    for rank in range(3):
        peer = joined(rank, validated=(0, 1))
        applied(peer)
        commands = peer.handle(s.ResultFound(result()))
        seen[rank] = [c.validate for c in commands if isinstance(c, s.Compute)]
    assert seen == {0: [False], 1: [True], 2: [False]}


def test_a_commit_that_no_message_brought_is_looked_for_and_then_created_by_anyone() -> None:
    peer = joined(rank=0)
    hold(peer, 0, 1)
    assert peer.handle(s.PollDue()) == [s.FindStop(), s.FindCommit(0), s.FindWanted(W0)]
    assert peer.handle(s.CommitMissing(0)) == [s.FindContributions(0, (member(2),))]
    hold(peer, 2)
    assert [type(c) for c in peer.handle(s.CommitMissing(0))] == [s.CreateCommit]


def test_a_result_before_its_commit_makes_the_peer_look_for_the_commit() -> None:
    peer = joined()
    hold(peer, 0, 1, 2)
    assert peer.handle(s.ResultFound(result())) == [s.FindCommit(0)]
    (apply,) = peer.handle(s.CommitFound(commit()))
    assert isinstance(apply, s.Apply)
    assert [type(c) for c in peer.handle(s.Applied(0, W1))] == [s.Compute, s.Passed]


# ------------------------------------------------------------------------------------------------------------ looks


def sought(commands: list[s.Command]) -> list[tuple[MemberRef, ...]]:
    return [command.members for command in commands if isinstance(command, s.FindContributions)]


def test_a_look_is_for_what_the_process_made_that_holds_the_rank_by_now() -> None:
    peer = joined()
    peer.handle(s.MemberSeen(claim(2, incarnation=2)))
    peer.handle(s.PollDue())
    assert sought(peer.handle(s.CommitMissing(0))) == [(member(0), member(1), member(2, 2))]
    assert sought(peer.handle(s.Silent(frozenset({2})))) == [(member(2, 2),)]


def test_what_is_announced_to_the_leader_is_for_it_to_look_for_and_for_the_next_one_later() -> None:
    looks = {}
    for rank in range(3):
        peer = joined(rank)
        peer.rules = replace(peer.rules, topology=topology("reduce_scatter"))
        for look in range(1, 12):
            peer.handle(s.PollDue())
            if sought(peer.handle(s.CommitMissing(0))):
                looks[rank] = look
                break
    assert looks == {1: 1, 2: 5, 0: 10}
