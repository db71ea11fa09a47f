"""What a run's parts cost, resolved when it is launched: so peers can add up their bill without a price book."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prices:
    """All in US dollars. Raises ValueError for a price that is negative or not finite."""

    run_usd_per_hour: float
    """Everything that costs by the hour, for all peers together: instances, their disks and addresses, broker, NAT."""
    lambda_usd_per_gb_second: float
    """Of a gradient worker; a GB is 1,024 MB here, as Lambda counts."""
    lambda_usd_per_request: float
    transition_usd: float
    """Of a state of a Standard state machine. Express executions are counted like that too, which is rarely too low."""
    put_usd: float = 0.0
    """Of an S3 request that writes or lists."""
    get_usd: float = 0.0
    """Of an S3 request that reads."""
    as_if_on_aws: bool = False
    """Nothing of it is really billed, as in a local run: peers show what it would cost, and no limit ends the run."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"price {field.name} = {value} must be a number of US dollars, 0 or more")
