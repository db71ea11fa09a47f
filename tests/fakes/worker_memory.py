"""A gradient worker in a process of its own, which measures its memory: `python -m tests.fakes.worker_memory FOLDER`.

FOLDER holds the objects of a round, and `events.json` the events of its tasks. It prints bytes, as JSON: `held` by the
warm worker beyond what a worker with a tiny model holds, and `peak`, the most while it answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from contract.clock import SystemClock
from contract.env import WorkerEnv
from contract.keys import Place
from contract.store import Data, Stored
from lambdas.gradient_worker.handler import GradientWorker
from tests.fakes.gradient_round import PLAIN, prepare
from tests.fakes.store import MemoryStore

WIDTH, LAYERS = 1_600, 10


def layers(classes: int, image_size: int) -> nn.Module:
    """A model of 100 MB whose layers are small beside it."""
    hidden = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, WIDTH), *hidden, nn.Linear(WIDTH, classes))


class Files:
    """What a worker asks of a store, over files, so that objects take no memory of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, place: Place) -> Path:
        return self._folder / f"{place.bucket}-{place.key}".replace("/", "-")

    def put(self, place: Place, data: Data) -> Stored:
        """Write."""
        self._path(place).write_bytes(data)
        return Stored("", len(data))

    def get(self, place: Place, most: int | None = None) -> bytes:
        """Read."""
        return self._path(place).read_bytes()

    def get_range(self, place: Place, offset: int, length: int) -> bytes:
        """Read a part."""
        with self._path(place).open("rb") as file:
            file.seek(offset)
            return file.read(length)


def resident(field: str) -> int:
    """Bytes of this process's memory, as Linux counts them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main(folder: Path) -> None:
    """Answer the events twice over."""
    events: Sequence[dict[str, object]] = json.loads((folder / "events.json").read_text(encoding="utf-8"))
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    tiny = MemoryStore()
    warming = GradientWorker(env, tiny, SystemClock())
    for task in prepare(tiny, PLAIN).tasks:
        warming(task.to_event())
    worker = GradientWorker(env, Files(folder), SystemClock())  # type: ignore[arg-type]  # the part that it asks for
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    for event in (*events, *events):
        worker(event)
    print(json.dumps({"held": resident("VmRSS") - before, "peak": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
