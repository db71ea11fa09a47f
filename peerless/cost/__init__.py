"""What a deployment costs by the hour, and the prices that a run's own meter counts with.

Figures are in prices.toml, each with its date and source; they are us-east-1's. What a run uses by the piece (gradient
workers, state transitions, requests) comes on top, and a part whose price is not in the book is named, never guessed.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ConfigError
from contract.prices import Prices
from infra import outputs
from infra.settings import Settings

#: AWS bills by the month of 730 hours.
HOURS_A_MONTH = 730.0
#: Disk of a peer's instance, GB (infra/stacks/peers.py).
PEER_DISK_GB = 30
#: Disk of a broker node, GB; Amazon MQ bills what is used of it, so that this is the most.
BROKER_DISK_GB = 20
_BOOK = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Price:
    """US dollars for one unit, when that was true ("" where the source has no date), how sure (H, M, L), and whence."""

    usd: float
    date: str
    sure: str
    source: str


@functools.cache
def book() -> Mapping[str, Mapping[str, Price]]:
    """All prices by section and name. Raises ConfigError for a price that lacks a field."""
    with open(_BOOK, "rb") as file:
        sections = tomllib.load(file)
    try:
        return {title: {name: Price(**row) for name, row in rows.items()} for title, rows in sections.items()}
    except TypeError as error:
        raise ConfigError(f"{_BOOK.name}: a price needs usd, date, sure and source ({error})") from error


@dataclass(frozen=True)
class _Part:
    """What costs by the hour: its name, the stack that brings it, US dollars (None: not in the book)."""

    name: str
    stack: str
    usd: float | None
    running: bool = False
    """Whether it costs only while peers run."""


def hourly(settings: Settings, *, training: bool = True, stacks: Collection[str] | None = None) -> dict[str, float]:
    """US dollars per hour by part: while it trains, or else while it stands deployed without a run.

    `stacks` names the kinds of stacks that there are (infra/outputs.py); None means all. Parts without a known price
    are not in it; `unpriced` names them. The local AWS costs nothing.
    """
    return {
        part.name: part.usd
        for part in _parts(settings)
        if part.usd is not None and (training or not part.running) and (stacks is None or part.stack in stacks)
    }


def unpriced(settings: Settings) -> list[str]:
    """The parts of a deployment that cost by the hour and whose price the book does not have."""
    return [part.name for part in _parts(settings) if part.usd is None]


def run_prices(settings: Settings) -> Prices:
    """What a run's peers count with. Raises ConfigError where a part's price is unknown: a sum without it would lie."""
    if unknown := unpriced(settings):
        raise ConfigError(f"the price by the hour of {' and of '.join(unknown)} is not in Peerless's price book")
    architecture = settings.architecture
    return Prices(
        run_usd_per_hour=math.fsum(hourly(settings).values()),
        lambda_usd_per_gb_second=_usd("lambda_gb_second")[architecture],
        lambda_usd_per_request=_usd("lambda")["request"],
        transition_usd=_usd("step_functions")["transition"],
        put_usd=_usd("s3")["put"],
        get_usd=_usd("s3")["get"],
    )


def _parts(settings: Settings) -> list[_Part]:
    if settings.local:
        return []
    small, network, peers = _usd("small"), _usd("network"), settings.peers
    parts = []
    if settings.broker:
        nodes = 3 if settings.broker_cluster else 1
        node = _usd("broker_node_hour").get(settings.broker_instance_type)
        name = f"broker, {nodes} x {settings.broker_instance_type}"
        storage = nodes * BROKER_DISK_GB * _usd("broker")["storage_gb_month"] / HOURS_A_MONTH
        parts.append(_Part(name, outputs.BROKER, None if node is None else nodes * node))
        parts.append(_Part("broker storage", outputs.BROKER, storage))
        parts.append(_Part("secrets", outputs.BROKER, (peers + 1) * small["secret_month"] / HOURS_A_MONTH))
    if settings.network == "private":
        nat = network["nat_gateway_hour"] + network["public_address_hour"]
        parts.append(_Part("NAT gateway", outputs.NETWORK, nat))
    if settings.workers and settings.snap_start:
        functions = (1 if settings.shared_worker else peers) * (2 if settings.reduce else 1)  # a reducer beside each
        gb = functions * settings.memory_mb / 1_024
        kept = gb * _usd("lambda")["snapshot_gb_second"] * 3_600
        parts.append(_Part("SnapStart snapshots", outputs.WORKERS, kept))
    alarms = small["dashboard_month"] + alarm_metrics(settings) * small["alarm_month"]
    alarms += small["key_month"] if settings.alarm_email else 0.0
    parts.append(_Part("dashboard and alarms", outputs.WATCH, alarms / HOURS_A_MONTH))
    instance = _usd("instance_hour").get(settings.instance_type)
    name = f"peers, {peers} x {settings.instance_type}"
    parts.append(_Part(name, outputs.PEERS, None if instance is None else peers * instance, running=True))
    disks = peers * PEER_DISK_GB * small["disk_gb_month"] / HOURS_A_MONTH
    parts.append(_Part("peers' disks", outputs.PEERS, disks, running=True))
    if settings.network == "public":
        parts.append(_Part("public addresses", outputs.PEERS, peers * network["public_address_hour"], running=True))
    return parts


def alarm_metrics(settings: Settings) -> int:
    """Metrics that the alarms of infra/stacks/watch.py read: CloudWatch bills those, not alarms.

    A stuck round: commits and up to nine groups. The time limit: one. The broker: used and limit of memory and disk.
    Workers: errors and throttles of each function, failures of each peer's two state machines.
    """
    functions = 1 if settings.shared_worker else settings.peers
    workers = 2 * functions + 2 * settings.peers if settings.workers else 0
    return 1 + min(9, settings.peers) + 1 + 4 * settings.broker + workers


def _usd(section: str) -> dict[str, float]:
    return {name: price.usd for name, price in book()[section].items()}
