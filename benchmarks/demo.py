"""The demo, examples/mnist.toml, against what it must reach on two cores that it has to itself.

These limits are in seconds and bytes, so they hold for a machine like the one that they were set on; where other work
shares the cores, times say little.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console

import peerless
from benchmarks.reporting import Figure
from peerless.report.progress import Lines

CONFIG = Path(__file__).parents[1] / "examples" / "mnist.toml"


def run() -> list[Figure]:
    """Train once, servers and data included, and give the figures."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder:
        made = peerless.train(CONFIG, runs_dir=folder, observer=Lines(Console(file=sys.stderr))).summary
    training, memory = made["seconds_training"], made["peak_memory_bytes"] / 1e9
    hashes = len(set(made["weights_sha256"].values()))
    return [
        Figure(name="test_accuracy", value=made["test_accuracy"], unit="share", better="higher", must=0.97),
        Figure(name="seconds_training", value=training, unit="s", better="lower", must=150.0),
        Figure(name="seconds_around", value=made["seconds_total"] - training, unit="s", better="lower", must=60.0),
        Figure(name="memory_of_all_processes", value=memory, unit="GB", better="lower", must=6.0),
        Figure(name="compression_ratio", value=made["compression_ratio"], unit="x", better="higher", must=7.0),
        Figure(name="different_final_weights", value=hashes, unit="hashes", better="lower", must=1),
    ]
