"""What a peer has used so far and what that costs at most, as its clock and its requests to S3 tell."""

from __future__ import annotations

from contract.runspec import RunSpec
from peer_agent.meter import Meter
from peer_agent.ports import Ports


class Bill:
    """One peer's."""

    def __init__(self, spec: RunSpec, ports: Ports) -> None:
        self._ports = ports
        self.invocations = 0
        self.executions = 0
        self.meter = Meter(spec, ports.clock.now())

    def begin(self, invocations: int, reducers: int = 0) -> None:
        """A round's gradient begins, of so many invocations at most, retries aside, and so many reducers."""
        self.meter.begin(invocations, self._ports.clock.monotonic(), reducers)

    def charge(self, invocations: int, executions: int, per_worker: int = 1, reducers: int = 0) -> None:
        """Count what a round's gradient took, whatever has come of it; `reducers` of the invocations added gradients
        up, the others had `per_worker` batches at most."""
        self.meter.end(invocations, executions, self._ports.clock.monotonic(), per_worker, reducers)
        self.invocations += invocations
        self.executions += executions

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
            fields = {"usd": usd, "limit_usd": self.meter.limit_usd}
            self._ports.events.emit("bill", round=round, fields=fields)
