"""From peers' reports to the figures of summary.json."""

from __future__ import annotations

from typing import Any

import pytest

from contract.config import RunConfig
from contract.joining import Joined
from contract.records import PeerReport
from peerless.launch.follow import Told
from peerless.launch.result import SavedModel, mean_stages, summarise


def report(rank: int, **changes: Any) -> PeerReport:
    """A report of a peer that went well."""
    values: dict[str, Any] = {
        "run": "r",
        "rank": rank,
        "incarnation": 1,
        "rounds": 10,
        "epochs": 2,
        "reason": "epoch_limit",
        "weights_sha256": "a" * 64,
        "model_sha256": "b" * 64,
        "best_validation_loss": 0.25,
        "seconds_training": 5.0 + rank,
        "bytes_sent": 100 + rank,
        "bytes_received": 300,
        "gradient_bytes_raw": 8_000,
        "gradient_bytes_encoded": 1_000,
        "lambda_invocations": 20,
        "state_machine_executions": 10,
        "stages": {"compute": {"seconds": 2.0 * (rank + 1), "peak_bytes": 50.0 * (rank + 1)}},
    }
    return PeerReport(**{**values, **changes})


def summary(
    reports: list[PeerReport],
    error: str | None = None,
    model: SavedModel | None = None,
    interrupted: bool = False,
    **more: Any,
) -> dict[str, Any]:
    return summarise(
        run="r",
        config=RunConfig(peers=2),
        reports=reports,
        model=model,
        counters={},
        **{"told": Told(rounds=3), **more},
        peak_memory_bytes=7,
        seconds_total=9.0,
        error=error,
        interrupted=interrupted,
    )


def test_the_figures_of_a_run_that_went_well() -> None:
    model = SavedModel(sha256="b" * 64, safetensors=b"", test_loss=0.2, test_accuracy=0.98)
    made = summary([report(0), report(1)], model=model)
    required = {
        "run_id", "mode", "peers", "peers_lost", "rounds", "epochs", "reason", "test_accuracy", "validation_loss",
        "weights_sha256", "model_sha256", "seconds_total", "seconds_training", "bytes_sent", "bytes_received",
        "compression_ratio", "lambda_invocations", "state_machine_executions", "gradient_service", "stages",
    }  # fmt: skip
    assert required <= set(made)
    assert made["weights_sha256"] == {"0": "a" * 64, "1": "a" * 64}
    assert made["compression_ratio"] == 8.0
    assert made["lambda_invocations"] == 40
    assert made["seconds_training"] == 6.0
    assert made["bytes_sent"] == {"0": 100, "1": 101}
    assert (made["reason"], made["peers_lost"], made["test_accuracy"]) == ("epoch_limit", 0, 0.98)


def test_a_peer_without_a_report_or_with_an_error_is_lost() -> None:
    made = summary([report(0), report(1, error="it burnt", reason="failed")], error="peer 1: it burnt")
    assert (made["peers_lost"], made["lost_ranks"], made["reason"]) == (1, [1], "failed")
    assert set(made["weights_sha256"]) == {"0"}
    assert summary([])["peers_lost"] == 2


def test_a_run_that_was_interrupted_before_its_first_round_says_so() -> None:
    assert summary([], interrupted=True)["reason"] == "interrupted"
    assert summary([], interrupted=True, error="it burnt")["reason"] == "failed"
    assert summary([report(0), report(1)], interrupted=True)["reason"] == "epoch_limit", "it had ended by itself"


def test_a_failed_run_says_how_far_it_came() -> None:
    assert summary([report(0, error="it burnt", rounds=10)], error="it burnt")["rounds"] == 10
    assert summary([], error="all burnt")["rounds"] == 3


def test_nothing_is_invented_where_nothing_was_measured() -> None:
    made = summary([], error="no peer came up")
    for name in ("test_accuracy", "validation_loss", "model_sha256", "compression_ratio"):
        assert made[name] is None
    assert made["error"] == "no peer came up"


def test_stages_are_means_over_peers_and_the_largest_peak() -> None:
    assert mean_stages([report(0), report(1)]) == {"compute": {"seconds": pytest.approx(3.0), "peak_bytes": 100.0}}


def test_a_run_that_was_taken_up_again_is_told_as_a_whole() -> None:
    before = [report(0, run="r", rounds=4), report(1, run="r", rounds=4)]
    made = summary([report(0, run="r-r2"), report(1, run="r-r2")], earlier=before, parts=2, resume="resume it")
    assert (made["parts"], made["rounds"], made["lambda_invocations"]) == (2, 10, 80)
    assert made["bytes_sent"] == {"0": 200, "1": 202}
    assert made["seconds_training"] == 6.0 + 6.0
    assert made["resume"] is None, "it is finished"
    assert summary(before, interrupted=True, resume="resume it")["resume"] is None
    assert summary([], interrupted=True, resume="resume it")["resume"] == "resume it"
    assert summary(before, error="it burnt", resume="resume it")["resume"] == "resume it"


def test_restarts_and_rejections_come_from_the_events() -> None:
    told = Told(rounds=10, restarts={1: 2}, rejected={"0": {"signature": 3}, "unknown": {"run": 1}})
    made = summary([report(0), report(1)], told=told)
    assert (made["restarts"], made["peers_lost"]) == ({"1": 2}, 0)
    assert made["rejected_by_sender"] == {"0": {"signature": 3}, "unknown": {"run": 1}}


def test_who_was_left_out_is_told_by_whoever_saw_the_most_rounds_of_each_part() -> None:
    parts = [report(0, run="r", left_out={"1": 4}), report(1, run="r", left_out={"1": 2, "10": 1}, clipped={"2": 3})]
    made = summary([report(0, run="r-r2", left_out={"1": 1})], earlier=parts, parts=2)
    assert (made["left_out"], made["clipped"]) == ({"1": 5, "10": 1}, {"2": 3})


def test_those_who_joined_are_listed_and_who_left_is_not_lost() -> None:
    joined = [
        Joined(run="r", rank=rank, samples=10 * rank, batches=1, bucket="b", manifest_sha256="c" * 64, nonce="n")
        for rank in (2, 3, 4)
    ]
    left = report(2, reason="left", weights_sha256="d" * 64, model_sha256="", best_validation_loss=None)
    made = summary([report(0, reason="max_usd"), report(1, reason="max_usd"), left, report(3)], joined=joined)
    assert made["joined"] == {"2": 20, "3": 30, "4": 40}
    assert (made["left"], made["lost_ranks"], made["peers_lost"]) == ([2], [4], 1)
    assert set(made["weights_sha256"]) == {"0", "1", "3"}, "what it held when it went is not the run's"
    assert made["reason"] == "epoch_limit"
    assert set(made["bytes_sent"]) == {"0", "1", "2", "3"}
    only = summary([report(0, reason="max_usd"), report(1, reason="max_usd"), left], joined=joined[:1])
    assert only["reason"] == "max_usd", "that one peer left is not why the run ended"
