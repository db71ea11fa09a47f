"""Asynchronous runs whose peers die, are taken over, come back, and lose their broker; virtual time, no sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import Superseded
from contract.records import Stop
from tests.fakes.peers import Cast
from tests.functional.test_async_drift import averaging
from tests.functional.test_runner_async import events, stored_weights
from tests.functional.test_runner_membership import come_back, die

SAMPLES = (24, 24, 24)
#: Seconds of virtual time between two steps of everybody; heartbeats stop counting after five.
TURN_SECONDS = 0.4


def play(cast: Cast, *happenings: tuple[Callable[[], bool], Callable[[], Any]]) -> None:
    """Step everybody; each thing happens once, in order, when its condition holds."""
    due = list(happenings)

    def each(turn: int) -> None:
        cast.clock.advance(TURN_SECONDS)
        if due and due[0][0]():
            due.pop(0)[1]()

    cast.play(each_turn=each)
    assert not due


def at(cast: Cast, rank: int, round: int) -> Callable[[], bool]:
    return lambda: cast.peers[rank].runner.machine.round >= round


def assert_one_end(cast: Cast) -> None:
    reports = cast.reports()
    stop = Stop.from_json(cast.store.get(cast.spec.places.stop()))
    assert {(r.reason, r.weights_sha256, r.model_sha256) for r in reports} == {
        ("epoch_limit", stop.weights_sha256, stop.weights_sha256)
    }


@pytest.mark.parametrize("every", [0, 5])
@pytest.mark.parametrize("broker", [True, False])
def test_who_died_goes_on_where_the_others_are_and_contributes(every: int, broker: bool, tmp_path: Path) -> None:
    config = averaging(every, epochs=30, exchange={"error_feedback": True})
    cast = Cast(config, SAMPLES, broker=broker, events=tmp_path / "events.jsonl")
    play(
        cast,
        (at(cast, 2, 10), lambda: die(cast, 2)),
        (at(cast, 0, 40), lambda: come_back(cast, 2)),
    )
    assert_one_end(cast)
    assert cast.reports()[2].incarnation == 2
    (caught_up,) = events(tmp_path, "caught_up")
    assert (caught_up["rank"], caught_up["from"] in (0, 1)) == (2, True)
    assert caught_up["round"] >= 40 - 2
    assert [event["rank"] for event in events(tmp_path, "residual_lost")] == [2]
    # Each process's part in the averages of peer 0, by rounds of peer 0.
    used: dict[int, list[int]] = {1: [], 2: []}
    for event in events(tmp_path, "averaged"):
        if event["rank"] == 0 and 2 in event["contributors"]:
            used[event["incarnations"][event["contributors"].index(2)]].append(event["round"])
    assert max(used[1]) < min(used[2])
    assert min(used[2]) >= 40
    assert len(used[2]) > 5
    assert {event["member"] for event in events(tmp_path, "member_dropped")} == {2}
    joined = {(e["rank"], e["member"], e["incarnation"]) for e in events(tmp_path, "member_joined")}
    assert {(0, 2, 2), (1, 2, 2)} <= joined
    assert {e["reason"] for e in events(tmp_path, "frame_rejected")} <= {"stale"}  # the dead one's last, among others
    cast.close()


def test_the_silent_are_left_out_before_their_last_frame_is_stale(tmp_path: Path) -> None:
    """With a bound of a thousand rounds it would be averaged for the whole run."""
    config = averaging(0, epochs=20, exchange={"max_staleness": 1_000})
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    play(
        cast,
        (at(cast, 2, 10), lambda: die(cast, 2)),
        (at(cast, 0, cast.spec.rounds_limit - 1), lambda: come_back(cast, 2)),
    )
    last = [e["round"] for e in events(tmp_path, "averaged") if e["rank"] == 0 and 2 in e["contributors"]]
    dead = [round for round in last if round < cast.spec.rounds_limit - 2]
    assert 10 <= max(dead) <= 10 + 5.0 / TURN_SECONDS + 3
    assert_one_end(cast)
    cast.close()


def test_where_all_die_they_go_on_from_the_newest_weights_that_anybody_has_put(tmp_path: Path) -> None:
    config = averaging(0, epochs=30, checkpoint={"every_rounds": 5})
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")

    def everybody(what: Callable[[Cast, int], None]) -> None:
        for rank in range(3):
            what(cast, rank)

    def die_and_return() -> None:
        everybody(die)
        everybody(come_back)

    play(cast, (at(cast, 1, 23), die_and_return))
    assert_one_end(cast)
    caught_up = events(tmp_path, "caught_up")
    assert {event["rank"] for event in caught_up} == {0, 1, 2}
    assert {event["round"] for event in caught_up} == {20}
    assert len({event["base_weights"] for event in caught_up}) == 1
    assert {r.incarnation for r in cast.reports()} == {2}
    cast.close()


def test_a_process_that_was_taken_over_while_it_stood_still_stops_itself(tmp_path: Path) -> None:
    cast = Cast(averaging(3, epochs=20), SAMPLES, events=tmp_path / "events.jsonl")
    first = cast.peers[2]

    def pause() -> None:
        cast.memory_broker.silence(2)
        first.error = RuntimeError("paused")  # it is not stepped any more

    def replace() -> None:
        cast.memory_broker.revive(2)
        cast.peers[2] = cast.add(2)
        cast.advance(2, cast.peers[2].runner.start)

    def wake() -> None:
        with pytest.raises(Superseded):
            first.runner.step()
        first.actions.close()

    play(
        cast,
        (at(cast, 2, 9), pause),
        (at(cast, 0, 30), replace),
        (at(cast, 2, 36), wake),
    )
    assert_one_end(cast)
    late = [e for e in events(tmp_path, "averaged") if e["rank"] != 2 and e["round"] > 36 and 2 in e["contributors"]]
    assert late
    assert {event["incarnations"][event["contributors"].index(2)] for event in late} == {2}
    weights = [e for e in events(tmp_path, "weights_averaged") if e["round"] > 36]
    assert any(2 in event["contributors"] for event in weights)
    cast.close()


def test_a_restarted_peer_in_lambda_mode_has_its_weights_where_workers_read_them(tmp_path: Path) -> None:
    config = averaging(0, epochs=30, compute={"service": "lambda"})
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    play(cast, (at(cast, 1, 10), lambda: die(cast, 1)), (at(cast, 0, 30), lambda: come_back(cast, 1)))
    assert_one_end(cast)
    seen = cast.peers[1].gradients.weights_seen
    assert len(seen) > 10
    assert seen[0] != cast.spec.initial_weights
    assert np.isfinite(stored_weights(cast, cast.reports()[1].model_sha256)).all()
    cast.close()
