"""What the events of a run tell (peerless/report/story.py)."""

from __future__ import annotations

from typing import Any

import pytest

from peerless.report.story import DamagedEvent, Story


def event(name: str, rank: int = 0, t: float = 100.0, round: int | None = 0, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "t": t, "run": "toy", "rank": rank, "round": round, "event": name, **fields}


def stage(name: str, rank: int, t: float, seconds: float, round: int = 0, **fields: Any) -> dict[str, Any]:
    return event("stage", rank, t, round, stage=name, seconds=seconds, cpu_percent=50.0, **fields)


def commit(round: int, rank: int, t: float, **fields: Any) -> dict[str, Any]:
    told = {"contributors": [0, 1], "writer": 0, "samples": 64, "loss": 2.0 - round, "validation_loss": None}
    return event("commit", rank, t, round, **({"validation_accuracy": None, "final": False} | told | fields))


def story(*events: dict[str, Any]) -> Story:
    told = Story()
    for each in events:
        told.add(each)
    return told


def test_a_round_is_told_once_and_begins_with_the_first_who_applies_it() -> None:
    told = story(
        event("peer_started", t=90.0, round=None, mode="sync"),
        commit(0, 1, 103.0, validation_loss=1.5, validation_accuracy=0.25),
        commit(0, 0, 102.5, validation_loss=1.5, validation_accuracy=0.25),
        commit(1, 0, 104.0),
    )
    first, second = told.series()
    assert (first.t, told.seconds(first.t)) == (102.5, 12.5)
    assert (first.loss, first.validation_loss, first.validation_accuracy) == (2.0, 1.5, 0.25)
    assert (second.loss, second.validation_loss) == (1.0, None)
    assert first.contributors == {0: (0, 1), 1: (0, 1)}
    assert (told.run, told.mode, told.start, told.end) == ("toy", "sync", 90.0, 104.0)


def test_asynchronous_rounds_have_the_losses_of_each_peer() -> None:
    told = story(
        event("peer_started", round=None, mode="async"),
        event("averaged", 0, 101.0, contributors=[0, 1], incarnations=[1, 1], staleness=[0, 2], loss=1.0),
        event("averaged", 1, 109.0, contributors=[1], incarnations=[1], staleness=[0], loss=3.0),
        event("validated", 0, 110.0, validation_loss=0.5, validation_accuracy=0.75, samples=10),
    )
    (only,) = told.series()
    assert (only.loss, only.losses, only.t) == (2.0, {0: 1.0, 1: 3.0}, 101.0)
    assert (only.validation_loss, only.staleness) == (0.5, {0: (0, 2), 1: (0,)})


def test_stages_have_their_moments_and_those_of_every_attempt_count() -> None:
    told = story(
        stage("compute", 0, 105.0, 4.0, bytes_in=10),
        stage("receive", 0, 107.0, 1.5, bytes_in=5, bytes_out=1),
        stage("receive", 0, 109.0, 0.5),
    )
    first = told.spans[0, 0][0]
    assert (first.began, first.ended, first.seconds) == (101.0, 105.0, 4.0)
    assert told.stage_seconds(0, 0) == {"compute": 4.0, "receive": 2.0}
    assert told.bytes(0) == (15, 1)


def test_what_all_peers_tell_of_a_member_is_one_incident() -> None:
    told = story(
        event("round_started", 1, epoch=0, base_weights=""),
        event("waiting", 0, round=2, **{"for": [1], "needed": 1}),
        event("waiting", 2, round=2, **{"for": [1], "needed": 1}),
        event("member_dropped", 0, round=2, member=1, reason="silent"),
        event("member_dropped", 2, round=2, member=1, reason="silent"),
        event("peer_restarted", 1, round=None, reason="was killed by signal 9", attempt=1),
        event("member_joined", 0, round=4, member=1, incarnation=2),
        event("member_dropped", 0, round=6, member=1, reason="silent"),
    )
    assert [(each.kind, each.round, each.rank) for each in told.incidents] == [
        ("waiting", 2, None),
        ("dropped", 2, 1),
        ("restarted", None, 1),
        ("joined", 4, 1),
        ("dropped", 6, 1),
    ]
    assert (told.members[1].restarts, told.members[1].state) == (1, "silent")


def test_what_went_wrong_is_counted_and_a_round_made_again_counts_once() -> None:
    told = story(
        event("frame_rejected", reason="corrupt", sender=1),
        event("frame_rejected", 2, reason="corrupt", sender=1),
        event("frame_rejected", reason="unreadable", sender=None),
        event("batches_failed", failed=2, samples=4, causes=["x"]),
        event("batches_failed", failed=1, samples=5, causes=["x"]),
    )
    assert told.rejected == {"1": {"corrupt": 2}, "unknown": {"unreadable": 1}}
    assert told.batches_failed == {(0, 0): 1}


def test_the_bill_is_the_sum_over_peers_and_parts() -> None:
    told = story(
        event("bill", 0, round=0, usd=0.1, limit_usd=5.0),
        event("bill", 1, round=0, usd=0.2, limit_usd=5.0),
        event("bill", 0, round=1, usd=0.3, limit_usd=5.0),
    )
    assert told.usd(0) == pytest.approx(0.3)
    assert told.usd() == pytest.approx(0.5)
    told.add(event("bill", 0, round=2, usd=0.05, limit_usd=5.0) | {"run": "toy-part-2"})  # it counts from nothing
    assert told.usd() == pytest.approx(0.55)
    assert told.bills() == pytest.approx({0: 0.35, 1: 0.2})
    assert Story().usd() is None


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"event": "commit", "rank": 0, "t": "soon"},
        {"event": "commit", "rank": None, "t": 1.0},
        event("commit"),
        event("commit", contributors=3),
        stage("compute", 0, 1.0, seconds="two"),  # type: ignore[arg-type]
        event("stage", round=None, stage="compute", seconds=1.0),
        event("bill", usd=True),
        event("frame_rejected", sender=1),
    ],
)
def test_a_damaged_event_leaves_nothing(damaged: dict[str, Any]) -> None:
    told = Story()
    with pytest.raises(DamagedEvent):
        told.add(damaged)
    assert (told.start, told.rounds, told.spans, told.members, told.rejected, told.usd()) == (
        None,
        {},
        {},
        {},
        {},
        None,
    )


def test_an_event_of_a_later_version_is_passed_over() -> None:
    told = story(event("invented_tomorrow", 3, 120.0, round=7, more={"a": 1}))
    assert (told.members[3].round, told.incidents) == (7, [])
