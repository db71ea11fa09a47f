"""What a deployment's processes write to CloudWatch: peers, gradient workers, broker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from contract.clock import Clock
from contract.errors import ConfigError
from infra import outputs
from infra.settings import PEERS_PER_STACK
from peerless.launch import stacks
from peerless.launch.account import Clients, code, told
from peerless.launch.stacks import Stack
from peerless.launch.stop import found_or_missing

_POLL_SECONDS = 3.0
#: Lines arrive late and out of order; so far back each look reaches, and what was seen is passed over.
_OVERLAP_SECONDS = 30.0


@dataclass(frozen=True)
class Source:
    """A log group and the beginning of its streams' names ("" for all)."""

    group: str
    streams: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: seconds since the epoch, log stream, text."""

    t: float
    stream: str
    text: str

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.t, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}Z {self.stream} {self.text}"


def sources(clients: Clients, name: str, *, peer: int | None, workers: bool, broker: bool) -> list[Source]:
    """Where the asked-for lines are; without any wish those of all peers.

    Raises DeploymentMissing without a deployment, ConfigError for a part that it does not have.
    """
    found = found_or_missing(clients, name)
    if workers:
        return _groups_of(clients, found, outputs.WORKERS, "gradient workers")
    if broker:
        return _broker_groups(clients, found)
    groups = stacks.joined(found, outputs.PEERS, outputs.PEER_LOG_GROUP)
    if not groups:
        raise ConfigError(f"the deployment {name} has no peers now; after `peerless stop` their logs are gone too")
    if peer is None:
        return [Source(group) for group in groups]
    ranks = stacks.joined(found, outputs.PEERS, outputs.AUTO_SCALING_GROUPS)
    if not 0 <= peer < len(ranks):
        raise ConfigError(f"there is no peer {peer}; the deployment {name} has ranks 0 to {len(ranks) - 1}")
    return [Source(groups[peer // PEERS_PER_STACK], f"{peer:04d}/")]


def lines(clients: Clients, wanted: list[Source], since: float, *, follow: bool, clock: Clock) -> Iterator[Line]:
    """Lines from `since` (seconds since the epoch) on, in the order of time; with `follow` without an end."""
    seen: set[str] = set()
    start = since
    while True:
        began = clock.now()
        found = [row for source in wanted for row in _rows(clients, source, start)]
        for row in sorted(found, key=lambda row: row["timestamp"]):
            if row["eventId"] not in seen:
                seen.add(row["eventId"])
                text = row["message"].rstrip()
                yield Line(t=row["timestamp"] / 1_000, stream=row["logStreamName"], text=text)
        if not follow:
            return
        start = max(start, began - _OVERLAP_SECONDS)
        clock.sleep(_POLL_SECONDS)


def _rows(clients: Clients, source: Source, start: float) -> Iterator[dict[str, Any]]:
    options = {"logStreamNamePrefix": source.streams} if source.streams else {}
    with told(f"read log group {source.group}"):
        try:
            pages = clients("logs").get_paginator("filter_log_events")
            for page in pages.paginate(logGroupName=source.group, startTime=round(start * 1_000), **options):
                # Asked for already; the local AWS does not heed it.
                yield from (row for row in page["events"] if row["logStreamName"].startswith(source.streams))
        except ClientError as error:
            if code(error) != "ResourceNotFoundException":
                raise


def _groups_of(clients: Clients, found: list[Stack], kind: str, what: str) -> list[Source]:
    chosen = [stack for stack in found if stack.kind == kind]
    parts = stacks.resources(clients, chosen)
    groups = [Source(part.name) for part in parts if part.type == "AWS::Logs::LogGroup"]
    if not groups:
        raise ConfigError(f"the deployment has no {what}")
    return groups


def _broker_groups(clients: Clients, found: list[Stack]) -> list[Source]:
    """Amazon MQ writes into groups of its own, named by the broker."""
    parts = stacks.resources(clients, [stack for stack in found if stack.kind == outputs.BROKER])
    prefixes = [f"/aws/amazonmq/broker/{part.name}/" for part in parts if part.type == "AWS::AmazonMQ::Broker"]
    if not prefixes:
        raise ConfigError("the deployment has no broker")
    return [Source(group) for prefix in prefixes for group in groups_named(clients, prefix)]


def groups_named(clients: Clients, prefix: str) -> list[str]:
    """Names of the log groups that start with `prefix`."""
    with told("list the log groups"):
        pages = clients("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
        return [group["logGroupName"] for page in pages for group in page["logGroups"]]
