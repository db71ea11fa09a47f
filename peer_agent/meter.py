"""A peer's own bill: at most so much is its share of what the run has cost so far, from the prices in the run's spec.

What is counted is an upper bound, so that a limit is met and not passed by much: a gradient worker is billed as if it
had lasted as long as the stage that waited for it, and the round under way counts as it runs. Data transfer, storage
by the month, logs, and retries that Step Functions does not tell of (peer_agent/compute/attempts.py) are not in it.
"""

from __future__ import annotations

from contract.algorithms import algorithm
from contract.config import ComputeConfig
from contract.prices import Prices
from contract.runspec import RunSpec
from contract.store import StoreCounts
from contract.tree import MOST_LEVELS

#: Invocations at once that a map of each kind can have where the configuration sets no limit
#: (https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html).
INLINE_AT_ONCE, DISTRIBUTED_AT_ONCE = 40, 10_000
#: State transitions at most: of an execution besides its tasks, and of a task (start, the task itself, end, where it
#: is a child execution of its own).
EXECUTION_TRANSITIONS, TASK_TRANSITIONS = 4, 3
#: More of an execution that adds gradients up: the choice, a map per level, and the state that brings their ends home.
REDUCE_TRANSITIONS = 2 + MOST_LEVELS
#: A worker reads weights (and its batches) and writes its gradient; its store may ask again, which is seldom.
WORKER_GETS, WORKER_PUTS = 1, 1
#: A reducer writes one mean; this many reads are more than its group has, but for rounds of over ten thousand batches.
REDUCER_GETS = 22


def at_once(compute: ComputeConfig, invocations: int) -> int:
    """How many of `invocations` can have run at the same time."""
    if compute.state_machine == "parallel":
        return invocations
    most = INLINE_AT_ONCE if compute.state_machine == "inline_map" else DISTRIBUTED_AT_ONCE
    return min(invocations, min(compute.concurrency or most, most))


def worker_requests(spec: RunSpec, per_worker: int = 1) -> tuple[int, int]:
    """GETs and PUTs of one invocation of at most `per_worker` batches. One that takes steps reads the manifest, all
    batches of its round, and moments, which it writes as well."""
    if not algorithm(spec.config).local:
        return WORKER_GETS + per_worker, WORKER_PUTS
    batches = min(max(spec.batches), spec.config.batches_per_round or max(spec.batches))
    return WORKER_GETS + 2 + batches, WORKER_PUTS + 1


def stage_usd(
    prices: Prices,
    compute: ComputeConfig,
    *,
    invocations: int,
    executions: int,
    seconds: float,
    requests: tuple[int, int] = (WORKER_GETS + 1, WORKER_PUTS),
    reducers: int = 0,
) -> float:
    """At most so many US dollars did a compute stage cost that lasted `seconds`.

    `requests` are those of one worker (`worker_requests`); `reducers` of the invocations added gradients up.
    """
    gets, puts = requests
    gb_seconds = at_once(compute, invocations) * seconds * compute.memory_mb / 1_024
    per_execution = EXECUTION_TRANSITIONS + (REDUCE_TRANSITIONS if reducers else 0)
    transitions = executions * per_execution + invocations * TASK_TRANSITIONS
    workers = invocations - reducers
    return (
        gb_seconds * prices.lambda_usd_per_gb_second
        + invocations * prices.lambda_usd_per_request
        + (workers * gets + reducers * REDUCER_GETS) * prices.get_usd
        + (workers * puts + reducers * WORKER_PUTS) * prices.put_usd
        + transitions * prices.transition_usd
    )


class Meter:
    """Adds up one peer's share in US dollars. Without prices in `spec` it does nothing.

    Times in seconds: `now` since the epoch, `moment` monotonic. Hours count from the run's launch, because the broker
    and the instances do.
    """

    def __init__(self, spec: RunSpec, now: float) -> None:
        self._spec = spec
        self._prices, self._compute, self._peers = spec.prices, spec.config.compute, spec.config.peers
        self._since = spec.created or now
        self._stages = 0.0
        self._running: tuple[int, int, float] | None = None  # batches, reducers, and begin of the stage under way
        limit = spec.config.aws.max_usd
        limited = limit and spec.prices is not None and not spec.prices.as_if_on_aws
        self.limit_usd = limit / self._peers if limited else None
        """This peer's share of `aws.max_usd`; None where nothing limits it, or nothing is really billed."""

    def begin(self, batches: int, moment: float, reducers: int = 0) -> None:
        """A compute stage of so many batches begins, whose gradients so many reducers are to add up."""
        self._running = (batches, reducers, moment) if self._compute.service == "lambda" else (0, 0, moment)

    def end(self, invocations: int, executions: int, moment: float, per_worker: int = 1, reducers: int = 0) -> None:
        """It has ended, and took so many invocations, retries included: some of them `reducers`, the others of at most
        `per_worker` batches each."""
        if self._prices is not None and self._running is not None:
            seconds = moment - self._running[2]
            self._stages += stage_usd(
                self._prices,
                self._compute,
                invocations=invocations,
                executions=executions,
                seconds=seconds,
                requests=worker_requests(self._spec, per_worker),
                reducers=reducers,
            )
        self._running = None

    def usd(self, now: float, moment: float, counts: StoreCounts) -> float | None:
        """The share so far; None without prices. `counts` are this peer's own requests to S3."""
        prices = self._prices
        if prices is None:
            return None
        batches, reducers, begun = self._running or (0, 0, moment)
        running = stage_usd(
            prices,
            self._compute,
            invocations=batches + reducers,
            executions=1 if batches else 0,
            seconds=moment - begun,
            requests=worker_requests(self._spec),
            reducers=reducers,
        )
        hours = max(0.0, now - self._since) / 3_600
        requests = counts.gets * prices.get_usd + (counts.puts + counts.lists) * prices.put_usd
        return prices.run_usd_per_hour / self._peers * hours + self._stages + running + requests

    def reached(self, now: float, moment: float, counts: StoreCounts) -> bool:
        """Whether the limit is reached."""
        if self.limit_usd is None:
            return False
        usd = self.usd(now, moment, counts)
        return usd is not None and usd >= self.limit_usd
