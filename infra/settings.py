"""What a deployment is made of: frozen, checked at birth, and the only reader of CDK context.

`peerless deploy` derives it from a run's configuration and hands it over as a JSON file, `cdk -c settings=FILE`;
without one a deployment with the defaults below is synthesised, as `make synth` does.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from contract.errors import ConfigError

#: Peers per stack of functions and per stack of instances: some 25 resources each, where a stack takes 500.
PEERS_PER_STACK = 10
#: Buckets of all peers stand in one stack, with some three resources each; the broker's connections end near here too.
MOST_PEERS = 150
#: Managed policies that IAM lets a role have; a shared worker's takes one per group of peers.
_ROLE_POLICIES = 10
_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}\Z")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises ConfigError for values that cannot be deployed. What a field means: `[aws]` in contract/config.py."""

    name: str = "peerless"
    peers: int = 4
    local: bool = False
    """For the local AWS: buckets, state machines, and functions whose code is the local Lambda service's; no more."""
    lambda_url: str = ""
    """Only with `local`: the Lambda service that runs the functions, `http://host:port`."""
    workers: bool = True
    """Whether gradients come from Lambda workers; without, peers compute in their own processes."""
    broker: bool = True
    """Whether there is a broker; without, S3 alone carries the runs."""
    architecture: str = "arm64"
    instance_type: str = "t4g.medium"
    network: str = "public"
    broker_instance_type: str = "mq.m7g.medium"
    broker_cluster: bool = False
    shared_worker: bool = False
    reserved_concurrency: int = 0
    snap_start: bool = False
    express: bool = False
    memory_mb: int = 1_769
    timeout_seconds: int = 120
    concurrency: int = 0
    """Gradient workers at once per peer's map; 0 leaves it to the service."""
    tolerated_failures: float = 0.0
    """Batches of a round that may fail: a share below 1, a count from 1 on."""
    reduce: bool = True
    """Whether there are functions that add gradients up, one beside each worker."""
    threads: int = 1
    """torch threads of a worker and of a peer."""
    torch_index: str = ""
    max_hours: float = 12.0
    monthly_budget_usd: float = 0.0
    alarm_email: str = ""
    data_days: int = 30
    log_days: int = 30
    code_dir: str = ""
    """Folder of the user's own code, for both images; "" where there is none."""
    code_requirements: tuple[str, ...] = ()
    """Python requirements of that code."""
    code_digest: str = ""
    """As contract/code.py gives it for `code_dir`."""
    local_docker: bool = False
    """Build the images with this machine's Docker in place of CodeBuild."""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigError(f"aws.name {self.name!r} must be 1 to 24 lower case letters, digits or hyphens")
        if not 1 <= self.peers <= MOST_PEERS:
            raise ConfigError(f"peers = {self.peers}: a deployment holds 1 to {MOST_PEERS}")
        if self.shared_worker and len(self.groups) > _ROLE_POLICIES:
            raise ConfigError(
                f"aws.shared_worker = true: one role reaches the buckets of {_ROLE_POLICIES * PEERS_PER_STACK} peers, "
                f"not of {self.peers}; leave it false"
            )
        if self.snap_start and self.local:
            raise ConfigError("aws.snap_start = true: the local AWS has no snapshots")
        if self.architecture == "x86_64" and not self.torch_index and not self.local:
            raise ConfigError(
                'aws.architecture = "x86_64" needs aws.torch_index, the address of PyTorch\'s CPU index: '
                "what pip finds by itself brings gigabytes of CUDA"
            )
        graviton = re.match(r"[a-z]+\d+[a-z]*g[a-z]*\.", self.instance_type) is not None
        if graviton != (self.architecture == "arm64"):
            raise ConfigError(
                f'aws.instance_type = "{self.instance_type}" is {"" if graviton else "not "}an arm64 instance, '
                f'but aws.architecture is "{self.architecture}"'
            )

    @property
    def prefix(self) -> str:
        """What the names of all stacks start with."""
        return f"Peerless-{self.name}"

    @property
    def groups(self) -> tuple[range, ...]:
        """The ranks, in the groups that stand in one stack each."""
        starts = range(0, self.peers, PEERS_PER_STACK)
        return tuple(range(start, min(start + PEERS_PER_STACK, self.peers)) for start in starts)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Inverse of `to_json`, parsed. Raises ConfigError for an unknown field or a wrong type."""
        hints = get_type_hints(cls)
        made: dict[str, Any] = {}
        for name, value in values.items():
            if name not in hints:
                raise ConfigError(f"deployment settings: unknown field {name!r}")
            kind = hints[name]
            if kind is float and type(value) is int:
                value = float(value)
            elif kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
                value = tuple(value)
            elif type(value) is not kind:
                raise ConfigError(f"deployment settings: {name} = {value!r} is not of type {kind}")
            made[name] = value
        return cls(**made)

    @classmethod
    def from_file(cls, path: Path) -> Settings:
        """Raises ConfigError."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: deployment settings cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: deployment settings are not a JSON object")
        return cls.from_mapping(values)
