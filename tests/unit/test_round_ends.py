"""The round's state machine from the commit on, event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.errors import RunFailed, Superseded, WeightsMismatch
from peer_agent import signals as s
from peer_agent.outcome import Phase
from peer_agent.round import RoundMachine
from peer_agent.rules import TAKEOVER_LOOKS
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

OTHER = "e" * 64

# -------------------------------------------------------------------------------------------------------- applying


def test_exactly_the_listed_contributions_are_applied_in_rank_order() -> None:
    peer = joined()
    hold(peer, 2, 1, 0)
    (apply,) = peer.handle(s.CommitFound(commit(ranks=(0, 2))))
    assert isinstance(apply, s.Apply)
    assert [h.rank for h in apply.headers] == [0, 2]


def test_what_a_commit_lists_and_this_peer_lacks_is_fetched_by_digest() -> None:
    peer = joined()
    hold(peer, 0)
    peer.handle(s.ContributionHeld(header(1, digest="f" * 64)))  # another version than the one that is listed
    record = commit()
    assert peer.handle(s.CommitFound(record)) == [
        s.Fetch(0, record.contributors[1]),
        s.Fetch(0, record.contributors[2]),
    ]
    assert hold(peer, 1) == []
    (apply,) = hold(peer, 2)
    assert isinstance(apply, s.Apply)
    assert peer.handle(s.CommitFound(record)) == []


@pytest.mark.parametrize(("changes", "reason"), [({"base_weights": W2}, "base_weights"), ({"codec": "fp16"}, "codec")])
def test_what_a_commit_lists_is_applied_only_if_it_fits(changes: dict[str, Any], reason: str) -> None:
    peer = joined()
    hold(peer, 0, 1)
    peer.handle(s.CommitFound(commit()))
    reject, apply = peer.handle(s.ContributionHeld(header(2, **{"base": W0, **changes})))
    assert reject == s.Reject(reason, None, 0)
    assert isinstance(apply, s.Apply)
    assert [listed.rank for listed in apply.headers] == [0, 1], "what nobody can apply counts for nothing"


def test_a_commit_from_other_weights_fails_the_peer() -> None:
    (fail,) = joined().handle(s.CommitFound(commit(base=W2)))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, WeightsMismatch)


def test_a_process_whose_rank_the_commit_gives_to_another_stops() -> None:
    (fail,) = joined().handle(s.CommitFound(commit(members=(member(0, 2), member(1)))))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, Superseded)


def test_a_commit_of_the_next_round_waits_for_its_turn() -> None:
    peer = joined()
    applied(peer)
    assert peer.handle(s.CommitFound(commit(1, W1, ranks=(), final=True, extensions={"stop": "interrupted"}))) == []
    commands = peer.handle(s.ResultFound(result()))
    assert [type(c) for c in commands] == [s.Apply, s.Passed]
    assert peer.handle(s.Applied(1, W1)) == [s.Finish("interrupted")]


# --------------------------------------------------------------------------------------------------------- barrier


def test_the_leader_writes_the_result_and_the_others_wait() -> None:
    assert applied(joined(rank=1)) == [s.WriteResult(0, W1, store=False)]
    for rank in (0, 2):
        assert applied(joined(rank)) == []


def test_weights_are_put_beside_a_result_where_somebody_will_read_them() -> None:
    def stores(peer: RoundMachine) -> bool:
        (write,) = applied(peer)
        assert isinstance(write, s.WriteResult)
        return write.store

    assert stores(joined(rank=1, read_by_workers=True))
    assert stores(joined(rank=1, rounds=1)), "the closing round's are handed over"
    assert stores(joined(rank=1, validated=(1,))), "they may be the best"
    mixed = machine(1)
    mixed.handle(s.Started())
    mixed.handle(s.CaughtUp(0, W0, None))
    mixed.handle(s.MemberSeen(claim(0)))
    mixed.handle(s.MemberSeen(replace(claim(2), resources={"arithmetic": "other kernels"})))
    assert stores(mixed), "rank 2 may round otherwise"
    warned = joined(rank=1)
    assert warned.handle(s.Wanted(W2)) == [], "weights that this peer does not hold"
    assert stores(warned)
    final = joined(rank=1)
    hold(final, 0, 1, 2)
    final.handle(s.CommitFound(commit(final=True, extensions={"stop": "interrupted"})))
    assert final.handle(s.Applied(0, W1)) == [s.WriteResult(0, W1, store=True)]
    early = joined(rank=1)
    hold(early, 0, 1, 2)
    early.handle(s.CommitFound(commit()))
    assert early.handle(s.Applied(0, W1, stop="early_stopping")) == [s.WriteResult(0, W1, store=True)]


@pytest.mark.parametrize(("rank", "looks"), [(2, TAKEOVER_LOOKS), (0, 2 * TAKEOVER_LOOKS)])
def test_others_take_the_result_over_one_after_another(rank: int, looks: int) -> None:
    peer = joined(rank)
    applied(peer)
    for _ in range(looks - 1):
        assert peer.handle(s.PollDue()) == [s.FindResult(0)]
        assert peer.handle(s.ResultMissing(0)) == []
    peer.handle(s.PollDue())
    assert peer.handle(s.ResultMissing(0)) == [s.WriteResult(0, W1, store=False)]


def test_once_the_end_is_wanted_a_missing_result_is_written_at_the_first_look() -> None:
    peer = joined()
    applied(peer)
    peer.handle(s.StopFound(stop("failed: peer 1: it broke")))
    peer.handle(s.PollDue())
    assert peer.handle(s.ResultMissing(0)) == [s.WriteResult(0, W1, store=False)]


def test_recorded_weights_replace_differing_ones() -> None:
    peer = joined()
    applied(peer, weights=W2)
    assert peer.handle(s.ResultFound(result())) == [s.Adopt(0, W1)]
    assert peer.base == W0
    commands = peer.handle(s.Adopted(0, W1))
    assert commands == [s.Compute(1, W1, False), s.Passed(0, result())]


def test_recorded_weights_that_nobody_has_put_are_asked_for_at_every_look_and_not_for_ever() -> None:
    peer = joined()
    applied(peer, weights=W2)
    peer.handle(s.ResultFound(result()))
    for look in range(1, TAKEOVER_LOOKS + 1):
        expected: list[s.Command] = [s.Adopt(0, W1)]
        assert peer.handle(s.PollDue()) == expected + [s.CatchUp()] * (look == TAKEOVER_LOOKS)
    (fail,) = peer.handle(s.DeadlineReached(600.0))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, RunFailed)


def test_who_catches_up_and_rounds_otherwise_takes_part_with_the_recorded_weights_only() -> None:
    peer = machine(0)
    peer.handle(s.Started())
    members = (member(0), member(1), member(2))
    assert peer.handle(s.CaughtUp(1, W2, members, recorded=W1)) == [s.Adopt(0, W1)]
    for other in (1, 2):
        assert peer.handle(s.MemberSeen(claim(other))) == []
    assert peer.handle(s.PollDue()) == [s.CatchUp()], "the others may have gone on, with weights beside their results"
    assert peer.handle(s.CaughtUp(2, W2, members, recorded=OTHER)) == [s.Adopt(1, OTHER)]
    assert peer.handle(s.Adopted(0, W1)) == []
    commands = peer.handle(s.Adopted(1, OTHER))
    assert commands == [s.FindMembers((1, 2)), s.FindCommit(2), s.Compute(2, OTHER, False)]


def test_wanted_weights_are_put_by_who_recorded_them_and_by_the_others_after_some_looks() -> None:
    def after_a_round(rank: int) -> RoundMachine:
        peer = joined(rank)
        applied(peer)
        peer.handle(s.ResultFound(result()))
        assert (peer.phase, peer.round) == (Phase.COLLECTING, 1)
        return peer

    peer = after_a_round(1)
    assert peer.handle(s.Wanted(W1)) == [s.Share(1)]
    assert peer.handle(s.Wanted(W1)) == [], "once is enough"
    peer = after_a_round(2)
    assert peer.handle(s.Wanted(W1)) == []
    for _ in range(TAKEOVER_LOOKS):
        assert s.FindWanted(W1) in peer.handle(s.PollDue())
    assert peer.handle(s.Wanted(W1)) == [s.Share(1)]


def test_a_frame_that_set_out_before_its_round_opened_is_rejected_where_it_does_not_fit() -> None:
    peer = joined(rank=0)
    applied(peer)
    arrived = peer.handle(s.FrameArrived(header(2, 1, W2), b"x", 2))
    assert [type(command) for command in arrived] == [s.Hold]
    peer.handle(s.ResultFound(result()))
    assert peer.handle(s.ContributionHeld(header(2, 1, W2))) == [s.Reject("base_weights", 2, 1)]
    assert 2 not in peer.gathering.held


# ------------------------------------------------------------------------------------------------------------- ends


def test_the_closing_round_is_validated_by_one_and_committed_without_contributions() -> None:
    peer = joined(rank=1, rounds=1)
    applied(peer)
    commands = peer.handle(s.ResultFound(result()))
    assert commands == [s.Validate(1), s.Passed(0, result())]
    (create,) = peer.handle(s.Validated(1, 0.5, 0.9))
    assert isinstance(create, s.CreateCommit)
    draft = create.draft
    assert (draft.round, draft.contributors, draft.final) == (1, (), True)
    assert (draft.validation_loss, draft.validation_accuracy) == (0.5, 0.9)
    (apply,) = peer.handle(s.CommitFound(draft))
    assert isinstance(apply, s.Apply)
    assert peer.handle(s.Applied(1, W1)) == [s.Finish("epoch_limit")]


def test_another_validates_the_end_when_the_one_in_turn_does_not() -> None:
    peer = joined(rank=0, rounds=1)
    applied(peer)
    assert [type(c) for c in peer.handle(s.ResultFound(result()))] == [s.Passed]
    for _ in range(2 * TAKEOVER_LOOKS - 1):
        peer.handle(s.PollDue())
        assert peer.handle(s.CommitMissing(1)) == []
    peer.handle(s.PollDue())
    assert peer.handle(s.CommitMissing(1)) == [s.Validate(1)]
    assert peer.handle(s.CommitMissing(1)) == []


def test_the_last_validation_may_stop_early_but_hides_no_other_reason() -> None:
    def end(**changes: Any) -> list[s.Command]:
        peer = joined()
        hold(peer, 0)
        peer.handle(s.CommitFound(commit(ranks=(), final=True, validation_loss=0.5, **changes)))
        return peer.handle(s.Applied(0, W0, "early_stopping"))

    assert end() == [s.Finish("early_stopping")]
    assert end(extensions={"stop": "failed: peer 2: it broke"}) == [s.Finish("failed: peer 2: it broke")]


def test_early_stopping_ends_after_the_barrier_of_the_deciding_round() -> None:
    peer = joined(rank=0)
    assert applied(peer, reason="early_stopping") == []
    assert peer.handle(s.ResultFound(result())) == [s.Passed(0, result()), s.Finish("early_stopping")]


def test_a_stop_closes_the_round_without_waiting_for_contributions() -> None:
    peer = joined()
    hold(peer, 0)
    (create,) = peer.handle(s.StopFound(stop()))
    assert isinstance(create, s.CreateCommit)
    assert (create.draft.contributors, create.draft.final) == ((), True)
    assert create.draft.extensions == {"stop": "interrupted"}
    assert peer.handle(s.StopFound(stop("another"))) == []


def test_a_complete_round_still_counts_when_the_stop_comes() -> None:
    peer = joined()
    hold(peer, 0, 1, 2)
    (create,) = peer.handle(s.StopFound(stop()))
    assert isinstance(create, s.CreateCommit)
    assert [c.rank for c in create.draft.contributors] == [0, 1, 2]
    peer.handle(s.CommitFound(create.draft))
    peer.handle(s.Applied(0, W1))
    assert peer.handle(s.ResultFound(result()))[-1] == s.Finish("interrupted")


def test_a_stop_during_the_barrier_closes_the_next_round() -> None:
    peer = joined()
    applied(peer)
    assert peer.handle(s.StopFound(stop())) == []
    commands = peer.handle(s.ResultFound(result()))
    assert [type(c) for c in commands] == [s.CreateCommit, s.Passed]


def test_a_wish_to_end_becomes_a_stop_record_once() -> None:
    peer = joined()
    assert peer.handle(s.EndRequested("interrupted")) == [s.CreateStop("interrupted", 0)]
    peer.handle(s.StopFound(stop()))
    assert peer.handle(s.EndRequested("interrupted")) == []
