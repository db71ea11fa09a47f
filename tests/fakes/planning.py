"""Jobs and calibrations of round numbers, for the planner's tests: no data, no model, no clock."""

from __future__ import annotations

from typing import Any

from contract.config import RunConfig
from peerless.planner.calibration import VERSION, Calibration, Point
from peerless.planner.job import Job


def calibration(*, seconds: float = 0.5, batch_size: int = 100, spread: float = 0.05, **changes: Any) -> Calibration:
    """A batch takes `seconds`, one of half the size half of it, and with two threads 60% of it (a share of 0.8)."""
    points = [
        Point(
            batch_size=size,
            threads=threads,
            crowd=1,
            seconds=each,
            spread=spread,
            cpu_seconds=each * threads,
            cpu_spread=spread,
        )
        for size, threads, each in (
            (batch_size // 2, 1, seconds / 2),
            (batch_size, 1, seconds),
            (batch_size, 2, 0.6 * seconds),
        )
    ]
    values: dict[str, Any] = {
        "version": VERSION, "model": "model", "machine": "machine", "cores": 2, "taken": "2026-11-22",
        "points": tuple(points), "peak_bytes": 400 * 2**20, "probe_seconds": 0.0107,
    }  # fmt: skip
    return Calibration(**{**values, **changes})


def job(*, elements: int = 1_000_000, samples: int = 64_000, **config: Any) -> Job:
    """Four peers, batches of 100 samples of a kilobyte, 16 a round, 2 epochs, uncompressed between worker and peer."""
    values = {"peers": 4, "batch_size": 100, "batches_per_round": 16, "epochs": 2}
    return Job(
        config=RunConfig.model_validate({**values, **config}),
        elements=elements,
        buffers_bytes=0,
        samples=samples,
        validation_samples=1_000,
        sample_bytes=1_000,
    )
