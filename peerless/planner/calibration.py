"""What was measured of a model on a machine: seconds of a batch by size, threads and crowd; and what runs have shown.

Kept as JSON in the user's cache, one file per model (with its options, input and precision) and machine, so that
`peerless plan` after `--calibrate` needs no measurement.

Each time is kept twice: as it passed, and as processor time, which other work on the machine hardly changes.

The time of a batch is taken as a straight line in its samples between measured sizes, and beyond them. With more
threads it shrinks by Amdahl's law, with the share that two or more threads were measured to save; a worker of less than
one vCPU has that share of the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract import jsonform
from contract.config import RunConfig
from contract.errors import CorruptObject, UserError

#: Calibrations of another version are not read.
VERSION = 1
#: Share of the work that threads divide where nothing was measured, and its spread.
PARALLEL, PARALLEL_SPREAD = 0.8, 0.25
#: A batch on one thread that had less of a processor than this was disturbed.
UNDISTURBED = 0.8
#: No measurement is trusted more than this: another day, another temperature.
LEAST_SPREAD = 0.03


@dataclass(frozen=True, kw_only=True)
class Point:
    """Forward and backward pass of one batch."""

    batch_size: int
    threads: int
    crowd: int
    """Batches computed at the same time on the machine, this one included."""
    seconds: float
    """The median."""
    spread: float
    """One standard deviation of the times, relative."""
    cpu_seconds: float
    """Processor time of all threads, the median: what the time would be, with one thread, if nothing else ran."""
    cpu_spread: float

    def __post_init__(self) -> None:
        counts, times = (self.batch_size, self.threads, self.crowd), (self.seconds, self.cpu_seconds)
        if min(counts) < 1 or min(times) <= 0 or min(self.spread, self.cpu_spread) < 0:
            raise ValueError(f"{self} is no measurement")


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How far predictions of one part of a round were off in a measured run."""

    where: str
    """The place and the gradient service, for example `aws.lambda` (refine.Measured.where)."""
    part: str
    """Part of a round, as terms.Part has them."""
    factor: float
    """Measured over predicted."""
    spread: float
    """Of the rounds, relative."""
    run: str

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.spread < 0:
            raise ValueError(f"{self} is no correction")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All that is known of a model on a machine."""

    version: int
    model: str
    """As `identity` gives it."""
    machine: str
    cores: int
    taken: str
    """Date, ISO."""
    points: tuple[Point, ...]
    peak_bytes: int
    """Largest resident set of a process that computed the largest batch."""
    probe_seconds: float
    """The machine's pace (measure.probe): costs of the local stack go with it."""
    corrections: tuple[Correction, ...] = ()
    accuracy: tuple[tuple[float, ...], ...] = ()
    """Pairs of (rounds, share that was right in a validation) of a run."""
    accuracy_run: str = ""

    def __post_init__(self) -> None:
        if not any(point.threads == point.crowd == 1 for point in self.points):
            raise ValueError("a calibration needs a measurement with one thread and nothing beside it")

    def step(self, batch_size: int, vcpus: float, crowd: int = 1) -> tuple[float, float]:
        """Seconds of a batch with so many vCPUs of this machine, and their relative spread: alone, or with a `crowd` of
        batches computed at once.

        By processor time, so that what else the machine did while it was measured does not count.
        """
        alone = [point for point in self.points if point.threads == 1 and point.crowd == 1]
        seconds, spread = _line([(each.batch_size, each.cpu_seconds, each.cpu_spread) for each in alone], batch_size)
        together = [point for point in self.points if point.threads == 1 and point.crowd > 1]
        if crowd > 1 and together:
            waited = [(each.batch_size, each.seconds, each.spread) for each in alone]
            slower = statistics.median(each.seconds / _line(waited, each.batch_size)[0] for each in together)
            seconds, spread = seconds * slower, max(spread, *(each.spread for each in together))
        if vcpus <= 1:
            return seconds / vcpus, spread
        share, unsure = self.parallel()
        shrunk = seconds * (1 - share + share / vcpus)
        # Half of what the share is unsure of is what the time is, beyond the threads that were measured.
        measured = max((point.threads for point in self.points), default=1)
        beyond = unsure * share * (1 - 1 / vcpus) * seconds / shrunk if vcpus > measured else 0.0
        return shrunk, (spread**2 + (beyond / 2) ** 2) ** 0.5

    def parallel(self) -> tuple[float, float]:
        """The share of a batch's work that threads divide, and its relative spread.

        Threads wait for each other, so on a machine that was busy several of them tell of the other work alone: then
        nothing was measured.
        """
        alone = {
            point.batch_size: point.seconds
            for point in self.points
            if point.threads == 1 and point.crowd == 1 and point.cpu_seconds >= UNDISTURBED * point.seconds
        }
        shares = [
            (1 - point.seconds / alone[point.batch_size]) / (1 - 1 / point.threads)
            for point in self.points
            if point.threads > 1 and point.crowd == 1 and point.batch_size in alone
        ]
        if not shares:
            return PARALLEL, PARALLEL_SPREAD
        share = min(0.99, max(0.0, statistics.median(shares)))
        return share, max(0.1, statistics.pstdev(shares) / max(share, 0.1))

    def correction(self, where: str, part: str) -> Correction | None:
        """The latest one of a part; None where no run has shown it."""
        found = [each for each in self.corrections if (each.where, each.part) == (where, part)]
        return found[-1] if found else None

    def rounds_to(self, accuracy: float) -> int | None:
        """Rounds after which a run's validation first reached `accuracy` (a share); None where none did."""
        return next((int(rounds) for rounds, share in self.accuracy if share >= accuracy), None)

    def save(self, path: Path) -> None:
        """Write it whole or not at all. Raises UserError."""
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(jsonform.to_dict(self), indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path}: the calibration cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path) -> Calibration | None:
        """None where there is none, or one of another version. Raises UserError for a damaged one."""
        try:
            value = jsonform.loads(path.read_bytes(), "the calibration")
            if value.get("version") != VERSION:
                return None
            return jsonform.from_dict(cls, value, "the calibration")
        except FileNotFoundError:
            return None
        except (CorruptObject, OSError) as error:
            raise UserError(f"{path}: {error}; remove the file, or measure anew with --calibrate") from error


