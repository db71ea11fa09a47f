"""Synchronous runs: weights lie in S3 where somebody reads them, and come there on request otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import RunFailed
from contract.records import Result
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events

SAMPLES = (24, 24, 12)
ROUNDS = 9


def puts(cast: Cast) -> list[str]:
    """Hashes of the weights that are put from now on, in order."""
    found: list[str] = []
    create = cast.store.create

    def watched(place: Any, data: Any) -> Any:
        if "/weights/" in place.key:
            found.append(place.key.rpartition("/")[2])
        return create(place, data)

    cast.store.create = watched  # type: ignore[method-assign]
    return found


def recorded(cast: Cast, round: int) -> str:
    """Hash of the weights after `round`."""
    return Result.from_json(cast.store.get(cast.spec.places.result(round))).weights_sha256


def round_otherwise(cast: Cast, rank: int) -> None:
    """From now on this process's updates end a last bit away from what the others compute."""
    actions = cast.peers[rank].actions
    fresh: Callable[..., Any] = actions.fresh_update

    def other(update: Any) -> Any:
        step = update.step

        def other_step(headers: Any, frames: Any) -> Any:
            note = step(headers, frames)
            update.adopt(np.nextafter(update.flat, np.float32(9)), update.buffers)
            return note

        update.step = other_step
        return update

    actions.fresh_update = lambda *weights: other(fresh(*weights))  # type: ignore[method-assign]
    other(actions.update)


def test_weights_are_put_where_they_are_validated_checkpointed_or_last() -> None:
    cast = Cast(configuration(checkpoint={"every_rounds": 4}, validate_every=6), SAMPLES)
    found = puts(cast)
    cast.play()
    read_before = {t for t in range(1, ROUNDS + 1) if cast.spec.validation_number(t) is not None}
    expected = sorted({*read_before, 4, 8, ROUNDS})
    assert read_before, "some are validated"
    assert len(expected) < ROUNDS, "and some are not"
    assert found == [recorded(cast, t - 1) for t in expected]
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
def test_who_rounds_otherwise_asks_once_and_finds_weights_beside_every_result_from_then_on(
    broker: bool, tmp_path: Path
) -> None:
    options = {"checkpoint": {"every_rounds": 0}, "validate_every": 100}
    cast = Cast(configuration(**options), SAMPLES, events=tmp_path / "events.jsonl", broker=broker)
    found = puts(cast)
    round_otherwise(cast, 2)
    cast.play()
    assert {(r.reason, r.weights_sha256) for r in cast.reports()} == {("epoch_limit", recorded(cast, ROUNDS - 1))}
    assert list(dict.fromkeys(found)) == [recorded(cast, t) for t in range(ROUNDS)]
    asked = cast.keys("wanted/")
    assert 1 <= len(asked) <= 2, "the first to differ asks; whoever records results then knows"
    adopted = [e for e in events(tmp_path) if e["event"] == "weights_adopted"]
    assert {e["round"] for e in adopted} == set(range(ROUNDS))
    cast.close()


def test_who_comes_back_and_rounds_otherwise_goes_on_from_the_recorded_weights(tmp_path: Path) -> None:
    options = {"epochs": 5, "checkpoint": {"every_rounds": 50}, "validate_every": 100}
    cast = Cast(configuration(**options), SAMPLES, events=tmp_path / "events.jsonl")
    state = {"dead": False, "back": False}

    def each(turn: int) -> None:
        if not state["dead"] and cast.peers[0].runner.machine.round == 3:
            state["dead"] = True
            cast.memory_broker.silence(2)
            cast.peers[2].error = RunFailed("killed")
        if state["dead"] and not state["back"] and cast.peers[0].runner.machine.round == 8:
            state["back"] = True
            cast.peers[2].actions.close()
            cast.memory_broker.revive(2)
            cast.peers[2] = cast.add(2)
            round_otherwise(cast, 2)
            cast.advance(2, cast.peers[2].runner.start)

    cast.play(each_turn=each)
    assert all(state.values())
    assert {(r.reason, r.weights_sha256) for r in cast.reports()} == {("epoch_limit", recorded(cast, 14))}
    assert 2 in {c.rank for c in commits(cast)[14].contributors}, "a member again"
    adopted = [e for e in events(tmp_path) if e["event"] == "weights_adopted" and e["rank"] == 2]
    assert adopted
    assert adopted[0]["round"] >= 7, "what it replayed before, it need not have"
    cast.close()
