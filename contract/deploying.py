"""The sections of the configuration that say what is deployed on AWS, and with which prices a run is billed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.section import Section


class AwsConfig(Section):
    """What `peerless deploy` makes in an AWS account. None of it changes a run's result."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}$")] = "peerless"
    """Name of the deployment; its stacks are called `Peerless-<name>-...`. One account can hold several."""
    architecture: Literal["arm64", "x86_64"] = "arm64"
    """Processors of workers and peers; arm64 costs a fifth less."""
    instance_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")] = "t4g.medium"
    """EC2 instance type of a peer; it must fit `architecture`."""
    network: Literal["public", "private"] = "public"
    """`public`: peers have public addresses and no inbound rule. `private`: a NAT gateway instead, which costs more."""
    broker_instance_type: Annotated[str, Field(pattern=r"^mq\.[a-z0-9]+\.[a-z0-9]+$")] = "mq.m7g.medium"
    """Amazon MQ instance type."""
    broker_cluster: bool = False
    """Three broker nodes in place of one, at three times the price."""
    shared_worker: bool = False
    """One Lambda function for all peers, which may read every peer's bucket, in place of one function each."""
    reserved_concurrency: Annotated[int, Field(ge=0)] = 0
    """Invocations at once that each function keeps for itself and never exceeds; 0 reserves none."""
    snap_start: bool = False
    """Start workers from a snapshot: seconds in place of some twenty, for a price by the month (`deploy` shows it)."""
    express: bool = False
    """Rounds of an inline map run as Express executions, which cost less per round and last five minutes at most."""
    torch_index: str = ""
    """Package index that the images take torch from, PyTorch's CPU index: pip's own has torch for CUDA alone. Deploying
    on AWS needs it."""
    max_hours: Annotated[float, Field(gt=0, le=8_760)] = 12.0
    """So many hours after a run's start its peers are switched off, whatever they do."""
    max_usd: Annotated[float, Field(ge=0)] = 0.0
    """A run ends in order when its own estimate of its bill reaches this, in US dollars; 0 sets no limit."""
    monthly_budget_usd: Annotated[float, Field(ge=0)] = 0.0
    """A budget alarm at so many US dollars a month; 0 sets none."""
    alarm_email: str = ""
    """Where alarms go; empty leaves them in CloudWatch."""
    data_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    """Days until weights, gradients and contributions expire; commits, results and reports stay."""
    log_days: Literal[1, 3, 7, 14, 30, 90, 180, 365] = 30
    """Days until logs expire."""


class CostConfig(Section):
    """Whose prices a run is billed with. None of it changes a run's result."""

    prices: str = ""
    """A TOML file of your own prices, of the form of `peerless/cost/prices.toml`; what it does not name is taken from
    there. Empty: all is."""
    region: Annotated[str, Field(pattern=r"^([a-z]{2}(-[a-z]+)+-[0-9]+)?$")] = ""
    """AWS region whose prices count; empty: the deployment's, and us-east-1 for local runs."""
