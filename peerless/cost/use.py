"""What a run used of what AWS bills by the piece, by the GB and by the hour: from what peers and workers counted.

Locally the Lambda service counts invocations and their milliseconds as Lambda bills them. On AWS the workers' own word
is all there is, and it leaves out what an invocation does beside its passes; what is so estimated is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.config import RunConfig
from contract.records import PeerReport
from contract.store import StoreCounts
from peerless.cost.deployment import HOURS_A_MONTH
from statemachines import Mode
from statemachines.transitions import transitions

#: Lambda and S3 bill by the GB of 2^30 bytes, Lambda's memory by 1,024 MB.
GB = 2**30
#: Seconds of a cold start of a plain PyTorch image at 1,769 MB, and from a snapshot, as collected in November 2026 and
#: not measured by us; initialisation of more than 10 s is run again, and billed.
INIT_SECONDS, SNAPSHOT_SECONDS = 20.0, 1.2
#: Memory that Express executions are billed with, which goes in steps of 64 MB: small definitions and payloads.
EXPRESS_GB = 64 / 1_024


@dataclass(frozen=True, kw_only=True)
class Use:
    """Of a whole run; what was not used is 0."""

    lambda_invocations: int = 0
    """Retries and reducers included."""
    lambda_gb_seconds: float = 0.0
    """Initialisation included."""
    lambda_init_gb_seconds: float = 0.0
    """Of these, initialisation."""
    snapshots_restored_gb: float = 0.0
    """With SnapStart: memory of the functions times cold starts."""
    executions: int = 0
    """Of the peers' state machines."""
    state_transitions: int = 0
    """Of Standard executions."""
    express_requests: int = 0
    express_gb_hours: float = 0.0
    s3_put_requests: int = 0
    """Requests that write or list, of peers, workers and the launcher."""
    s3_get_requests: int = 0
    s3_gb_months: float = 0.0
    """What was uploaded at the start, for the whole run, and half of what peers wrote, as they write it bit by bit."""
    run_hours: float = 0.0
    """From the launch to the last thing that a peer told, over all parts of the run."""
    estimated: tuple[str, ...] = ()
    """Names of the fields that are worked out from what workers told, not counted."""

    def counts(self) -> dict[str, float]:
        """All figures by name."""
        return {name: value for name, value in vars(self).items() if name != "estimated"}


def measure(
    config: RunConfig,
    reports: Sequence[PeerReport],
    *,
    counters: Mapping[str, Any],
    counted_run: str,
    launcher: StoreCounts,
    hours: float,
    reducer: bool,
) -> Use:
    """What the run with the (resolved) configuration `config` used.

    `reports` are those of all its peers and parts. `counters` are the local Lambda service's, empty on AWS; they are of
    the part `counted_run` alone. `launcher` are the requests of whoever launched it; `hours` is how long it went on;
    `reducer` says whether its state machines have states that add gradients up.
    """
    used = [report.used for report in reports]
    told = sum(report.lambda_invocations for report in reports)
    memory_gb = config.compute.memory_mb / 1_024
    cold = sum(each.cold_starts for each in used)
    # A reducer starts as cold as its worker, and does not tell.
    per_start = SNAPSHOT_SECONDS if config.aws.snap_start else INIT_SECONDS
    estimated: list[str] = []
    if counters.get("invocations"):
        init, billed = counters["init_ms"] / 1_000, counters["billed_ms"] / 1_000
        invocations = counters["invocations"]
        elsewhere = sum(report.lambda_invocations for report in reports if report.run != counted_run)
        if elsewhere:
            billed += billed / invocations * elsewhere
            estimated.append("lambda_gb_seconds")
        invocations += elsewhere
    else:
        init, billed, invocations = cold * per_start, math.fsum(each.worker_seconds for each in used), told
        if told:
            estimated += ["lambda_gb_seconds", "lambda_init_gb_seconds"]
    executions = sum(report.state_machine_executions for report in reports)
    express = config.aws.express and config.compute.state_machine == "inline_map"
    stored = launcher.bytes_out + sum(each.store_bytes for each in used) / 2
    return Use(
        lambda_invocations=invocations,
        lambda_gb_seconds=(billed + init) * memory_gb,
        lambda_init_gb_seconds=init * memory_gb,
        snapshots_restored_gb=cold * memory_gb if config.aws.snap_start else 0.0,
        executions=executions,
        state_transitions=0 if express or not executions else _transitions(config, reports, executions, told, reducer),
        express_requests=executions if express else 0,
        express_gb_hours=sum(each.execution_seconds for each in used) / 3_600 * EXPRESS_GB if express else 0.0,
        s3_put_requests=launcher.puts + launcher.lists + sum(each.store_puts + each.worker_puts for each in used),
        s3_get_requests=launcher.gets + sum(each.store_gets + each.worker_gets for each in used),
        s3_gb_months=stored / GB * hours / HOURS_A_MONTH,
        run_hours=hours,
        estimated=tuple(estimated),
    )


def _transitions(
    config: RunConfig, reports: Sequence[PeerReport], executions: int, invocations: int, reducer: bool
) -> int:
    used = [report.used for report in reports]
    return transitions(
        Mode(config.compute.state_machine),
        executions=executions,
        invocations=invocations,
        children=sum(each.children for each in used),
        caught=sum(each.caught for each in used),
        reducer=reducer,
        reductions=sum(each.reductions for each in used),
    )


def hours_of(begun: Mapping[str, float], last: Mapping[str, float]) -> float:
    """How long a run went on: from when each of its parts was launched to the last event of it, by the part's name, in
    seconds since the epoch."""
    return math.fsum(max(0.0, last.get(run, moment) - moment) for run, moment in begun.items()) / 3_600
