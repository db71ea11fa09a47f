"""The round's state machine, event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contract.errors import RunFailed, Superseded, WeightsMismatch
from contract.records import Commit, Contributor, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader, Kind, accuracy_extension
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.round import Phase, RoundMachine
from peer_agent.rules import TAKEOVER_LOOKS, RoundRules

W0, W1, W2 = "0" * 64, "1" * 64, "2" * 64


def member(rank: int, incarnation: int = 1) -> MemberRef:
    return MemberRef(rank=rank, incarnation=incarnation)


def claim(rank: int, incarnation: int = 1) -> Member:
    return Member(run="run", rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce="n")


def machine(rank: int = 0, peers: int = 3, rounds: int = 4, validated: tuple[int, ...] = ()) -> RoundMachine:
    return RoundMachine(
        RoundRules(
            me=member(rank),
            peers=peers,
            rounds=rounds,
            initial_weights=W0,
            validation=lambda t: t if t in (*validated, rounds) else None,
            key=lambda t, r, i: f"contributions/{t}/{r}-{i}",
            frames=FrameRules(run="run", codec="none", elements=5, buffers_bytes=0),
        )
    )


def header(rank: int, round: int = 0, base: str = W0, **changes: Any) -> FrameHeader:
    values: dict[str, Any] = {
        "kind": Kind.UPDATE,
        "run": "run",
        "round": round,
        "base_round": round,
        "base_weights": base,
        "rank": rank,
        "incarnation": 1,
        "samples": 10,
        "loss": 0.5,
        "codec": "none",
        "seed": 0,
        "elements": 5,
        "payload_bytes": 20,
        "digest": f"{rank:02}{round:02}" * 16,
    }
    return FrameHeader(**{**values, **changes})


def joined(rank: int = 0, peers: int = 3, **options: Any) -> RoundMachine:
    found = machine(rank, peers, **options)
    found.handle(s.Started())
    for other in range(peers):
        if other != rank:
            found.handle(s.MemberSeen(claim(other)))
    assert found.phase is Phase.COLLECTING
    return found


def hold(peer: RoundMachine, *ranks: int, round: int = 0, base: str = W0) -> list[s.Command]:
    return [c for rank in ranks for c in peer.handle(s.ContributionHeld(header(rank, round, base)))]


def commit(round: int = 0, base: str = W0, ranks: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Commit:
    values: dict[str, Any] = {
        "run": "run",
        "round": round,
        "base_weights": {"0": base},
        "contributors": tuple(
            Contributor(
                rank=r, incarnation=1, key=f"contributions/{round}/{r}-1", digest=header(r, round).digest, samples=10
            )
            for r in ranks
        ),
        "members": tuple(member(r) for r in range(3)),
        "writer": member(1),
        "nonce": "n",
    }
    return Commit(**{**values, **changes})


def result(round: int = 0, weights: str = W1) -> Result:
    return Result(run="run", round=round, weights_sha256=weights, bucket="b", key="k", writer=member(1), nonce="n")


def stop(reason: str = "interrupted") -> Stop:
    return Stop(run="run", reason=reason, round=0, weights_sha256="", writer=member(1), nonce="n")


def applied(peer: RoundMachine, round: int = 0, base: str = W0, weights: str = W1, reason: str = "") -> list[s.Command]:
    """Bring `peer` from collecting to applied."""
    hold(peer, 0, 1, 2, round=round, base=base)
    peer.handle(s.CommitFound(commit(round, base)))
    return peer.handle(s.Applied(round, weights, reason))


# --------------------------------------------------------------------------------------------------------- joining


def test_a_peer_looks_for_the_others_and_computes_once_all_are_seen() -> None:
    peer = machine(rank=1)
    assert peer.handle(s.Started()) == [s.FindMembers((0, 2))]
    assert peer.handle(s.MemberSeen(claim(2))) == []
    assert peer.handle(s.MemberSeen(claim(2))) == []
    assert peer.handle(s.MemberSeen(claim(0, incarnation=3))) == [s.Compute(0, W0, validate=False)]
    assert peer.members == (member(0, 3), member(1), member(2))


def test_while_joining_looks_repeat_and_the_deadline_names_who_is_missing() -> None:
    peer = machine(rank=1)
    peer.handle(s.Started())
    peer.handle(s.MemberSeen(claim(0)))
    assert peer.handle(s.PollDue()) == [s.FindMembers((2,)), s.FindStop()]
    (fail,) = peer.handle(s.DeadlineReached(180.0))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, RunFailed)
    assert str(fail.error) == "peer 2 did not arrive within 180 s"


def test_a_stop_before_the_start_ends_at_once() -> None:
    peer = machine()
    peer.handle(s.Started())
    assert peer.handle(s.StopFound(stop())) == [s.Finish("interrupted")]
    assert peer.handle(s.MemberSeen(claim(1))) == []


def test_frames_that_come_before_the_others_are_known_are_kept_and_checked_later() -> None:
    peer = machine(rank=0)
    peer.handle(s.Started())
    early = header(1, incarnation=2)
    assert peer.handle(s.FrameArrived(early, b"x", 1)) == [s.Hold(early, b"x", 1)]
    peer.handle(s.ContributionHeld(early))
    peer.handle(s.MemberSeen(claim(1, incarnation=1)))
    commands = peer.handle(s.MemberSeen(claim(2)))
    assert commands == [s.Reject("incarnation", 1, 0), s.Compute(0, W0, False)]


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
        ({"incarnation": 2}, "incarnation"),
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
    assert [m.rank for m in peer.absent] == [0, 2]


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
    assert peer.handle(s.PollDue()) == [s.FindStop()]  # no commit can exist without the own contribution
    hold(peer, 0, 1)
    assert peer.handle(s.PollDue()) == [s.FindStop(), s.FindCommit(0)]
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
    (fail,) = peer.handle(s.ContributionHeld(header(2, **{"base": W0, **changes})))
    assert isinstance(fail, s.Fail)
    assert str(fail.error) == f"commit 0 lists a contribution of peer 2 that does not fit: {reason}"


def test_a_commit_from_other_weights_fails_the_peer() -> None:
    (fail,) = joined().handle(s.CommitFound(commit(base=W2)))
    assert isinstance(fail, s.Fail)
    assert isinstance(fail.error, WeightsMismatch)


def test_a_process_that_the_commit_leaves_out_stops() -> None:
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
    assert applied(joined(rank=1)) == [s.WriteResult(0, W1)]
    for rank in (0, 2):
        assert applied(joined(rank)) == []


@pytest.mark.parametrize(("rank", "looks"), [(2, TAKEOVER_LOOKS), (0, 2 * TAKEOVER_LOOKS)])
def test_others_take_the_result_over_one_after_another(rank: int, looks: int) -> None:
    peer = joined(rank)
    applied(peer)
    for _ in range(looks - 1):
        assert peer.handle(s.PollDue()) == [s.FindResult(0)]
        assert peer.handle(s.ResultMissing(0)) == []
    peer.handle(s.PollDue())
    assert peer.handle(s.ResultMissing(0)) == [s.WriteResult(0, W1)]


def test_once_the_end_is_wanted_a_missing_result_is_written_at_the_first_look() -> None:
    peer = joined()
    applied(peer)
    peer.handle(s.StopFound(stop("failed: peer 1: it broke")))
    peer.handle(s.PollDue())
    assert peer.handle(s.ResultMissing(0)) == [s.WriteResult(0, W1)]


def test_recorded_weights_replace_differing_ones() -> None:
    peer = joined()
    applied(peer, weights=W2)
    assert peer.handle(s.ResultFound(result())) == [s.Adopt(0, W1)]
    assert peer.base == W0
    commands = peer.handle(s.Adopted(0, W1))
    assert commands == [s.Compute(1, W1, False), s.Passed(0, result())]


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


def test_deadlines_name_who_is_missing() -> None:
    peer = joined()
    hold(peer, 0)
    (fail,) = peer.handle(s.DeadlineReached(600.0))
    assert isinstance(fail, s.Fail)
    assert str(fail.error) == "round 0: nothing from peers 1, 2 for 600 s"
    peer = joined()
    applied(peer)
    (fail,) = peer.handle(s.DeadlineReached(600.0))
    assert isinstance(fail, s.Fail)
    assert str(fail.error) == "round 0: no result record for 600 s; its turn was rank 1's"
    assert peer.handle(s.PollDue()) == []
