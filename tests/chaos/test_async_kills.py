"""Asynchronous mode where peers are killed: the others leave a dead peer out, and go on without waiting; started again
it adopts the weights of one of them, contributes, and all end with one set of weights."""

from __future__ import annotations

import pytest

from contract.records import PeerReport, Stop
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, plan
from tests.chaos.fleet import Fleet
from tests.chaos.test_kills import ENDLESS, PACE_SECONDS

ROUND = 4
#: Of weights that nobody has trained: ln 3 for three classes, and a little more.
UNTRAINED_LOSS = 1.1
POINTS = ["before_compute", "during_map", "after_upload", "after_publish", "during_barrier"]
IN_EVERY_RUN = "after_upload"
CASES = [pytest.param(at, marks=[] if at == IN_EVERY_RUN else [pytest.mark.slow]) for at in POINTS]


def used(fleet: Fleet, by: int, of: int) -> list[tuple[int, int]]:
    """Round of the average and incarnation of the sender, for each average of one peer that another is in."""
    return [
        (event["round"], event["incarnations"][event["contributors"].index(of)])
        for event in fleet.events("averaged", by)
        if of in event["contributors"]
    ]


def until_all_use(fleet: Fleet, rank: int, incarnation: int) -> None:
    """Wait until everybody else has averaged a frame of this process."""
    others = [other for other in fleet.processes if other != rank]
    fleet.until(
        lambda: all((used(fleet, by, rank) or [(0, 0)])[-1][1] == incarnation for by in others),
        f"rank {rank}, incarnation {incarnation}, is not averaged by everybody",
    )


def until_left_out(fleet: Fleet, rank: int) -> None:
    """Wait until everybody else has said that it goes on without this one, and has averaged twice since."""
    others = [other for other in fleet.processes if other != rank]

    def left_out() -> bool:
        told = {e["rank"]: e["round"] for e in fleet.events("member_dropped") if e["member"] == rank}
        return set(told) == set(others) and all(
            len(fleet.events("averaged", by, round)) == 1 for by in others for round in (told[by] + 1, told[by] + 2)
        )

    fleet.until(left_out, f"rank {rank} is not left out")
    for by in others:
        (told,) = [e for e in fleet.events("member_dropped", by) if e["member"] == rank]
        assert max(round for round, _ in used(fleet, by, rank)) <= told["round"]


def assert_one_end(fleet: Fleet, expected: dict[int, int] | None = None) -> list[PeerReport]:
    """All have adopted what the stop record names, and it is better than what they began with."""
    reports = fleet.end(expected)
    stop = Stop.from_json(fleet.store.get(fleet.spec.places.stop()))
    assert {(report.weights_sha256, report.model_sha256, report.error) for report in reports} == {
        (stop.weights_sha256, stop.weights_sha256, None)
    }
    assert stop.validation_loss is not None
    assert stop.validation_loss < UNTRAINED_LOSS
    return reports


@pytest.mark.parametrize("at", CASES)
def test_a_killed_peer_is_left_out_and_comes_back(prepare: Prepare, at: str) -> None:
    fault = Fault(rank=1, round=ROUND, at=at, do="kill")
    # The bound would let its last frame be averaged for ever: only its silence ends that.
    fleet = prepare(mode="async", epochs=ENDLESS, exchange={"max_staleness": 1_000, "average_weights_every": 5})
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    until_left_out(fleet, 1)

    fleet.start(ranks=[1], plan=plan(pace_seconds=PACE_SECONDS))
    until_all_use(fleet, 1, 2)
    fleet.until(
        lambda: any(1 in event["contributors"] for event in fleet.events("weights_averaged", 1)), "no weights averaged"
    )
    fleet.interrupt()
    reports = assert_one_end(fleet)
    assert [report.incarnation for report in reports] == [1, 2, 1, 1]
    (caught_up,) = fleet.events("caught_up")
    assert (caught_up["rank"], caught_up["from"] in (0, 2, 3)) == (1, True)
    assert caught_up["round"] > ROUND
    rounds = [event["round"] for event in fleet.events("averaged", 1) if event["t"] > caught_up["t"]]
    assert rounds == list(range(caught_up["round"], caught_up["round"] + len(rounds)))
    for by in (0, 2, 3):
        incarnations = [incarnation for _, incarnation in used(fleet, by, 1)]
        assert incarnations == sorted(incarnations), "nothing of a process once its successor is known"


@pytest.mark.slow
def test_a_killed_peer_comes_back_within_the_bound(prepare: Prepare) -> None:
    """Its rounds count on from those of the weights that it has adopted, so that its frames are fresh enough."""
    fault = Fault(rank=2, round=ROUND, at="after_upload", do="kill")
    fleet = prepare(mode="async", epochs=ENDLESS, exchange={"max_staleness": 8})
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    fleet.until(lambda: fleet.events("averaged", 0, ROUND + 15), "the others do not go on")
    fleet.start(ranks=[2], plan=plan(pace_seconds=PACE_SECONDS))
    until_all_use(fleet, 2, 2)
    fleet.interrupt()
    assert_one_end(fleet)
    (caught_up,) = fleet.events("caught_up")
    assert caught_up["round"] >= ROUND + 15 - 8 // 2
    assert max(age for event in fleet.events("averaged") for age in event["staleness"]) <= 8


@pytest.mark.slow
def test_all_are_killed_and_go_on_from_the_newest_weights(prepare: Prepare) -> None:
    faults = [Fault(rank=rank, round=7, at="after_upload", do="kill") for rank in range(4)]
    fleet = prepare(mode="async", epochs=10, checkpoint={"every_rounds": 3})
    fleet.start(plan(*faults, pace_seconds=PACE_SECONDS))
    fleet.until_struck(*faults)
    fleet.start()
    reports = assert_one_end(fleet)
    assert {report.incarnation for report in reports} == {2}
    caught_up = fleet.events("caught_up")
    assert {event["round"] for event in caught_up} == {6}
    assert {event["rank"] for event in caught_up} == {0, 1, 2, 3}
    assert max(report.rounds for report in reports) == fleet.spec.rounds_limit