def identity(config: RunConfig, sample_shape: Sequence[int]) -> str:
    """What a measurement depends on beside the machine: the model, its options and input, the loss, the arithmetic."""
    compute = config.compute
    given = [config.model, config.model_options, list(sample_shape), config.loss, compute.precision]
    return json.dumps([*given, compute.channels_last], sort_keys=True)


def path_of(model: str, machine: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the calibration of a model (its `identity`) on a machine is kept."""
    base = environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "peerless" / "plan"
    return folder / f"{hashlib.sha256(f'{model} {machine}'.encode()).hexdigest()[:16]}.json"


def machine_name() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _line(points: Sequence[tuple[int, float, float]], batch_size: int) -> tuple[float, float]:
    """Seconds at `batch_size` and their spread, from the two sizes next to it of (size, seconds, spread)."""
    sizes = sorted({size for size, _, _ in points})
    median = {size: statistics.median(seconds for each, seconds, _ in points if each == size) for size in sizes}
    spread = max(LEAST_SPREAD, statistics.median(spread for _, _, spread in points))
    if batch_size in median:
        return median[batch_size], spread
    if len(sizes) == 1:
        # Through the origin: overheads of small batches are not seen, so a far size is less sure.
        return median[sizes[0]] * batch_size / sizes[0], max(spread, 0.15)
    upper = next((at for at, size in enumerate(sizes) if size > batch_size), len(sizes) - 1)
    low, high = sizes[max(0, upper - 1)], sizes[max(1, upper)]
    slope = max(0.0, (median[high] - median[low]) / (high - low))
    seconds = median[low] + slope * (batch_size - low)
    if seconds <= 0:
        seconds = median[low] * batch_size / low
    outside = not sizes[0] <= batch_size <= sizes[-1]
    return seconds, max(spread, 0.1 if outside else 0.0)
