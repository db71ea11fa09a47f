"""What a person reads while a run goes on."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from peerless.report.progress import Lines, RunningBill


def event(name: str, rank: int = 0, round: int = 0, **fields: Any) -> dict[str, Any]:
    return {"event": name, "rank": rank, "round": round, **fields}


def lines(*events: dict[str, Any]) -> list[str]:
    """The lines for some events of a run of two peers and twenty rounds."""
    text = io.StringIO()
    view = Lines(Console(file=text, width=200))
    view.training(2, 20)
    for item in events:
        view.event(item)
    return text.getvalue().splitlines()[1:]


def test_every_tenth_commit_and_every_validation_is_one_line() -> None:
    commits = [event("commit", rank, round, loss=1.0) for round in range(20) for rank in (0, 1)]
    commits[12]["validation_loss"], commits[12]["validation_accuracy"] = 0.5, 0.875
    assert lines(*commits) == [
        "round 1 of 20: loss 1.0000",
        "round 7 of 20: loss 1.0000, validation loss 0.5000, accuracy 87.50%",
        "round 11 of 20: loss 1.0000",
    ]


def test_the_closing_commit_speaks_of_the_final_weights() -> None:
    assert lines(event("commit", 0, 20, loss=None, validation_loss=0.25)) == ["final weights: validation loss 0.2500"]


def test_asynchronous_rounds_are_seen_too() -> None:
    validated = event("validated", 1, 3, validation_loss=0.5)
    assert lines(event("averaged", 1, 0, loss=2.0, contributors=[0, 1]), validated) == [
        "round 1 of 20: loss 2.0000",
        "peer 1: validation loss 0.5000",
    ]
    assert lines(validated) == [], "a synchronous validation comes with its commit"


def test_a_rejection_is_told_once_per_sender_and_reason() -> None:
    stale = event("frame_rejected", 0, 3, sender=1, reason="stale")
    assert lines(stale, stale, {**stale, "reason": "corrupt"}, {**stale, "sender": None}) == [
        "peer 0: rejected a message of peer 1: stale",
        "peer 0: rejected a message of peer 1: corrupt",
        "peer 0: rejected a message of an unknown sender: stale",
    ]


def test_a_round_that_goes_on_without_some_batches_is_told() -> None:
    failed = event("batches_failed", 2, 3, failed=2, samples=90, causes=["no gradient for batch 7: lost", "and so on"])
    assert lines(failed) == ["peer 2: round 4: went on without 2 of its batches: no gradient for batch 7: lost"]


def test_a_peer_that_adds_up_what_reducers_should_have_is_told() -> None:
    told = event("not_reduced", 2, 3, cause="S3 does not answer (StoreUnavailable)")
    assert lines(told) == ["peer 2: round 4: added its gradients up itself: S3 does not answer (StoreUnavailable)"]


def test_what_an_aggregate_lacks_is_told_once_however_many_peers_and_rounds_tell_it() -> None:
    note = "krum with byzantine = 1 needs 5 contributions; the round has 4, whose median bears 1"
    told = [event("aggregated", rank, round, note=note) for round in (1, 2) for rank in (0, 1)]
    assert lines(*told, event("aggregated", 1, 3, left_out=[0], clipped=[], note="")) == [f"peer 0: {note}"]


def test_faults_are_told() -> None:
    told = lines(
        event("weights_adopted", 1, 4),
        event("failed", 1, 4, error="batch 3: too hot"),
        event("finished", 0, 4, reason="early_stopping"),
    )
    assert told == [
        "peer 1: round 5: its own weights differed; adopted the recorded ones",
        "peer 1: failed: batch 3: too hot",
        "peer 0: finished (early_stopping)",
    ]


def test_who_takes_part_is_told_once_however_many_peers_tell_it() -> None:
    told = [
        event("peer_restarted", 1, None, reason="was killed by signal 9", attempt=1),  # type: ignore[arg-type]
        *(event("waiting", rank, 4, seconds=5.2, **{"for": [1, 2]}) for rank in (0, 3)),
        *(event("member_dropped", rank, 4, member=1, reason="silent") for rank in (0, 3)),
        *(event("member_joined", rank, 6, member=1, incarnation=2) for rank in (0, 3)),
        event("peer_excluded", 0, 7, member=2, reason="3 frames that do not decode"),
        event("resumed", 0, 8),
    ]
    assert lines(*told) == [
        "peer 1 was killed by signal 9; started again",
        "waiting for 5 s for peer 1, 2",
        "round 5: peer 1 was dropped (silent)",
        "round 7: peer 1 takes part (incarnation 2)",
        "round 8: peer 2 was excluded: 3 frames that do not decode",
        "going on with round 9",
    ]


def test_a_round_with_nothing_to_tell_is_not_told() -> None:
    assert lines(event("commit", loss=None, validation_loss=None, final=True)) == []


def test_the_bill_so_far_stands_beside_the_rounds() -> None:
    """Of each peer and part of the run the latest word counts."""
    bills = [event("bill", rank, 0, run="r", usd=0.5, limit_usd=None, as_if_on_aws=False) for rank in (0, 1)]
    later = event("bill", 0, 9, run="r", usd=0.75, limit_usd=None, as_if_on_aws=False)
    again = event("bill", 0, 10, run="r-r2", usd=0.125, limit_usd=None, as_if_on_aws=False)
    assert lines(event("commit", 0, 0, loss=1.0), *bills, later, event("commit", 0, 10, loss=1.0), again) == [
        "round 1 of 20: loss 1.0000",
        "round 11 of 20: loss 1.0000; at most 1.2500 USD so far",
    ]
    view = RunningBill()
    assert view.text == ""
    for each in (*bills, later, again):
        view.add(each)
    assert view.text == "at most 1.3750 USD so far"


def test_of_a_local_run_it_says_as_if() -> None:
    bill = event("bill", 0, 0, run="r", usd=0.00011, limit_usd=None, as_if_on_aws=True)
    assert lines(bill, event("commit", 0, 0, loss=1.0)) == [
        "round 1 of 20: loss 1.0000; at most 0.0001 USD so far, as if on AWS"
    ]
