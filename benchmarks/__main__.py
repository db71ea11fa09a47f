"""Command line of the benchmarks."""

from __future__ import annotations

import importlib
import sys

#: Name of a benchmark -> what it measures. Each is a module here with `run() -> list[Figure]`.
BENCHMARKS = {
    "round": "seconds per round by stage, and rounds against bare torch doing the same batches on the same cores",
    "demo": "the demo's accuracy, seconds, memory and compression, against what they must be",
    "accuracy": "what compression costs the demo in accuracy, with and without error feedback, at equal rounds",
    "exactness": "gradients by workers against a plain torch loop, and accuracy with BatchNorm against one process",
    "algorithms": "rounds to 97% on MNIST: local SGD and DiLoCo against gradient averaging, at equal samples per round",
    "fedkeeper": "rounds to 95% in the FedKeeper paper's setting: 100 clients with two label shards each (hours)",
    "exchange": "averaging 25 MB among four peers, commit and barrier included, against gloo; also on slow links",
    "recovery": "a peer killed at 25 MB: the longest round of the others, beyond the time until it is dropped",
    "scale": "bytes per peer under reduce_scatter, and control messages of up to 1,000 simulated peers",
    "images": "the container images, without a container engine: import time, memory, one invocation",
    "aggregation": "16 contributions of 100 MB by every strategy: memory in model sizes, time against memcpy",
    "memory": "a whole peer among 16 with 100 MB each: what a round takes beyond model and optimizer state",
    "plan": "the planner's predicted seconds of a round against measured ones: three models, two and four peers",
    "codec": "the vendored QSGD codec: speed against memcpy and torch, size, error and import cost",
}


def main(arguments: list[str]) -> int:
    """List the benchmarks, or run one and print its JSON line."""
    from benchmarks.reporting import line

    if not arguments:
        for name, what in BENCHMARKS.items():
            print(f"{name:12} {what}")
        return 0
    name = arguments[0]
    if name not in BENCHMARKS or len(arguments) > 1:
        print(f"benchmarks: {' '.join(arguments)}: there is {', '.join(BENCHMARKS)}; name one of them", file=sys.stderr)
        return 2
    print(line(name, importlib.import_module(f"benchmarks.{name}").run()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
