"""One way to run a job: the keys of a configuration that the planner may choose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from contract.computing import MB_PER_VCPU
from contract.config import RunConfig
from statemachines import Mode, choose_mode

#: Field of a plan -> key of the configuration, in the order in which they are shown.
KEYS = {
    "service": "compute.service",
    "memory_mb": "compute.memory_mb",
    "threads": "compute.threads",
    "batches_per_worker": "compute.batches_per_worker",
    "state_machine": "compute.state_machine",
    "express": "aws.express",
    "codec": "exchange.codec",
    "topology": "exchange.topology",
    "peers": "peers",
    "architecture": "aws.architecture",
    "instance_type": "aws.instance_type",
    "broker": "aws.broker_instance_type",
}
#: Fields that mean nothing where peers compute in their own processes.
OF_WORKERS = ("memory_mb", "batches_per_worker", "state_machine", "express")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Values as the configuration has them; what a key means stands in contract/config.py."""

    service: str
    memory_mb: int
    threads: int
    """torch threads of a worker, and of a peer."""
    batches_per_worker: int
    """A number in any case: what `auto` comes to."""
    state_machine: str
    express: bool
    codec: str
    topology: str
    peers: int
    architecture: str
    instance_type: str
    broker: str

    @classmethod
    def of(cls, config: RunConfig, *, batches: int, per_worker: int) -> Plan:
        """What a configuration says; `batches` of a peer's round decide what `state_machine = "auto"` is, `per_worker`
        stands for `auto` batches per worker. Raises ConfigError for more batches than the state machine takes."""
        compute, aws, number = config.compute, config.aws, config.compute.batches_per_worker
        mode = compute.state_machine
        if compute.service == "lambda":
            mode = choose_mode(mode, batches, compute.tolerated_failures, compute.concurrency).value
        elif mode == "auto":  # for the comparison with workers; no count of batches is too large for none
            mode = Mode.DISTRIBUTED_MAP.value
        return cls(
            service=compute.service,
            memory_mb=compute.memory_mb,
            threads=compute.threads,
            batches_per_worker=number if isinstance(number, int) else per_worker,
            state_machine=mode,
            express=aws.express and mode == "inline_map",
            codec=config.exchange.codec,
            topology=config.exchange.topology,
            peers=config.peers,
            architecture=aws.architecture,
            instance_type=aws.instance_type,
            broker=aws.broker_instance_type,
        )

    @property
    def vcpus(self) -> float:
        """Of a gradient worker on Lambda."""
        return self.memory_mb / MB_PER_VCPU

    def changes(self, configured: Plan) -> dict[str, Any]:
        """Keys of the configuration with the values that make it this plan. `configured` is the plan that it has now;
        what has no meaning for this plan stays."""
        told, there = self.described(), dataclasses.asdict(configured)
        return {KEYS[name]: value for name, value in told.items() if value != there[name]}

    def described(self) -> dict[str, Any]:
        """By field, without those that mean nothing here."""
        told = dataclasses.asdict(self)
        return {name: value for name, value in told.items() if self.service == "lambda" or name not in OF_WORKERS}
