"""What a run of an experiment leaves, made up: each stage takes as long as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peerless.reproduce.experiment import Outcome

ROUNDS = 3


def outcome(
    run: str, seconds: Mapping[str, float], *, peers: int = 2, workers: int = 0, accuracy: tuple[float, ...] = ()
) -> Outcome:
    """A run of three rounds. The first round takes ten times as long, and the last peer twice as long as `seconds`."""
    events: list[dict[str, Any]] = []
    for round_ in range(ROUNDS):
        for rank in range(peers):
            slower = (10 if round_ == 0 else 1) * (2 if rank == peers - 1 else 1)
            common = {"round": round_, "rank": rank, "t": 1_000.0 + round_}
            events.append({**common, "event": "round_started"})
            events += [
                {**common, "event": "stage", "stage": stage, "seconds": each * slower,
                 "bytes_in": 2_000_000, "bytes_out": 1_000_000}
                for stage, each in seconds.items()
            ]  # fmt: skip
            if workers:
                events.append({**common, "event": "worked", "invocations": workers, "step_seconds": 0.5 * slower})
    events += [
        {"round": at, "rank": 0, "t": 1_000.0 + at, "event": "validated", "validation_accuracy": each}
        for at, each in enumerate(accuracy)
    ]
    summary = {
        "run_id": run,
        "reason": "epochs",
        "rounds": ROUNDS,
        "epochs": ROUNDS,
        "seconds_training": 12.5,
        "test_accuracy": 0.5,
        "compression_ratio": 7.5,
        "stages": {
            stage: {"seconds": ROUNDS * each, "cpu_percent": 50.0, "peak_rss_bytes": 3e8}
            for stage, each in seconds.items()
        },
    }
    return Outcome(summary=summary, events=events)
