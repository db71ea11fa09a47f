"""Time a model's real forward and backward pass on this machine: what gradient workers do, by the code that they run.

Small batches and large ones, one thread and several, and as many batches at once as there are cores: two workers on
two cores that share caches and memory are not as fast as one alone.
"""

from __future__ import annotations

import copy
import hashlib
import resource
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from contract.clock import Clock
from contract.computing import MB_PER_VCPU
from contract.config import RunConfig
from contract.gradients import GradientMean, arranged
from contract.tensors import flatten, read_buffers
from peerless.launch.workload import Workload
from peerless.planner.calibration import UNDISTURBED, VERSION, Calibration, Point, identity, machine_name
from peerless.planner.terms import deviation

#: A size is timed for so long at most, and so often at least, beside once that does not count.
SECONDS, LEAST, MOST = 2.0, 3, 15
#: Bytes over which the probe makes a digest, and rounds of plain Python that it counts.
_PROBE_BYTES, _PROBE_ROUNDS = 4 << 20, 60_000
#: Workers of more vCPUs than Lambda sells are not asked for.
MOST_THREADS = 10_240 // MB_PER_VCPU

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one piece of work: medians in seconds, and relative standard deviations."""

    seconds: float
    spread: float
    cpu_seconds: float
    """Processor time of the process, all its threads."""
    cpu_spread: float


def timed(step: Step, clock: Clock) -> Timing:
    """What `step` takes, after once that warms up."""
    step()
    passed: list[float] = []
    used: list[float] = []
    begun = clock.monotonic()
    while len(passed) < LEAST or (len(passed) < MOST and clock.monotonic() - begun < SECONDS):
        start, cpu = clock.monotonic(), clock.cpu()
        step()
        passed.append(clock.monotonic() - start)
        used.append(clock.cpu() - cpu)
    # A median absolute deviation does not count a single hiccup.
    return Timing(
        seconds=statistics.median(passed),
        spread=deviation(passed),
        cpu_seconds=statistics.median(used),
        cpu_spread=deviation(used),
    )


def probe(clock: Clock) -> float:
    """Processor seconds of a fixed piece of work (digests, plain Python): the pace of servers and peers here."""
    content = bytes(_PROBE_BYTES)

    def work() -> None:
        hashlib.md5(content, usedforsecurity=False).digest()
        sum(number % 7 for number in range(_PROBE_ROUNDS))

    return timed(work, clock).cpu_seconds


def sizes(batch_size: int) -> tuple[int, ...]:
    """Batch sizes to time for a configuration: its own, a quarter of it, and twice as much."""
    return tuple(sorted({max(2, batch_size // 4), batch_size, 2 * batch_size}))


def thread_counts(cores: int) -> tuple[int, ...]:
    """Thread counts to time: as the memory settings of Lambda give vCPUs, and the machine has cores."""
    return tuple(count for count in (1, 2, 4, MOST_THREADS) if count <= cores)


def calibrate(config: RunConfig, work: Workload, clock: Clock, cores: int, log: Callable[[str], None]) -> Calibration:
    """Measure the configured model. Raises ModelError, NonFiniteGradient, MemoryError as a run's worker would."""
    points: list[Point] = []
    before = torch.get_num_threads()
    try:
        for batch_size in sizes(config.batch_size):
            for threads in thread_counts(cores):
                if threads > 1 and not undisturbed(points):
                    continue  # threads wait for each other, and then for everything else that runs here
                torch.set_num_threads(threads)
                found = timed(_step(config, work, batch_size), clock)
                points.append(_point(batch_size, threads, 1, [found]))
                log(
                    f"{batch_size} samples, {threads} threads: {1_000 * found.seconds:.1f} ms, "
                    f"{1_000 * found.cpu_seconds:.1f} ms of processor time"
                )
        if not undisturbed(points):
            log("the machine is busy: several threads were not timed; measure again when it is not, for closer figures")
        elif cores > 1:
            points.append(_crowded(config, work, cores, clock))
            log(f"{cores} batches at once: {1_000 * points[-1].seconds:.1f} ms each")
    finally:
        torch.set_num_threads(before)
    return Calibration(
        version=VERSION,
        model=identity(config, work.prepared.sample_shape),
        machine=machine_name(),
        cores=cores,
        taken=f"{datetime.fromtimestamp(clock.now(), UTC):%Y-%m-%d}",
        points=tuple(points),
        peak_bytes=_peak_bytes(),
        probe_seconds=probe(clock),
    )


def undisturbed(points: Sequence[Point]) -> bool:
    """Whether batches on one thread had a core for themselves."""
    alone = [point for point in points if point.threads == point.crowd == 1]
    return all(point.cpu_seconds >= UNDISTURBED * point.seconds for point in alone)


def _crowded(config: RunConfig, work: Workload, crowd: int, clock: Clock) -> Point:
    """A batch of the configured size on each core at the same time, with a thread each."""
    steps = [_step(config, work, config.batch_size) for _ in range(crowd)]
    found: list[Timing] = []
    failed: list[BaseException] = []

    def one(step: Step) -> None:
        torch.set_num_threads(1)  # a new thread has torch's own default
        try:
            found.append(timed(step, clock))
        except Exception as error:
            failed.append(error)

    running = [threading.Thread(target=one, args=(step,)) for step in steps]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]
    return _point(config.batch_size, 1, crowd, found)


def _point(batch_size: int, threads: int, crowd: int, found: Sequence[Timing]) -> Point:
    """The median of all that were timed at once."""
    return Point(
        batch_size=batch_size,
        threads=threads,
        crowd=crowd,
        seconds=statistics.median(each.seconds for each in found),
        spread=statistics.median(each.spread for each in found),
        cpu_seconds=statistics.median(each.cpu_seconds for each in found),
        cpu_spread=statistics.median(each.cpu_spread for each in found),
    )


def _step(config: RunConfig, work: Workload, batch_size: int) -> Step:
    """One batch of the peers' real samples, as a gradient worker computes it."""
    last = config.compute.channels_last
    model = copy.deepcopy(work.model)
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flat, buffers = flatten(model, work.layout), read_buffers(model, work.layout)
    x, y = _samples(work, batch_size)
    x = arranged(x, last)

    def step() -> None:
        mean = GradientMean(model, work.layout, config.loss, flat, buffers, len(y), precision=config.compute.precision)
        mean.add(x, y, seed=config.seed)
        mean.result()

    return step


def _samples(work: Workload, count: int) -> tuple[Tensor, Tensor]:
    """x (count, …), y (count, …) of the first peer's batches, again from the start where it has fewer."""
    prepared = work.prepared
    parts: list[tuple[Tensor, Tensor]] = []
    index, held = 0, 0
    while held < count:
        parts.append(prepared.batch(0, index % prepared.batches[0]))
        held += len(parts[-1][1])
        index += 1
    inputs: Sequence[Tensor] = [x for x, _ in parts]
    return torch.cat(list(inputs))[:count], torch.cat([y for _, y in parts])[:count]


def _peak_bytes() -> int:
    """Largest resident set of this process so far; macOS tells bytes, Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1_024)
