"""Aggregating 16 contributions of a model of 100 MB, `qsgd4`: memory in model sizes, and time against memcpy.

Every strategy runs in a fresh process, which reads frames from disk one by one as a peer does. Its memory is the most
that the process had resident at once (VmHWM), less what it had after a small aggregation that loads what there is to
load: everything counts, frames included. Scratch files are the system's cache, and not in it. Time is that of all
three stages (read, decode, aggregate) against memcpy of as many float32 values as the contributions hold.

Three contributions are scaled by -10, so that strategies differ. That they do what they say is checked against plain
NumPy over all decoded values in double precision, and a difference ends the benchmark.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import UnequalWorkError
from benchmarks.reporting import Figure
from contract import wire
from contract.clock import SystemClock
from contract.codec import codec
from contract.config import AggregationConfig
from contract.robust import aggregation
from contract.tensors import Entry, Layout

F32 = NDArray[np.float32]

PEERS, BYZANTINE, ELEMENTS, CODEC = 16, 3, 25_000_000, "qsgd4"
#: Repetitions in one process, aggregating and copying in turns: the first one's memory counts, and the median times.
TURNS = 3
#: Values that plain NumPy takes at a time.
BLOCK = 1 << 19
#: Name of a figure -> the strategy. The clipped contributions are those that are scaled by -10.
STRATEGIES = {
    "mean": AggregationConfig(name="mean"),
    "clipped_mean": AggregationConfig(name="mean", clip_norm=6_000.0),
    "median": AggregationConfig(name="median", byzantine=BYZANTINE),
    "trimmed_mean": AggregationConfig(name="trimmed_mean", byzantine=BYZANTINE),
    "krum": AggregationConfig(name="krum", byzantine=BYZANTINE),
}


@dataclass(frozen=True)
class Measured:
    """What one strategy took."""

    models: float
    """Memory in model sizes."""
    seconds: float
    memcpy_seconds: float


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        _tell(f"{PEERS} frames of {ELEMENTS} values …")
        make_frames(folder, ELEMENTS)
        for strategy in STRATEGIES:
            measured = in_a_fresh_process(strategy, folder)
            ratio = measured.seconds / measured.memcpy_seconds
            _tell(f"{strategy:14} {measured.models:.3f} models, {measured.seconds:.2f} s, {ratio:.1f} x memcpy")
            check(strategy, folder, ELEMENTS)
            figures.append(
                Figure(name=f"peak_{strategy}", value=measured.models, unit="models", better="lower", must=3.0, aim=1.5)
            )
            figures.append(Figure(name=f"time_{strategy}", value=ratio, unit="x memcpy", better="lower"))
    return figures


def make_frames(folder: Path, elements: int) -> None:
    """PEERS frames, `0` and so on: one direction that all share, noise of their own; every third one is
    scaled by -10 until BYZANTINE of them are."""
    common = np.random.default_rng(0).standard_normal(elements, np.float32)
    for rank in range(PEERS):
        gradient = common + 0.5 * np.random.default_rng(rank + 1).standard_normal(elements, np.float32)
        if rank % 3 == 1 and rank < 3 * BYZANTINE:
            gradient *= -10
        header = wire.FrameHeader(
            kind=wire.Kind.UPDATE,
            run="bench",
            round=0,
            base_round=0,
            base_weights="0" * 64,
            rank=rank,
            incarnation=1,
            samples=rank + 1,
            codec=CODEC,
            seed=rank,
            elements=elements,
        )
        (folder / str(rank)).write_bytes(wire.encode(header, codec(CODEC).encode(gradient, rank)))


def frames(folder: Path, elements: int) -> Iterator[wire.Frame]:
    """The frames in rank order, one in memory at a time."""
    for rank in range(PEERS):
        yield wire.decode((folder / str(rank)).read_bytes(), expected_elements=elements, expected_buffers_bytes=0)


def aggregate(strategy: str, folder: Path, elements: int) -> F32:
    """What a peer does with the frames in `folder`."""
    layout, samples = Layout((Entry("w", (elements,)),)), PEERS * (PEERS + 1) // 2
    with aggregation(STRATEGIES[strategy], layout, samples, folder) as aggregator:
        for frame in frames(folder, elements):
            aggregator.add(frame.payload, codec(CODEC), {}, frame.header.samples)
            del frame  # before the next one is read
        return aggregator.result({})[0]


def in_a_fresh_process(strategy: str, folder: Path) -> Measured:
    """Aggregate in a process of its own, which leaves the gradient in `folder`."""
    command = [sys.executable, "-m", "benchmarks.aggregation", strategy, str(folder)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout))


def measure(strategy: str, folder: Path) -> Measured:
    """In the fresh process: aggregate TURNS times, keep the gradient, and copy as many values as came."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as small:
        make_frames(Path(small), 4096)
        aggregate(strategy, Path(small), 4096)
    seconds, copying, models = [], [], 0.0
    copy: F32 = np.empty(0, np.float32)
    for turn in range(TURNS):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        start = clock.monotonic()
        gradient = aggregate(strategy, folder, ELEMENTS)
        seconds.append(clock.monotonic() - start)
        if turn == 0:
            models = (resident("VmHWM") - before) / gradient.nbytes
            gradient.tofile(folder / "gradient")
            copy = np.zeros_like(gradient)
        start = clock.monotonic()
        for _ in range(PEERS):
            np.copyto(copy, gradient)
        copying.append(clock.monotonic() - start)
        del gradient
    return Measured(models, statistics.median(seconds), statistics.median(copying))


