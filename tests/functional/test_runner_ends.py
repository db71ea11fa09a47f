"""How a synchronous run ends: early, when asked to, and by a failure; alike for all peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.errors import GradientFailed, RunFailed
from contract.records import Stop
from tests.fakes.peer_ports import QuadraticGradients
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events, play, weights


def test_early_stopping_ends_all_at_the_same_round_with_the_best_weights() -> None:
    # The points pull the weights away from anything useful, so the validation loss only rises.
    config = configuration(epochs=40, validate_every=1, early_stopping={"patience": 2}, optimizer={"lr": 0.9})
    cast = play(config)
    reports = cast.reports()
    assert {r.reason for r in reports} == {"early_stopping"}
    assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in reports}) == 1
    losses = [c.validation_loss for c in commits(cast) if c.validation_loss is not None]
    assert reports[0].best_validation_loss == min(losses)
    assert reports[0].rounds == len(commits(cast))  # the update of the commit that decided it still applied
    assert weights(cast, reports[0].model_sha256).shape == (51,)


def test_a_plateau_lowers_the_learning_rate_for_all(tmp_path: Path) -> None:
    scheduler = {"factor": 0.5, "patience": 0, "min_lr": 1e-4}
    config = configuration(
        epochs=8, validate_every=1, early_stopping={"patience": 0}, scheduler=scheduler, optimizer={"lr": 0.9}
    )
    cast = play(config, events=tmp_path / "events.jsonl")
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    reduced = [e for e in events(tmp_path) if e["event"] == "lr_reduced"]
    assert reduced
    assert reduced[0]["lr"] == 0.45
    by_rank = [[(e["round"], e["lr"]) for e in reduced if e["rank"] == rank] for rank in range(3)]
    assert by_rank[0] == by_rank[1] == by_rank[2]


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("turn", [0, 1, 2, 5, 9])
def test_an_interrupt_ends_all_after_the_same_round(turn: int, broker: bool) -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12), broker=broker)

    def interrupt(now: int) -> None:
        if now == turn:
            cast.peers[1].runner.request_end("interrupted")

    cast.play(each_turn=interrupt)
    reports = cast.reports()
    assert {r.reason for r in reports} == {"interrupted"}
    assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in reports}) == 1
    assert reports[0].rounds < 20
    assert weights(cast, reports[0].model_sha256).shape == (51,)
    assert Stop.from_json(cast.store.get(cast.spec.places.stop())).writer.rank == 1
    cast.close()


def test_when_all_are_interrupted_at_once_they_end_together() -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12))

    def interrupt(now: int) -> None:
        if now == 4:
            for peer in cast.peers:
                peer.runner.request_end("interrupted")

    cast.play(each_turn=interrupt)
    assert len({(r.rounds, r.weights_sha256, r.reason) for r in cast.reports()}) == 1
    cast.close()


def test_nobody_waits_for_a_computation_once_the_end_is_wanted() -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12))
    interrupted_at = 0.0

    def interrupt(now: int) -> None:
        nonlocal interrupted_at
        if now == 6:
            cast.peers[0].runner.request_end("interrupted")
            interrupted_at = cast.clock.monotonic()

    # From turn 6 on peer 2 answers messages, but its gradient never comes.
    real = cast.peers[2].runner.ports.background.finished
    turn = 0

    def stuck(timeout_seconds: float) -> list[Any]:
        return real(timeout_seconds) if turn < 6 else []

    def each(now: int) -> None:
        nonlocal turn
        turn = now
        interrupt(now)

    cast.peers[2].runner.ports.background.finished = stuck  # type: ignore[method-assign]
    cast.play(each_turn=each)
    assert len({(r.rounds, r.weights_sha256, r.reason) for r in cast.reports()}) == 1
    assert cast.clock.monotonic() - interrupted_at < 5
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
def test_a_failed_gradient_ends_all_with_its_cause(broker: bool) -> None:
    cast = Cast(configuration(), (24, 24, 12), broker=broker)
    cast.peers[2].gradients.fails_in_round = 4
    cast.play()
    assert isinstance(cast.peers[2].error, GradientFailed)
    for rank in (0, 1):
        error = cast.peers[rank].error
        assert isinstance(error, RunFailed)
        assert str(error).startswith("peer 2: batch")
    reports = cast.reports()
    assert [r.reason for r in reports] == ["failed"] * 3
    assert all("round 4 failed" in (r.error or "") for r in reports)
    assert {r.rounds for r in reports} == {4}
    assert len({r.weights_sha256 for r in reports}) == 1
    cast.close()


def test_a_bug_is_reported_like_a_failure() -> None:
    class Broken(QuadraticGradients):
        def compute(self, **_: Any) -> Any:
            raise ZeroDivisionError("division by zero")

    cast = Cast(configuration(), (24, 24, 12), gradients=lambda spec, store, rank: Broken(rank, 24, 51))
    cast.play()
    assert {type(p.error) for p in cast.peers} <= {ZeroDivisionError, RunFailed}
    assert any("ZeroDivisionError: division by zero" in (r.error or "") for r in cast.reports())
    cast.close()
