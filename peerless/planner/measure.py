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
from datetime import UTC, datetime

import torch
from torch import Tensor

from contract.clock import Clock
from contract.computing import MB_PER_VCPU
from contract.config import RunConfig
from contract.gradients import GradientMean, arranged
from contract.tensors import flatten, read_buffers
from peerless.launch.workload import Workload
from peerless.planner.calibration import VERSION, Calibration, Point, identity, machine_name

#: A size is timed for so long at most, and so often at least, beside once that does not count.
SECONDS, LEAST, MOST = 2.0, 3, 15
#: Bytes over which the probe makes a digest, and rounds of plain Python that it counts.
_PROBE_BYTES, _PROBE_ROUNDS, _PROBES = 4 << 20, 60_000, 7
#: Workers of more vCPUs than Lambda sells are not asked for.
MOST_THREADS = 10_240 // MB_PER_VCPU

Step = Callable[[], None]


def timed(step: Step, clock: Clock) -> tuple[float, float]:
    """Median seconds of `step` and their relative spread, after once that warms up."""
    step()
    found: list[float] = []
    begun = clock.monotonic()
    while len(found) < LEAST or (len(found) < MOST and clock.monotonic() - begun < SECONDS):
        start = clock.monotonic()
        step()
        found.append(clock.monotonic() - start)
    median = statistics.median(found)
    # The median absolute deviation, as a standard deviation of normal times: a single hiccup does not count.
    deviation = 1.4826 * statistics.median(abs(each - median) for each in found)
    return median, deviation / median


def probe(clock: Clock) -> float:
    """Seconds of a fixed piece of work (digests, plain Python): the pace of servers and peers on this machine."""
    content = bytes(_PROBE_BYTES)

    def work() -> None:
        hashlib.md5(content, usedforsecurity=False).digest()
        sum(number % 7 for number in range(_PROBE_ROUNDS))

    work()
    found = []
    for _ in range(_PROBES):
        start = clock.monotonic()
        work()
        found.append(clock.monotonic() - start)
    return statistics.median(found)


def sizes(batch_size: int) -> tuple[int, ...]:
    """Batch sizes to time for a configuration: its own, a quarter of it, and twice as much."""
    return tuple(sorted({max(2, batch_size // 4), batch_size, 2 * batch_size}))


def thread_counts(cores: int) -> tuple[int, ...]:
    """Thread counts to time: as the memory settings of Lambda give vCPUs, and the machine has cores."""
    return tuple(count for count in (1, 2, 4, MOST_THREADS) if count <= cores)


def calibrate(config: RunConfig, work: Workload, clock: Clock, cores: int, log: Callable[[str], None]) -> Calibration:
    """Measure the configured model. Raises ModelError, NonFiniteGradient, MemoryError as a run's worker would."""
    points = []
    before = torch.get_num_threads()
    try:
        for batch_size in sizes(config.batch_size):
            for threads in thread_counts(cores):
                torch.set_num_threads(threads)
                seconds, spread = timed(_step(config, work, batch_size), clock)
                points.append(Point(batch_size=batch_size, threads=threads, crowd=1, seconds=seconds, spread=spread))
                log(f"{batch_size} samples, {threads} threads: {1_000 * seconds:.1f} ms")
        if cores > 1:
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


def _crowded(config: RunConfig, work: Workload, crowd: int, clock: Clock) -> Point:
    """A batch of the configured size on each core at the same time, with a thread each."""
    steps = [_step(config, work, config.batch_size) for _ in range(crowd)]
    found: list[tuple[float, float]] = []
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
    seconds, spread = (statistics.median(column) for column in zip(*found, strict=True))
    return Point(batch_size=config.batch_size, threads=1, crowd=crowd, seconds=seconds, spread=spread)


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