def resident(field: str, pid: int | str = "self") -> int:
    """Bytes of a process's memory, as Linux counts them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def check(strategy: str, folder: Path, elements: int) -> None:
    """Raise UnequalWorkError unless the gradient in `folder` is plain NumPy's, but for rounding to float32."""
    if not (folder / "decoded").exists():
        decoded: F32 = np.memmap(folder / "decoded", np.float32, "w+", shape=(PEERS, elements))
        for rank, frame in enumerate(frames(folder, elements)):
            codec(CODEC).decode(frame.payload, elements, out=np.asarray(decoded[rank]))
    x: F32 = np.memmap(folder / "decoded", np.float32, "r", shape=(PEERS, elements))
    plain = PLAIN[strategy](x)
    got = np.fromfile(folder / "gradient", np.float32)
    # The mean is summed in float32, product by product; the others round once.
    tolerance = (PEERS if "mean" in strategy and strategy != "trimmed_mean" else 1) * 2.0**-23
    for start in range(0, elements, BLOCK):
        part = slice(start, start + BLOCK)
        expected = plain(x[:, part].astype(np.float64))
        worst = float(np.abs(got[part] - expected).max())
        if not worst <= tolerance * float(np.abs(x[:, part]).max()):
            raise UnequalWorkError(f"{strategy}: a value is {worst:.3g} off plain NumPy's")


#: Of all values (P, n), a function of blocks (P, b) of them in double precision.
Plain = Callable[[F32], Callable[[NDArray[np.float64]], NDArray[Any]]]


def _plain_mean(x: F32, scales: NDArray[np.float64] | None = None) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
    weights = np.arange(1, PEERS + 1) / (PEERS * (PEERS + 1) / 2) * (1.0 if scales is None else scales)
    return lambda block: (weights[:, None] * block).sum(axis=0)


def _plain_clipped_mean(x: F32) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
    norms = np.array([np.linalg.norm(row.astype(np.float64)) for row in x])
    scales = np.minimum(1.0, STRATEGIES["clipped_mean"].clip_norm / norms)
    if int((scales < 1).sum()) != BYZANTINE:
        raise UnequalWorkError(f"{int((scales < 1).sum())} contributions are clipped; {BYZANTINE} should be")
    return _plain_mean(x, scales)


def _plain_krum(x: F32) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
    distances = np.zeros((PEERS, PEERS))
    for start in range(0, x.shape[1], BLOCK):
        block = x[:, start : start + BLOCK].astype(np.float64)
        squares = np.square(block).sum(axis=1)
        distances += squares[:, None] + squares[None] - 2 * block @ block.T  # plain, and not what robust.py does
    np.fill_diagonal(distances, np.inf)
    choice = int(np.sort(distances, axis=1)[:, : PEERS - BYZANTINE - 2].sum(axis=1).argmin())
    return lambda block: block[choice]


PLAIN: dict[str, Plain] = {
    "mean": _plain_mean,
    "clipped_mean": _plain_clipped_mean,
    "median": lambda x: lambda block: np.median(block, axis=0),
    "trimmed_mean": lambda x: lambda block: np.sort(block, axis=0)[BYZANTINE:-BYZANTINE].mean(axis=0),
    "krum": _plain_krum,
}


def _tell(note: str) -> None:
    print(note, file=sys.stderr)


if __name__ == "__main__":
    print(json.dumps(vars(measure(sys.argv[1], Path(sys.argv[2])))))
