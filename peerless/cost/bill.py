"""A run's bill: what it used, at the prices of a region, by part and in all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contract.config import RunConfig
from contract.errors import ConfigError
from contract.prices import Prices
from infra.settings import Settings
from peerless.cost.book import HOME_REGION, Book, Reader, book
from peerless.cost.deployment import broker_nodes, meter_prices, parts
from peerless.cost.use import Use

#: Digits of a sum in US dollars, where the cheapest thing (a request that reads) costs 4e-7.
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """With what a run is billed: prices, and what stands while it goes on."""

    prices: Book
    settings: Settings | None
    """None where what the run asks for cannot be deployed, so that nothing can be billed by the hour; `why` says so."""
    as_if_on_aws: bool
    """The run is a local one, of which nothing is billed."""
    why: str = ""

    @classmethod
    def local(cls, config: RunConfig, settings: Callable[[RunConfig], Settings]) -> Tariff:
        """Of a local run, as if it were on what `settings` makes of its configuration. Raises ConfigError for prices
        that cannot be used."""
        prices = book(config.cost.prices, config.cost.region or HOME_REGION)
        # What the images are made from is of no matter to their price.
        index = config.aws.torch_index or "unused"
        try:
            made = settings(config.model_copy(update={"aws": config.aws.model_copy(update={"torch_index": index})}))
        except ConfigError as error:
            return cls(prices=prices, settings=None, as_if_on_aws=True, why=str(error))
        return cls(prices=prices, settings=made, as_if_on_aws=True)

    @classmethod
    def deployed(cls, config: RunConfig, settings: Settings, region: str) -> Tariff:
        """Of a run on the deployment of `settings`, which stands in `region`. Raises ConfigError as `local` does."""
        prices = book(config.cost.prices, config.cost.region or region)
        return cls(prices=prices, settings=settings, as_if_on_aws=False)

    def for_peers(self) -> Prices | None:
        """What the peers' meters count with; None where not all of it is known, and it would lie."""
        read = Reader(self.prices)
        if self.settings is None:
            return None
        standing = parts(self.settings, read)
        hourly = [part.usd for part in standing if part.usd is not None]
        if len(hourly) < len(standing):
            return None
        return meter_prices(read, self.settings, math.fsum(hourly), as_if_on_aws=self.as_if_on_aws)

    def warnings(self, now: float) -> list[str]:
        """What a user should know of the prices before the run. `now` in seconds since the epoch."""
        read = Reader(self.prices)
        if self.settings is not None:
            parts(self.settings, read)
            meter_prices(read, self.settings, 0.0)
        told = read.warnings(now)
        if self.why:
            told.append(f"the bill leaves out what costs by the hour, as this run cannot be deployed: {self.why}")
        return told


@dataclass(frozen=True, kw_only=True)
class Bill:
    """US dollars, by part and in all, with the use that they come from."""

    parts: dict[str, float]
    use: Use
    hours: dict[str, float]
    """What was used by the hour: hours times how many, by name."""
    as_if_on_aws: bool
    unpriced: tuple[str, ...]
    """What has no price, and is not in the sum."""
    prices: dict[str, Any] = field(default_factory=dict)
    """Region, dates and warnings, as `summary.json` has them."""

    @classmethod
    def of(cls, use: Use, tariff: Tariff, config: RunConfig, now: float) -> Bill:
        """What `use` comes to. `now`, seconds since the epoch, is when the age of prices is judged."""
        read = Reader(tariff.prices)
        settings = tariff.settings
        architecture = config.aws.architecture if settings is None else settings.architecture
        usd = _by_the_piece(use, read, architecture)
        unpriced: list[str] = []
        for part in parts(settings, read) if settings is not None else ():
            if part.usd is None:
                unpriced.append(part.name)
            else:
                usd[part.kind] = part.usd * use.run_hours
        if settings is None:
            unpriced.append("what costs by the hour")
        oldest, newest = read.dates()
        return cls(
            parts={name: round(value, _DIGITS) for name, value in usd.items() if value},
            use=use,
            hours={} if settings is None else _hours(use, settings),
            as_if_on_aws=tariff.as_if_on_aws,
            unpriced=tuple(unpriced),
            prices={
                "region": tariff.prices.region,
                "oldest": oldest,
                "newest": newest,
                "overridden": [name for name in tariff.prices.overridden if name in read.used],
                "undated": sorted(name for name, price in read.used.items() if not price.date),
                "warnings": read.warnings(now),
            },
        )

    @property
    def total(self) -> float:
        """US dollars."""
        return round(math.fsum(self.parts.values()), _DIGITS)

    def to_dict(self) -> dict[str, Any]:
        """The key `cost` of summary.json."""
        return {
            "total": self.total,
            "parts": self.parts,
            "use": {**self.use.counts(), **self.hours},
            "estimated": list(self.use.estimated),
            "as_if_on_aws": self.as_if_on_aws,
            "unpriced": list(self.unpriced),
            "prices": self.prices,
        }


def _by_the_piece(use: Use, read: Reader, architecture: str) -> dict[str, float]:
    """US dollars by part; prices of what was not used are not looked up."""
    bought = {
        "gradient workers": (use.lambda_gb_seconds, "lambda_gb_second", architecture),
        "worker requests": (use.lambda_invocations, "lambda", "request"),
        "snapshot restores": (use.snapshots_restored_gb, "lambda", "snapshot_restore_gb"),
        "state transitions": (use.state_transitions, "step_functions", "transition"),
        "Express requests": (use.express_requests, "step_functions", "express_request"),
        "Express duration": (use.express_gb_hours, "step_functions", "express_gb_hour"),
        "S3 writes and lists": (use.s3_put_requests, "s3", "put"),
        "S3 reads": (use.s3_get_requests, "s3", "get"),
        "S3 storage": (use.s3_gb_months, "s3", "gb_month"),
    }
    return {name: count * read.usd(section, price) for name, (count, section, price) in bought.items() if count}


def _hours(use: Use, settings: Settings) -> dict[str, float]:
    hours = use.run_hours
    private = settings.network == "private"
    return {
        "instance_hours": settings.peers * hours,
        "broker_node_hours": broker_nodes(settings) * hours,
        "public_address_hours": (1 if private else settings.peers) * hours,
        "nat_gateway_hours": hours if private else 0.0,
    }
