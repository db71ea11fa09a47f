"""A round through Step Functions, Lambda workers and RabbitMQ, against bare torch doing the same batches.

Four peers train the demo's CNN on MNIST for some rounds on the local stack. The bare side is one process with a thread
per core that goes through the very same batches from the same weights: forward and backward over all peers' batches of
a round, one step. It is measured before and after the run, and the median of both counts. Rounds are timed from one
commit to the next; the first ones are left out, because workers and caches warm up.

That both sides do equal work is checked, and a difference ends the benchmark: the samples of every round, the training
loss of round 0, one invocation per batch; and, in a short run without compression, the weights that come out.

What follows is the compute plane by itself (benchmarks/plane.py).
"""

from __future__ import annotations

import statistics
from itertools import pairwise

from benchmarks import plane
from benchmarks.comparison import (
    BATCHES,
    PEERS,
    UnequalWorkError,
    close,
    configuration,
    distance,
    equal,
    train_bare,
    train_peers,
)
from benchmarks.reporting import Figure

ROUNDS, WARM = 24, 4
#: Rounds of the run whose weights are compared.
PROOF_ROUNDS = 3
STAGES = ("compute", "send", "receive", "update", "convergence")


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError, RunFailed."""
    return [*whole(), *plane.run()]


def whole(rounds: int = ROUNDS, warm: int = WARM) -> list[Figure]:
    """The figures of four peers over so many rounds; the first `warm` do not count. Raises UnequalWorkError."""
    prove()
    config = configuration(rounds)
    before = train_bare(config)
    peers = train_peers(config)
    after = train_bare(config)
    expected = PEERS * BATCHES * rounds
    invocations = peers.summary["lambda_service"]["invocations"]
    equal("invocations", invocations, expected)
    equal("samples by round", [commit["samples"] for commit in peers.commits], before.samples)
    close("training loss of round 0", peers.commits[0]["loss"], before.losses[0])
    bare = statistics.median(before.seconds[warm:] + after.seconds[warm:])
    each = statistics.median(later["t"] - earlier["t"] for earlier, later in pairwise(peers.commits[warm:]))
    figures = [
        Figure(name="round_over_bare_torch", value=each / bare, unit="x", better="lower"),
        Figure(name="invocations_over_batches", value=invocations / expected, unit="x", better="lower"),
        Figure(name="seconds_per_round", value=each, unit="s", better="lower"),
        Figure(name="seconds_per_bare_round", value=bare, unit="s", better="neither"),
    ]
    for stage in STAGES:
        seconds = [event["seconds"] for event in peers.stages if event["stage"] == stage and event["round"] >= warm]
        if seconds:
            value = statistics.median(seconds)
            figures.append(Figure(name=f"seconds_{stage}", value=value, unit="s per peer and round", better="lower"))
    return [*figures, plane.weights_downloads(peers, rounds)]


def prove() -> None:
    """A short run with uncompressed gradients must end with bare torch's weights, but for float32 rounding."""
    config = configuration(PROOF_ROUNDS, exchange={"codec": "none"})
    peers, bare = train_peers(config), train_bare(config)
    equal("samples by round", [commit["samples"] for commit in peers.commits], bare.samples)
    equal("tensors", sorted(peers.weights), sorted(bare.weights))
    apart = distance(peers.weights, bare.weights)
    moved = distance(bare.start, bare.weights)
    if not apart <= 1e-4 * moved:  # sums in another order give some 1e-6
        raise UnequalWorkError(f"weights that moved by {moved:.4g} end {apart:.4g} apart from bare torch's")
