"""Whole asynchronous runs over an object store and a broker in memory: stepped unevenly, with virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.config import RunConfig
from contract.errors import GradientFailed, RunFailed
from contract.records import Stop
from contract.tensors import decode_weights
from tests.fakes.peer_ports import TorchGradients
from tests.fakes.peers import Cast


def configuration(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "mode": "async",
        "peers": 3,
        "epochs": 4,
        "batch_size": 8,
        "batches_per_round": 1,
        "optimizer": {"lr": 0.25, "momentum": 0.0},
        "exchange": {"codec": "none", "poll_seconds": 1.0, "max_staleness": 2, "start_timeout_seconds": 20.0},
        "compute": {"service": "local"},
    }
    return RunConfig.model_validate({**values, **changes})


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def paced(*paces: int) -> Callable[[int], Sequence[int]]:
    """Rank r takes a step in every `paces[r]`-th turn."""
    return lambda turn: [rank for rank, pace in enumerate(paces) if turn % pace == 0]


def stored_weights(cast: Cast, sha256: str) -> np.ndarray:
    return decode_weights(cast.peers[0].actions.layout, cast.store.get(cast.spec.places.weights(sha256)), sha256)[0]


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("service", ["local", "lambda"])
def test_all_end_together_with_the_weights_that_the_stop_record_names(broker: bool, service: str) -> None:
    cast = Cast(configuration(compute={"service": service}), (24, 24, 24), broker=broker)
    cast.play(order=paced(1, 1, 3))
    reports = cast.reports()
    stop = Stop.from_json(cast.store.get(cast.spec.places.stop()))
    assert stop.reason == "epoch_limit"
    assert {(r.weights_sha256, r.model_sha256) for r in reports} == {(stop.weights_sha256, stop.weights_sha256)}
    assert {r.reason for r in reports} == {"epoch_limit"}
    assert {r.best_validation_loss for r in reports} == {stop.validation_loss}
    assert max(r.rounds for r in reports) == cast.spec.rounds_limit
    assert stored_weights(cast, stop.weights_sha256).shape == (51,)
    cast.close()


def test_nobody_waits_for_a_slow_peer() -> None:
    cast = Cast(configuration(), (24, 24, 24))
    cast.play(order=paced(1, 1, 8))
    fast, _, slow = cast.reports()
    assert fast.rounds == 12
    assert slow.rounds < 6
    cast.close()


def test_frames_behind_the_bound_are_not_averaged_and_are_counted(tmp_path: Path) -> None:
    cast = Cast(configuration(epochs=8), (24, 24, 24), events=tmp_path / "events.jsonl")
    cast.play(order=paced(1, 1, 9))
    averaged = events(tmp_path, "averaged")
    assert max(age for event in averaged for age in event["staleness"]) == 2
    assert any(event["contributors"] == [0, 1] for event in averaged if event["rank"] == 0)
    assert any(2 in event["contributors"] for event in averaged if event["rank"] == 0)
    assert cast.reports()[0].frames_rejected["2"]["stale"] >= 1
    stale = [event for event in events(tmp_path, "frame_rejected") if event["reason"] == "stale"]
    assert {event["sender"] for event in stale} == {2}
    assert len(stale) == sum(r.rejected("stale") for r in cast.reports())
    cast.close()


def test_each_peer_averages_the_latest_frame_of_every_sender(tmp_path: Path) -> None:
    cast = Cast(configuration(), (24, 24, 24), events=tmp_path / "events.jsonl")
    cast.play()
    for event in events(tmp_path, "averaged"):
        assert event["rank"] in event["contributors"]
        assert event["contributors"] == sorted(event["contributors"])
        assert event["staleness"][event["contributors"].index(event["rank"])] == 0
    late = [event for event in events(tmp_path, "averaged") if event["round"] >= 2]
    assert {tuple(event["contributors"]) for event in late} == {(0, 1, 2)}
    cast.close()


def test_weights_in_storage_stay_bounded() -> None:
    cast = Cast(configuration(epochs=8, compute={"service": "lambda"}), (24, 24, 24))
    most = 0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, len(cast.keys("weights/")))

    cast.play(each_turn=look)
    assert most <= 1 + 2 * 3  # the initial ones, and per peer the current and the best
    stop = Stop.from_json(cast.store.get(cast.spec.places.stop()))
    assert set(cast.keys("weights/")) == {cast.spec.initial_weights, stop.weights_sha256}
    assert len(cast.keys("contributions/")) <= 3 * 5
    cast.close()


def test_a_slow_peer_keeps_one_frame_of_each_sender() -> None:
    """A fast one sends many while a slow one computes: neither memory nor disk may grow with them."""
    cast = Cast(configuration(epochs=8), (24, 24, 24))
    slow = cast.peers[2].runner
    finished, slow.ports.background.finished = slow.ports.background.finished, lambda timeout_seconds: []  # type: ignore[method-assign]
    most = 0

    def look(turn: int) -> None:
        nonlocal most
        if turn == 20:
            slow.ports.background.finished = finished  # type: ignore[method-assign]
        most = max(most, *(len(peer.actions.spool) for peer in cast.peers))

    cast.play(each_turn=look)
    assert cast.reports()[0].rounds > 10
    assert most == 3
    cast.close()


def test_training_learns() -> None:
    config = configuration(epochs=6, optimizer={"lr": 0.3, "momentum": 0.5}, exchange={"codec": "qsgd8"})
    cast = Cast(config, (48, 40, 32), gradients=TorchGradients)
    cast.play(order=paced(1, 2, 1))
    report = cast.reports()[0]
    assert report.best_validation_loss is not None
    assert report.best_validation_loss < 0.75  # untrained: ln 3 = 1.10, and here 1.2
    cast.close()


def test_early_stopping_of_one_ends_all() -> None:
    config = configuration(epochs=50, validate_every=1, early_stopping={"patience": 2}, optimizer={"lr": 0.9})
    cast = Cast(config, (24, 24, 24))
    cast.play()
    assert {r.reason for r in cast.reports()} == {"early_stopping"}
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    cast.close()


@pytest.mark.parametrize("turn", [0, 3, 8])
@pytest.mark.parametrize("everyone", [True, False])
def test_an_interrupt_ends_all_with_the_same_weights(turn: int, everyone: bool) -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 24))

    def interrupt(now: int) -> None:
        if now == turn:
            for peer in cast.peers if everyone else cast.peers[1:2]:
                peer.runner.request_end("interrupted")

    cast.play(each_turn=interrupt)
    reports = cast.reports()
    assert {r.reason for r in reports} == {"interrupted"}
    assert len({(r.weights_sha256, r.model_sha256) for r in reports}) == 1
    assert stored_weights(cast, reports[0].model_sha256).shape == (51,)
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
def test_a_failure_ends_all_with_its_cause(broker: bool) -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 24), broker=broker)
    cast.peers[1].gradients.fails_in_round = 3
    cast.play()
    assert isinstance(cast.peers[1].error, GradientFailed)
    assert {type(cast.peers[rank].error) for rank in (0, 2)} == {RunFailed}
    assert all("round 3 failed" in (r.error or "") for r in cast.reports())
    cast.close()


def test_one_look_into_s3_may_find_frames_of_several_peers() -> None:
    """The second frame of a look must not push the first one off the disk, which the machine has not noted yet."""
    cast = Cast(configuration(epochs=6), (24, 24, 24), broker=False)
    cast.play(each_turn=lambda turn: cast.clock.advance(1.0))  # a look between any two steps
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert {report.reason for report in cast.reports()} == {"epoch_limit"}
    cast.close()
