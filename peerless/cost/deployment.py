"""What a deployment costs by the hour, and the prices that a run's own meter counts with.

What a run uses by the piece (gradient workers, state transitions, requests) comes on top, and a part whose price is not
in the book is named, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from contract.errors import ConfigError
from contract.prices import Prices
from infra import outputs
from infra.settings import Settings
from peerless.cost.book import Book, Reader, book

#: AWS bills by the month of 730 hours.
HOURS_A_MONTH = 730.0
#: Disk of a peer's instance, GB (infra/stacks/peers.py).
PEER_DISK_GB = 30
#: Disk of a broker node, GB; Amazon MQ bills what is used of it, so that this is the most.
BROKER_DISK_GB = 20
#: Nodes of a broker that is a cluster.
CLUSTER_NODES = 3


@dataclass(frozen=True, kw_only=True)
class Part:
    """What costs by the hour."""

    kind: str
    """What it is, the same for every deployment."""
    what: str = ""
    """Of which there are how many."""
    stack: str
    """The kind of stack that brings it (infra/outputs.py)."""
    usd: float | None
    """US dollars per hour; None: not in the book."""
    running: bool = False
    """Whether it costs only while peers run."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind}, {self.what}" if self.what else self.kind


def hourly(
    settings: Settings, *, training: bool = True, stacks: Collection[str] | None = None, prices: Book | None = None
) -> dict[str, float]:
    """US dollars per hour by part: while it trains, or else while it stands deployed without a run.

    `stacks` names the kinds of stacks that there are (infra/outputs.py); None means all. `prices` are those of another
    region, or the user's own. Parts without a known price are not in it; `unpriced` names them. The local AWS costs
    nothing.
    """
    return {
        part.name: part.usd
        for part in _billed(settings, prices)
        if part.usd is not None and (training or not part.running) and (stacks is None or part.stack in stacks)
    }


def unpriced(settings: Settings, prices: Book | None = None) -> list[str]:
    """The parts of a deployment that cost by the hour and whose price the book does not have."""
    return [part.name for part in _billed(settings, prices) if part.usd is None]


def run_prices(settings: Settings, prices: Book | None = None) -> Prices:
    """What a run's peers count with. Raises ConfigError where a part's price is unknown: a sum without it would lie."""
    if unknown := unpriced(settings, prices):
        raise ConfigError(f"the price by the hour of {' and of '.join(unknown)} is not in Peerless's price book")
    return meter_prices(Reader(prices or book()), settings, math.fsum(hourly(settings, prices=prices).values()))


def meter_prices(read: Reader, settings: Settings, usd_per_hour: float, *, as_if_on_aws: bool = False) -> Prices:
    """The same with what is known by the hour."""
    return Prices(
        run_usd_per_hour=usd_per_hour,
        lambda_usd_per_gb_second=read.usd("lambda_gb_second", settings.architecture),
        lambda_usd_per_request=read.usd("lambda", "request"),
        transition_usd=read.usd("step_functions", "transition"),
        put_usd=read.usd("s3", "put"),
        get_usd=read.usd("s3", "get"),
        as_if_on_aws=as_if_on_aws,
    )


def parts(settings: Settings, read: Reader) -> list[Part]:
    """All that a deployment of these settings on AWS costs by the hour."""
    peers = settings.peers
    made = []
    if settings.broker:
        nodes = broker_nodes(settings)
        node = read.find("broker_node_hour", settings.broker_instance_type)
        made.append(
            Part(
                kind="broker",
                what=f"{nodes} x {settings.broker_instance_type}",
                stack=outputs.BROKER,
                usd=None if node is None else nodes * node,
            )
        )
        storage = nodes * BROKER_DISK_GB * read.usd("broker", "storage_gb_month") / HOURS_A_MONTH
        made.append(Part(kind="broker storage", stack=outputs.BROKER, usd=storage))
        secrets = (peers + 1) * read.usd("small", "secret_month") / HOURS_A_MONTH
        made.append(Part(kind="secrets", stack=outputs.BROKER, usd=secrets))
    if settings.network == "private":
        nat = read.usd("network", "nat_gateway_hour") + read.usd("network", "public_address_hour")
        made.append(Part(kind="NAT gateway", stack=outputs.NETWORK, usd=nat))
    if settings.workers and settings.snap_start:
        functions = (1 if settings.shared_worker else peers) * (2 if settings.reduce else 1)  # a reducer beside each
        gb = functions * settings.memory_mb / 1_024
        kept = gb * read.usd("lambda", "snapshot_gb_second") * 3_600
        made.append(Part(kind="SnapStart snapshots", stack=outputs.WORKERS, usd=kept))
    alarms = read.usd("small", "dashboard_month") + alarm_metrics(settings) * read.usd("small", "alarm_month")
    alarms += read.usd("small", "key_month") if settings.alarm_email else 0.0
    made.append(Part(kind="dashboard and alarms", stack=outputs.WATCH, usd=alarms / HOURS_A_MONTH))
    instance = read.find("instance_hour", settings.instance_type)
    made.append(
        Part(
            kind="peers",
            what=f"{peers} x {settings.instance_type}",
            stack=outputs.PEERS,
            usd=None if instance is None else peers * instance,
            running=True,
        )
    )
    disks = peers * PEER_DISK_GB * read.usd("small", "disk_gb_month") / HOURS_A_MONTH
    made.append(Part(kind="peers' disks", stack=outputs.PEERS, usd=disks, running=True))
    if settings.network == "public":
        addresses = peers * read.usd("network", "public_address_hour")
        made.append(Part(kind="public addresses", stack=outputs.PEERS, usd=addresses, running=True))
    return made


def broker_nodes(settings: Settings) -> int:
    """Nodes of the deployment's broker; 0 without one."""
    return (CLUSTER_NODES if settings.broker_cluster else 1) if settings.broker else 0


def alarm_metrics(settings: Settings) -> int:
    """Metrics that the alarms of infra/stacks/watch.py read: CloudWatch bills those, not alarms.

    A stuck round: commits and up to nine groups. The time limit: one. The broker: used and limit of memory and disk.
    Workers: errors and throttles of each function, failures of each peer's two state machines.
    """
    functions = 1 if settings.shared_worker else settings.peers
    workers = 2 * functions + 2 * settings.peers if settings.workers else 0
    return 1 + min(9, settings.peers) + 1 + 4 * settings.broker + workers


def _billed(settings: Settings, prices: Book | None) -> list[Part]:
    return [] if settings.local else parts(settings, Reader(prices or book()))
