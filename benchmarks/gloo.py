"""One process of torch.distributed's side: all-reduces its vector over gloo, between two meetings each time.

    python -m benchmarks.gloo --rank N --peers P --elements E --rounds R --meeting SOCKET --store FILE --out FILE

GLOO_SOCKET_IFNAME names the network interface.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.meeting import Attendance, cpu_seconds
from benchmarks.vectors import gradient


def main(argv: list[str]) -> int:
    """Average `rounds` times, and leave the last average (elements,) in `--out`."""
    arguments = _parse(argv)
    torch.set_num_threads(1)
    rank, peers = arguments.rank, arguments.peers
    dist.init_process_group("gloo", init_method=f"file://{arguments.store}", rank=rank, world_size=peers)
    mine = torch.from_numpy(gradient(rank, arguments.elements))
    attendance, average = Attendance(arguments.meeting, rank), mine
    for round in range(arguments.rounds):
        average = mine.clone()
        attendance.meet(2 * round, {"cpu_seconds": cpu_seconds()})
        dist.all_reduce(average)
        average /= peers
        attendance.meet(2 * round + 1, {"cpu_seconds": cpu_seconds()})
    np.save(arguments.out, average.numpy())
    dist.destroy_process_group()
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gloo")
    for name in ("rank", "peers", "elements", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("meeting", "store", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
