"""The first paper's own workload, as a small model of its time and cost, and a search for a cheaper way to run it.

VGG-11 (128.8 million parameters with ten classes) on MNIST: four peers, 15,000 images each, one update per epoch.
Everything here is derived from two tables of the paper and the price book; nothing is measured.

**Work.** Table III is a t2.large of two vCPUs that computes all batches by itself: two vCPU-seconds per second. So a
batch of a given size takes `2 x seconds / batches` vCPU-seconds.

**A worker's time** is `start_seconds + batches x work / speed`, where `start_seconds` is for its start, the weights'
way in and the gradient's way out. A worker computes with `threads` threads, and has memory / 1,769 vCPUs
(AWS Lambda's documentation); the smaller of the two counts. A vCPU of Lambda is taken to be as fast as one of a t2.

**What Table II says about the threads.** There each worker has one batch. With one thread, one `start_seconds` for all
four columns explains their times within 8.1%. With as many threads as the memory has vCPUs no constant comes nearer
than 38%. So the paper's workers, whose PyTorch was cut down to 50 MB, are taken to have computed with one thread, and
to have been billed for up to 2.5 vCPUs.

The limits of all this: four columns, one free figure; threads are taken to divide a batch's time evenly, as they must
already have done on the t2.large; `start_seconds` does not depend on memory, as Table II has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from contract.errors import ConfigError
from peerless.cost.paper import Used, full_cost_usd
from peerless.reproduce.tables import PEERS, SAMPLES_PER_PEER, TABLE_2, TABLE_3, Instance, Serverless

#: Lambda gives a function one vCPU per so many MB, and at most so many MB.
MB_A_VCPU = 1_769
LARGEST_MB = 10_240
#: vCPUs of the t2.large of Table III.
T2_LARGE_VCPUS = 2
#: Threads of the paper's workers, as Table II's times have it.
PAPER_THREADS = 1
#: A worker of several batches keeps their sum beside the gradient of one: 128,807,306 float32.
SUM_MB = 516
#: State transitions that are billed of a Standard execution beside its workers: the state that holds their tasks
#: (https://aws.amazon.com/step-functions/pricing/).
TRANSITIONS_AN_EXECUTION = 1
#: Of a worker: its task, in a `Parallel` state or an inline map, which has at most so many at once; above that, in a
#: distributed map, an execution of its own as well.
TRANSITIONS_A_WORKER, INLINE_AT_ONCE, TRANSITIONS_A_CHILD = 1, 40, 2
#: Steps of the memory sizes that are searched, MB.
MEMORY_STEP = 128
#: The peer's instance while its workers compute: the paper's, and today's cheapest of that size.
SMALL_INSTANCES = ("t2.small", "t4g.small")

_SERVERLESS = {column.batch_size: column for column in TABLE_2}
_INSTANCE = {column.batch_size: column for column in TABLE_3}


def vcpu_seconds(batch_size: int) -> float:
    """Work of one batch, in seconds of one vCPU of a t2.large (Table III). Raises ConfigError for another size."""
    instance, serverless = _column(batch_size)
    return T2_LARGE_VCPUS * instance.seconds / serverless.batches


@functools.cache
def start_seconds(threads: int = PAPER_THREADS) -> float:
    """Start and transfers of a worker: what makes the relative errors against Table II's times least in square.

    `threads` is how many its workers are taken to have had. The solution of sum(((w + c) / t - 1)^2 -> min over c.
    """
    weights = [(1 / column.seconds**2, column.seconds - computing(column, threads)) for column in TABLE_2]
    return sum(weight * rest for weight, rest in weights) / sum(weight for weight, _ in weights)


def computing(column: Serverless, threads: int = PAPER_THREADS) -> float:
    """Seconds for forward and backward of the one batch that a worker of Table II has."""
    return vcpu_seconds(column.batch_size) / min(threads, column.memory_mb / MB_A_VCPU)


def predicted_seconds(column: Serverless, threads: int = PAPER_THREADS) -> float:
    """What the model gives for Table II's time to compute gradients."""
    return start_seconds(threads) + computing(column, threads)


def time_reduction(batch_size: int, peers: int) -> float:
    """Share of the time for gradients that one worker per batch takes off, where MNIST is divided among so many peers.

    For other numbers of peers than four only the instance's batches become fewer; a worker has one as before. Raises
    ConfigError for a batch size without times.
    """
    batches = math.ceil(SAMPLES_PER_PEER * PEERS / peers / batch_size)
    without = batches * vcpu_seconds(batch_size) / T2_LARGE_VCPUS
    return 1 - predicted_seconds(_column(batch_size)[1]) / without


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a peer could have its gradients computed."""

    batch_size: int
    """One of the paper's. Batches of a round are averaged from the same weights, so it changes no gradient but for
    the draws of dropout; it changes what a batch costs."""
    batches_per_worker: int
    memory_mb: int
    threads: int
    architecture: str = "arm64"
    instance_type: str = "t4g.small"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A choice with the time and cost that the model gives for one peer and epoch."""

    choice: Choice
    workers: int
    seconds: float
    """Until the last worker has ended."""
    parts: dict[str, float]
    """US dollars by part, as `full_cost_usd` has them, without the broker: the instance-based run needs it too."""
    reduction: float
    """Of the time, against the instance-based run with batches of 64: 0.9 is a tenth of it."""
    factor: float
    """Cost over that of the instance-based run with batches of 64, by formula (2)."""

    @property
    def usd(self) -> float:
        """The sum of the parts."""
        return math.fsum(self.parts.values())


def plan(choice: Choice, *, speed: float = 1.0, start: float | None = None) -> Plan:
    """Time and cost of a choice.

    `speed` is that of a Lambda vCPU in vCPUs of a t2; `start` the seconds of start and transfers, those of the fit
    without. Raises ConfigError where the memory is too small for the batch, or the batch size is not the paper's.
    """
    if choice.memory_mb < (needed := smallest_mb(choice.batch_size, choice.batches_per_worker)):
        raise ConfigError(f"a worker for batches of {choice.batch_size} needs {needed} MB, not {choice.memory_mb}")
    begin = start_seconds() if start is None else start
    batches = _column(choice.batch_size)[1].batches
    pace = vcpu_seconds(choice.batch_size) / speed / min(choice.threads, choice.memory_mb / MB_A_VCPU)
    workers = math.ceil(batches / choice.batches_per_worker)
    each = TRANSITIONS_A_WORKER if workers <= INLINE_AT_ONCE else TRANSITIONS_A_CHILD
    seconds = begin + min(choice.batches_per_worker, batches) * pace
    parts = full_cost_usd(
        Used(
            seconds=seconds,
            instance_type=choice.instance_type,
            memory_mb=choice.memory_mb,
            architecture=choice.architecture,
            invocations=workers,
            worker_seconds=workers * begin + batches * pace,
            transitions=workers * each + TRANSITIONS_AN_EXECUTION,
            puts=workers + 1,
            gets=batches + 2 * workers,
        )
    )
    del parts["broker"]
    against = baseline()
    return Plan(
        choice=choice,
        workers=workers,
        seconds=seconds,
        parts=parts,
        reduction=1 - seconds / against.seconds,
        factor=math.fsum(parts.values()) / against.formula_usd(),
    )


def baseline() -> Instance:
    """The instance-based run that plans are held against: batches of 64 on a t2.large, 394.8 s."""
    return _INSTANCE[64]


def smallest_mb(batch_size: int, batches_per_worker: int) -> int:
    """Memory that a worker needs, MB: the paper's minimum for a batch, and the sum of several where it has them."""
    return _column(batch_size)[1].memory_mb + (SUM_MB if batches_per_worker > 1 else 0)


def search(
    *,
    batch_sizes: Iterable[int] = tuple(_SERVERLESS),
    reduction: float = 0.9,
    most_threads: int = LARGEST_MB // MB_A_VCPU + 1,
    speed: float = 1.0,
    start: float | None = None,
) -> list[Plan]:
    """The plans that none of the others beats in both time and cost, the cheapest first.

    Memory goes from the smallest in steps of 128 MB and over whole vCPUs to Lambda's largest, with as many threads as
    the memory has vCPUs (and `most_threads` at most); batches per worker from one on; both architectures; the instances
    of SMALL_INSTANCES. Only plans that keep a time reduction of `reduction`. `speed` and `start` are those of `plan`.
    Empty where there is none.
    """
    assess = functools.partial(plan, speed=speed, start=start)
    found = sorted(
        (made for size in batch_sizes for made in _fast_enough(size, reduction, most_threads, assess)),
        key=lambda made: (made.usd, made.seconds),
    )
    frontier: list[Plan] = []
    for made in found:
        if not frontier or made.seconds < frontier[-1].seconds:
            frontier.append(made)
    return frontier


def _fast_enough(
    batch_size: int, reduction: float, most_threads: int, assess: Callable[[Choice], Plan]
) -> Iterator[Plan]:
    batches = _column(batch_size)[1].batches
    for batches_per_worker in range(1, batches + 1):
        some = False
        for memory_mb in _memory_sizes(smallest_mb(batch_size, batches_per_worker)):
            threads = min(most_threads, math.ceil(memory_mb / MB_A_VCPU))
            first = assess(
                Choice(
                    batch_size=batch_size, batches_per_worker=batches_per_worker, memory_mb=memory_mb, threads=threads
                )
            )
            if first.reduction < reduction:
                continue
            some = True
            for architecture in ("arm64", "x86_64"):
                for instance_type in SMALL_INSTANCES:
                    yield assess(
                        dataclasses.replace(first.choice, architecture=architecture, instance_type=instance_type)
                    )
        if not some:
            return  # more batches in a worker only take longer


def _memory_sizes(smallest: int) -> list[int]:
    whole = range(MB_A_VCPU, LARGEST_MB + 1, MB_A_VCPU)
    return sorted({*range(smallest, LARGEST_MB + 1, MEMORY_STEP), *(size for size in whole if size >= smallest)})


def _column(batch_size: int) -> tuple[Instance, Serverless]:
    try:
        return _INSTANCE[batch_size], _SERVERLESS[batch_size]
    except KeyError:
        known = ", ".join(map(str, _SERVERLESS))
        raise ConfigError(f"the paper has no times for batches of {batch_size}, only for {known}") from None
