"""A round through Step Functions, Lambda workers and RabbitMQ, against bare torch doing the same batches.

Four peers train the demo's CNN on MNIST for a few rounds with the local stack. The bare side is one process that does
forward and backward over as many batches of the same size on the same cores, averages, and steps: once as a plain torch
loop with one thread per core, before and after the run, of which the median counts. Rounds are timed from one commit
to the next; the first ones are left out, because workers and caches warm up.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

import peerless
from benchmarks.reporting import Figure, cores
from contract import models
from contract.clock import SystemClock
from contract.modelspec import ModelSpec
from peerless.report.progress import Lines

PEERS, BATCHES, BATCH_SIZE, ROUNDS, WARM = 4, 2, 128, 24, 4
STAGES = ("compute", "send", "receive", "update", "convergence")


def run() -> list[Figure]:
    """Measure, and give the figures."""
    from rich.console import Console

    before = list(bare_rounds(10))
    config = {
        "name": "bench-round",
        "peers": PEERS,
        "epochs": 1,
        "batch_size": BATCH_SIZE,
        "batches_per_round": BATCHES,
        "data": {"train_samples": PEERS * BATCHES * BATCH_SIZE * ROUNDS},
    }
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder:
        result = peerless.train(config, runs_dir=Path(folder), observer=Lines(Console(file=sys.stderr)))
        commits = [event for event in result.metrics() if event["event"] == "commit" and event["rank"] == 0]
        stages = [event for event in result.metrics() if event["event"] == "stage" and event["round"] >= WARM]
        summary = result.summary
    bare = statistics.median([*before, *bare_rounds(10)])
    times = [event["t"] for event in commits if WARM <= event["round"] < ROUNDS]
    durations = [later - earlier for earlier, later in pairwise(times)]
    invocations = summary["lambda_service"]["invocations"]
    expected = PEERS * BATCHES * ROUNDS
    figures = [
        Figure(name="round_over_bare_torch", value=statistics.median(durations) / bare, unit="x", better="lower"),
        Figure(name="seconds_per_round", value=statistics.median(durations), unit="s", better="lower"),
        Figure(name="seconds_per_bare_round", value=bare, unit="s", better="neither"),
        Figure(name="invocations_over_batches", value=invocations / expected, unit="x", better="lower"),
    ]
    for stage in STAGES:
        seconds = [event["seconds"] for event in stages if event["stage"] == stage]
        if seconds:
            value = statistics.median(seconds)
            figures.append(Figure(name=f"seconds_{stage}", value=value, unit="s per peer and round", better="lower"))
    return figures


def bare_rounds(count: int) -> Iterator[float]:
    """Seconds of each of `count` rounds in plain torch: all peers' batches, one after another, then one step."""
    clock = SystemClock()
    torch.set_num_threads(cores())
    model = models.build(ModelSpec(name="cnn", classes=10, channels=1, image_size=28, options={}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()
    x, y = torch.randn(PEERS * BATCHES, BATCH_SIZE, 1, 28, 28), torch.randint(10, (PEERS * BATCHES, BATCH_SIZE))
    for index in range(count + 1):
        start = clock.monotonic()
        optimizer.zero_grad()
        for batch in range(PEERS * BATCHES):
            (loss(model(x[batch]), y[batch]) / (PEERS * BATCHES)).backward()
        optimizer.step()
        if index:  # the first one warms up
            yield clock.monotonic() - start
