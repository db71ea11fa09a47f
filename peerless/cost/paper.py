"""What the first paper's formulas say that a peer's gradients cost, and what they leave out.

Source: Barrak, Trabelsi, Jaafar, Petrillo, "Exploring the Impact of Serverless Computing on Peer To Peer Training
Machine Learning", section V-B2, formulas (1) and (2). Costs are US dollars per peer and epoch (the paper's peers update
once per epoch). Formula (1) bills every worker for the whole time in which the peer waits for all of them, and counts
instance and workers alone; `full_cost_usd` prices what else such an epoch uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contract.errors import ConfigError
from peerless.cost import Price, book

#: Lambda bills memory in units of 1,024 MB.
MB_A_GB = 1_024
SECONDS_AN_HOUR = 3_600


def serverless_cost_usd(batches: int, lambda_usd_per_second: float, ec2_usd_per_second: float, seconds: float) -> float:
    """Formula (1): (Lambda's price x number of batches + the instance's price) x computation time, USD.

    `batches` are the peer's, one worker each; the prices are US dollars per second of one worker and of the peer's
    instance; `seconds` is the time until all gradients are there. Raises ValueError for what is negative.
    """
    _check(batches=batches, lambda_usd_per_second=lambda_usd_per_second)
    return batches * lambda_usd_per_second * seconds + instance_cost_usd(ec2_usd_per_second, seconds)


def instance_cost_usd(ec2_usd_per_second: float, seconds: float) -> float:
    """Formula (2): the instance's price x computation time, USD.

    `ec2_usd_per_second` is US dollars per second of the peer's instance, `seconds` the time that it takes to compute
    all its gradients itself. Raises ValueError for what is negative.
    """
    _check(ec2_usd_per_second=ec2_usd_per_second, seconds=seconds)
    return ec2_usd_per_second * seconds


@dataclass(frozen=True, kw_only=True)
class Used:
    """What one peer's gradients of one epoch used."""

    seconds: float
    """From the first invocation until all gradients are there; the peer's instance and broker run so long."""
    instance_type: str
    """The peer's EC2 instance."""
    memory_mb: int = 0
    """Of a worker."""
    architecture: str = "arm64"
    """Of the workers: arm64 or x86_64."""
    invocations: int = 0
    worker_seconds: float = 0.0
    """Billed seconds of all invocations together, without initialisation."""
    initialisation_seconds: float = 0.0
    """Billed seconds of initialisation, of all workers that started cold, together."""
    transitions: int = 0
    """State transitions of a Standard state machine."""
    puts: int = 0
    gets: int = 0
    """Requests to S3."""
    broker_instance_type: str = "mq.m7g.medium"
    peers: int = 1
    """Peers that share the broker."""


def full_cost_usd(used: Used, prices: Mapping[str, Mapping[str, Price]] | None = None) -> dict[str, float]:
    """US dollars by part: instance, workers, initialisation, requests, transitions, s3, broker.

    `prices` is a price book, and `peerless.cost.book()` without. Raises ConfigError for what has no price there.
    """
    priced = book() if prices is None else prices
    gb_second = _usd(priced, "lambda_gb_second", used.architecture) * used.memory_mb / MB_A_GB
    broker_hours = used.seconds / SECONDS_AN_HOUR / used.peers
    return {
        "instance": used.seconds * instance_usd_per_second(used.instance_type, priced),
        "workers": used.worker_seconds * gb_second,
        "initialisation": used.initialisation_seconds * gb_second,
        "requests": used.invocations * _usd(priced, "lambda", "request"),
        "transitions": used.transitions * _usd(priced, "step_functions", "transition"),
        "s3": used.puts * _usd(priced, "s3", "put") + used.gets * _usd(priced, "s3", "get"),
        "broker": broker_hours * _usd(priced, "broker_node_hour", used.broker_instance_type),
    }


def worker_usd_per_second(
    memory_mb: int, architecture: str = "arm64", prices: Mapping[str, Mapping[str, Price]] | None = None
) -> float:
    """US dollars per second of one Lambda worker with so many MB. Raises ConfigError for an unknown architecture."""
    return _usd(book() if prices is None else prices, "lambda_gb_second", architecture) * memory_mb / MB_A_GB


def instance_usd_per_second(instance_type: str, prices: Mapping[str, Mapping[str, Price]] | None = None) -> float:
    """US dollars per second of one EC2 instance. Raises ConfigError for a type without a price."""
    return _usd(book() if prices is None else prices, "instance_hour", instance_type) / SECONDS_AN_HOUR


def _usd(prices: Mapping[str, Mapping[str, Price]], section: str, name: str) -> float:
    try:
        return prices[section][name].usd
    except KeyError:
        raise ConfigError(f"the price of {name} ({section}) is not in Peerless's price book") from None


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}, but must not be negative")
