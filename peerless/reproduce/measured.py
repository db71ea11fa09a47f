"""Gradients measured here with workers and without, for Tables II and III."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peerless.cost.paper import (
    instance_cost_usd,
    instance_usd_per_second,
    serverless_cost_usd,
    worker_usd_per_second,
)
from peerless.reproduce.experiment import Outcome, Scale, Trainings
from peerless.reproduce.result import Origin, Row, Table
from peerless.reproduce.tables import TABLE_2

#: Batch sizes and images of all peers together, by scale.
SIZES = {Scale.SMALL: (64, 128), Scale.FULL: tuple(column.batch_size for column in TABLE_2)}
SAMPLES = {Scale.SMALL: 1_024, Scale.FULL: 0}
EPOCHS = {Scale.SMALL: 3, Scale.FULL: 4}
#: Memory of a worker here, MB: one vCPU, and one thread.
MEMORY_MB = 1_769
WITH, WITHOUT = "lambda", "local"
MEASURED_NOTE = (
    "What is measured here has all peers and all workers on the same few cores, so workers add their own cost and "
    "take nothing off: only on AWS has each worker processors of its own. VGG-11 has the paper's convolutions, on "
    "images of 32 pixels, and one dense layer (9.2 million parameters in place of 128.8 million)."
)


def with_and_without(
    scale: Scale, model: Callable[..., dict[str, Any]], services: tuple[str, ...] = (WITH, WITHOUT)
) -> Trainings:
    """A run for each batch size and service, named `<service>-<batch size>`."""
    return {
        f"{service}-{size}": model(
            scale, service=service, batch_size=size, samples=SAMPLES[scale], epochs=EPOCHS[scale]
        )
        for size in SIZES[scale]
        for service in services
    }


def gradients_table(outcomes: Mapping[str, Outcome]) -> Table:
    """Seconds of a peer's round for gradients, by batch size, and what the paper's formulas make of them."""
    sizes = sorted({int(name.rpartition("-")[2]) for name in outcomes}, reverse=True)
    services = [service for service in (WITH, WITHOUT) if f"{service}-{sizes[0]}" in outcomes]
    rows = []
    for service in services:
        runs = [outcomes[f"{service}-{size}"] for size in sizes]
        told = "with workers" if service == WITH else "without workers"
        seconds = [run.stage("compute") for run in runs]
        rows.append(Row(origin=Origin.MEASURED, name=f"{told}: seconds", values=tuple(seconds)))
        if service == WITH:
            batches = [round(run.worked("invocations")) for run in runs]
            steps = tuple(run.worked("step_seconds") for run in runs)
            rows.append(Row(origin=Origin.MEASURED, name="of a peer: workers", values=tuple(batches)))
            rows.append(Row(origin=Origin.MEASURED, name="forward and backward in a worker: seconds", values=steps))
            usd = [_with_usd(count, each) for count, each in zip(batches, seconds, strict=True)]
        else:
            usd = [instance_cost_usd(instance_usd_per_second("t2.large"), each) for each in seconds]
        formula = "formula (1)" if service == WITH else "formula (2)"
        rows.append(Row(origin=Origin.COMPUTED, name=f"{formula} with these seconds: USD", values=tuple(usd)))
    return Table(
        title="Gradients on this machine, per peer and epoch",
        columns=tuple(f"batches of {size}" for size in sizes),
        rows=tuple(rows),
        note="Prices by the price book: t2.small and workers of 1,769 MB (arm64) with workers, t2.large without.",
    )


def _with_usd(batches: int, seconds: float) -> float:
    return serverless_cost_usd(batches, worker_usd_per_second(MEMORY_MB), instance_usd_per_second("t2.small"), seconds)
