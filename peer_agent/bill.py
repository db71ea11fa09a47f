"""What a peer has used so far and what that costs at most, as its clock and its requests to S3 tell."""

from __future__ import annotations

from dataclasses import replace

from contract.algorithms import algorithm
from contract.runspec import RunSpec
from contract.tree import tree
from contract.used import Used
from peer_agent.meter import Meter
from peer_agent.ports import Ports, RoundGradient


class Bill:
    """One peer's."""

    def __init__(self, spec: RunSpec, ports: Ports) -> None:
        self._spec, self._ports = spec, ports
        self._used = Used()
        self._begun = ports.clock.monotonic()
        self.invocations = 0
        self.executions = 0
        self.meter = Meter(spec, ports.clock.now())

    def begin(self, invocations: int, reducers: int = 0) -> None:
        """A round's gradient begins, of so many invocations at most, retries aside, and so many reducers."""
        self._begun = self._ports.clock.monotonic()
        self.meter.begin(invocations, self._begun, reducers)

    def charge(self, invocations: int, executions: int, per_worker: int = 1, reducers: int = 0) -> None:
        """Count what a round's gradient took, whatever has come of it; `reducers` of the invocations added gradients
        up, the others had `per_worker` batches at most."""
        self.meter.end(invocations, executions, self._ports.clock.monotonic(), per_worker, reducers)
        self.invocations += invocations
        self.executions += executions

    def charge_round(self, gradient: RoundGradient, batches: int) -> None:
        """The same of a round that has its gradient, over so many batches, and what it took besides."""
        per_worker = 1 if gradient.work is None else gradient.work.batches_per_worker
        self.charge(gradient.invocations, gradient.executions, per_worker, gradient.reducers)
        if not gradient.executions:
            return
        used, work, now = self._used, gradient.work, self._ports.clock.monotonic()
        workers = gradient.invocations - gradient.reducers
        again = max(0, workers - gradient.items)
        gets, puts = self._worker_requests(workers, batches + again * per_worker)
        fetched = workers if work is None else work.weights_fetched
        steps = batches + again * per_worker
        if algorithm(self._spec.config).local:
            taken = self._spec.config.algorithm
            steps = workers * (taken.local_steps or taken.local_epochs * batches)
        self._used = replace(
            used,
            worker_gets=used.worker_gets + fetched + gets + self._reduced_gets(gradient),
            worker_puts=used.worker_puts + puts + gradient.reducers,
            worker_seconds=used.worker_seconds + (0.0 if work is None else work.step_seconds * steps),
            cold_starts=used.cold_starts + (0 if work is None else work.cold_starts),
            reducers=used.reducers + gradient.reducers,
            reductions=used.reductions + gradient.reductions,
            children=used.children + gradient.children,
            caught=used.caught + len(gradient.failures),
            execution_seconds=used.execution_seconds + now - self._begun,
        )

    def _worker_requests(self, workers: int, batches: int) -> tuple[int, int]:
        """Reads, without weights, and writes of so many invocations that read so many batches in all. One that takes
        steps reads the manifest and all batches, and, where it keeps them, reads and writes moments."""
        if not algorithm(self._spec.config).local:
            return batches, workers
        kept = int(self._spec.config.algorithm.keep_state)
        return workers * (1 + batches + kept), workers * (1 + kept)

    def _reduced_gets(self, gradient: RoundGradient) -> int:
        """Reads of the reducers: what the tree has, and as much again per invocation for those tried again. And of Step
        Functions, for the lists of a distributed map."""
        lists = gradient.executions + gradient.reductions if gradient.children else 0
        levels = tree(gradient.items) if gradient.reducers else ()
        planned = sum(len(level) for level in levels)
        read = sum(sum(level) for level in levels)
        return lists + (round(read * gradient.reducers / planned) if planned else 0)

    @property
    def used(self) -> Used:
        """What this process has used so far."""
        counts = self._ports.store.counts
        requests = {
            "store_gets": counts.gets,
            "store_puts": counts.puts + counts.lists,
            "store_bytes": counts.bytes_out,
        }
        return replace(self._used, **requests)

    @property
    def usd(self) -> float | None:
        """At most so much is this peer's share of the run's bill so far, in US dollars; None without prices."""
        clock = self._ports.clock
        return self.meter.usd(clock.now(), clock.monotonic(), self._ports.store.counts)

    @property
    def spent(self) -> bool:
        """Whether that has reached this peer's share of `aws.max_usd`."""
        clock = self._ports.clock
        return self.meter.reached(clock.now(), clock.monotonic(), self._ports.store.counts)

    def tell(self, round: int) -> None:
        """Show it once a round, where there are prices."""
        usd = self.usd
        if usd is not None:
            prices = self._spec.prices
            as_if = prices is not None and prices.as_if_on_aws
            fields = {"usd": usd, "limit_usd": self.meter.limit_usd, "as_if_on_aws": as_if}
            self._ports.events.emit("bill", round=round, fields=fields)
