"""Averages of weights in asynchronous mode: how far peers drift apart with them and without; virtual time."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.config import RunConfig, from_mapping
from contract.errors import ConfigError
from peer_agent.background import Finished
from tests.fakes.peer_ports import Inline
from tests.fakes.peers import Cast
from tests.functional.test_runner_async import configuration, events

#: Per rank; unequal, so that a mean that forgets to weigh shows.
SAMPLES = (40, 24, 8)


def averaging(every: int, **changes: Any) -> RunConfig:
    exchange = {"codec": "none", "poll_seconds": 1.0, "max_staleness": 4, "average_weights_every": every}
    values: dict[str, Any] = {"early_stopping": {"patience": 0}, "validate_every": 1_000, **changes}
    return configuration(**{**values, "exchange": {**exchange, **changes.get("exchange", {})}})


def long_jobs(cast: Cast) -> None:
    """A job is done every fourth step: weights have come everywhere before the next gradient is there."""
    for peer in cast.peers:
        background, steps = peer.runner.ports.background, itertools.count(1)
        assert isinstance(background, Inline)

        def finished(timeout_seconds: float, background: Inline = background, steps: Any = steps) -> list[Finished]:
            if next(steps) % 4 or not background._jobs:
                return []
            return [background._outcome(*background._jobs.pop(0))]

        background.finished = finished  # type: ignore[method-assign]


def drift(cast: Cast) -> float:
    """The largest distance between two peers' weights, relative to the norm of their mean."""
    flats = [peer.actions.update.flat for peer in cast.peers]
    apart = max(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(flats, 2))
    return apart / float(np.linalg.norm(np.mean(flats, axis=0)))


def late_drift(every: int) -> float:
    """The drift over the last third of a run whose peers go at paces that chance gives them: now and then one finds
    others' frames stale, and goes where its own data pull it."""
    cast = Cast(averaging(every, epochs=14, optimizer={"lr": 0.2, "momentum": 0.0}), SAMPLES)
    draw = random.Random(1)  # noqa: S311 - reproducible, not secret
    seen: list[float] = []
    cast.play(
        order=lambda turn: [rank for rank in range(3) if draw.random() < 0.6],
        each_turn=lambda turn: seen.append(drift(cast)),
    )
    assert [peer.error for peer in cast.peers] == [None] * 3
    cast.close()
    return float(np.mean(seen[2 * len(seen) // 3 :]))


def test_peers_drift_less_where_weights_are_averaged() -> None:
    """QuadraticGradients do not pull peers together: without averages what has come between them stays."""
    without, with_it = late_drift(0), late_drift(2)
    assert without > 1.5
    assert with_it < 0.7 * without


@pytest.mark.parametrize("norm", [False, True])
def test_peers_at_the_same_round_hold_equal_weights_after_an_average(norm: bool, tmp_path: Path) -> None:
    cast = Cast(
        averaging(3, epochs=3, exchange={"error_feedback": True}), SAMPLES, norm=norm, events=tmp_path / "events.jsonl"
    )
    long_jobs(cast)
    momentum = [id(peer.actions.update.optimizer) for peer in cast.peers]
    cast.play()
    averages = defaultdict(list)
    for event in events(tmp_path, "weights_averaged"):
        averages[event["round"]].append(event)
    assert sorted(averages) == list(range(3, cast.spec.rounds_limit, 3))
    for found in averages.values():
        assert sorted(event["rank"] for event in found) == [0, 1, 2]
        assert {tuple(event["contributors"]) for event in found} == {(0, 1, 2)}
        assert {tuple(event["staleness"]) for event in found} == {(0, 0)}
        assert len({event["weights"] for event in found}) == 1, "the same weights, bit for bit"
    # Each frame was used one round late by those before its sender in turn: there was something to average away.
    assert max(event["distance"] for found in averages.values() for event in found) > 0.001
    assert momentum == [id(peer.actions.update.optimizer) for peer in cast.peers]
    assert not any(report.frames_rejected for report in cast.reports())
    cast.close()


def test_an_average_of_weights_is_the_mean_by_samples() -> None:
    cast = Cast(averaging(2, epochs=1), SAMPLES)
    peer = cast.peers[1].actions
    flat = peer.update.flat
    frames = []
    for rank, step in ((0, 1.0), (2, -3.0)):
        other = cast.peers[rank].actions
        frame = other.own_weights.put(4, np.asarray(flat + np.float32(step)), other.update.buffers)  # type: ignore[attr-defined]
        header, body = peer.contributions.read_message(frame)
        peer.own_weights.hold(header, body)  # type: ignore[attr-defined]
        frames.append(header)
    mean, _ = peer.own_weights.mean(  # type: ignore[attr-defined]
        flat, peer.update.buffers, frames, dict(enumerate(SAMPLES)), cast.config.aggregation
    )
    np.testing.assert_allclose(mean, flat + (40 * 1.0 - 8 * 3.0) / 72, rtol=0, atol=1e-6)
    cast.close()


def test_nothing_changes_where_the_key_is_zero(tmp_path: Path) -> None:
    cast = Cast(averaging(0, epochs=2), SAMPLES, events=tmp_path / "events.jsonl")
    cast.play(each_turn=lambda turn: cast.clock.advance(0.5))
    assert not events(tmp_path, "weights_averaged")
    assert cast.store.list("run", f"expiring/{cast.spec.run}/own-weights/") == []
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
def test_peers_leave_two_of_their_own_weights_in_storage_and_none_at_the_end(broker: bool) -> None:
    cast = Cast(averaging(2, epochs=4), SAMPLES, broker=broker)
    most = 0

    def look(turn: int) -> None:
        nonlocal most
        cast.clock.advance(0.5)
        most = max(most, len(cast.store.list("run", f"expiring/{cast.spec.run}/own-weights/")))

    cast.play(each_turn=look)
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert 3 < most <= 3 * 2
    assert cast.store.list("run", f"expiring/{cast.spec.run}/own-weights/") == []
    cast.close()


def test_weights_that_are_damaged_or_cannot_be_used_are_counted_and_not_averaged(tmp_path: Path) -> None:
    """One byte of what peer 2 puts is changed on its way; everybody goes on without it."""
    cast = Cast(averaging(2, epochs=3, exchange={"inline_bytes": 0}), SAMPLES, events=tmp_path / "events.jsonl")
    long_jobs(cast)
    create = cast.store.create

    def damaged(place: Any, data: Any) -> Any:
        blob = bytearray(data)
        if "/own-weights/" in place.key and "/0002-" in place.key:
            blob[-1] ^= 1
        return create(place, bytes(blob))

    cast.store.create = damaged  # type: ignore[method-assign]
    cast.play()
    found = [event for event in events(tmp_path, "weights_averaged") if event["rank"] != 2]
    assert found
    assert all(event["contributors"] == [0, 1] for event in found)
    rejected = [event for event in events(tmp_path, "frame_rejected") if event["rank"] != 2]
    assert {(event["reason"], event["sender"]) for event in rejected} == {("corrupt", 2)}
    assert [peer.error for peer in cast.peers] == [None] * 3
    cast.close()


def test_a_strategy_of_ones_own_is_not_asked_to_average_weights() -> None:
    values = {"aggregation": {"name": "own:strategy"}, "exchange": {"average_weights_every": 4}, "mode": "async"}
    with pytest.raises(ConfigError, match=r"average_weights_every .* built-in aggregation"):
        from_mapping(values, "here")
    assert from_mapping({**values, "mode": "sync"}, "here").exchange.average_weights_every == 4
