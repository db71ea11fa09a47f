"""What compression costs in accuracy: the demo, examples/mnist.toml, with and without it, at equal rounds.

Every codec trains from the same seeds, hence from the same initial weights on the same batches, and accuracies are
compared by seed and in the mean. Peers, S3, RabbitMQ, codecs and commits are the real ones. Gradients are computed in
the peers' own processes, which is quicker than Lambda workers and gives the same bits (decision 0002).

That the runs do equal work is checked, and a difference ends the benchmark: the samples of every round by commit, which
gives their number too; that no run ended early; and that all peers end with one set of weights.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console

import peerless
from benchmarks.comparison import UnequalWorkError
from benchmarks.reporting import Figure
from peerless.report.progress import Lines

CONFIG = Path(__file__).parents[1] / "examples" / "mnist.toml"
SEEDS = (1, 2, 3)
#: Settings by the name that stands in the figures; the first is what the others are compared with.
FORMS = {
    "none": ["exchange.codec=none"],
    "qsgd4": ["exchange.codec=qsgd4"],
    "qsgd4_feedback": ["exchange.codec=qsgd4", "exchange.error_feedback=true"],
    "qsgd8": ["exchange.codec=qsgd8"],
}
#: Percentage points that a form may lose in the mean.
MUST = {"qsgd4": 0.5, "qsgd4_feedback": 0.5}


def run() -> list[Figure]:
    """Train with every form and seed, and give the figures. Raises UnequalWorkError."""
    runs = {form: [train(settings, seed) for seed in SEEDS] for form, settings in FORMS.items()}
    work = {form: [samples for _, samples in trained] for form, trained in runs.items()}
    for form, samples in work.items():
        if samples != work["none"]:
            raise UnequalWorkError(f"samples by seed and round with {form}: {samples}; with none: {work['none']}")
    accuracy = {form: [share for share, _ in trained] for form, trained in runs.items()}
    figures = [Figure(name="rounds", value=len(work["none"][0]), unit="rounds of each run", better="neither")]
    for form, shares in accuracy.items():
        figures.append(Figure(name=f"accuracy_{form}", value=_mean(shares), unit="share", better="higher"))
    for form in list(FORMS)[1:]:
        lost = [100 * (without - share) for without, share in zip(accuracy["none"], accuracy[form], strict=True)]
        must = MUST.get(form)
        figures.append(Figure(name=f"points_lost_{form}", value=_mean(lost), unit="points", better="lower", must=must))
        for seed, points in zip(SEEDS, lost, strict=True):
            name = f"points_lost_{form}_seed_{seed}"
            figures.append(Figure(name=name, value=_mean([points]), unit="points", better="lower"))
    return figures


def train(settings: list[str], seed: int) -> tuple[float, list[int]]:
    """Test accuracy of one run, and its samples by round."""
    overrides = [*settings, f"seed={seed}", 'compute.service="local"']
    print(*overrides, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as folder:
        made = peerless.train(CONFIG, overrides=overrides, runs_dir=folder, observer=Lines(Console(file=sys.stderr)))
        events = made.metrics()
    if made.summary["reason"] != "epoch_limit":
        raise UnequalWorkError(f"the run with {' '.join(overrides)} ended by {made.summary['reason']}")
    if len(set(made.summary["weights_sha256"].values())) != 1:
        raise UnequalWorkError(f"the peers of the run with {' '.join(overrides)} ended with different weights")
    commits = [event for event in events if event["event"] == "commit" and event["rank"] == 0]
    return made.summary["test_accuracy"], [event["samples"] for event in commits if event["contributors"]]


def _mean(values: list[float]) -> float:
    """To six decimals: sums of shares of 10,000 images have no more to tell."""
    return round(statistics.mean(values), 6)
