"""What one local run uses of the local AWS: buckets, a function and a state machine per peer; made and removed here."""

from __future__ import annotations

import json
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from contract.config import RunConfig
from contract.errors import LocalStackError
from contract.keys import Places
from infra.local.cloud import LocalCloud
from statemachines import Mode, definition

HANDLER = "lambdas.gradient_worker.handler.handler"
#: The local AWS checks no permissions; a role must merely have the form of one.
_LOCAL_ROLE = "arn:aws:iam::000000000000:role/peerless-local"


def places_for(run: str, peers: int, region: str) -> Places:
    """Bucket names of a local run: one per peer and one for the run."""
    return Places(
        run=run,
        run_bucket=f"peerless-{run}-run",
        peer_buckets=tuple(f"peerless-{run}-peer-{rank}" for rank in range(peers)),
        region=region,
    )


class LocalResources:
    """The run's buckets, function and state machines on the local AWS."""

    def __init__(self, cloud: LocalCloud, places: Places) -> None:
        self._cloud = cloud
        self._places = places
        self._function = f"peerless-{places.run}-gradient"
        self._functions: list[str] = []
        self._machines: list[str] = []
        self._buckets: list[str] = []
        self._s3, self._states = cloud.client("s3"), cloud.client("stepfunctions")

    def create_buckets(self) -> None:
        """Create one bucket per peer and one for the run. Raises LocalStackError."""
        for bucket in (*self._places.peer_buckets, self._places.run_bucket):
            try:
                self._s3.create_bucket(Bucket=bucket)
            except (BotoCoreError, ClientError) as error:
                raise LocalStackError(
                    f"bucket {bucket} cannot be created at {self._cloud.endpoint_url}: {error}"
                ) from error
            self._buckets.append(bucket)

    def create_workers(
        self, config: RunConfig, batches: tuple[int, ...], environment: dict[str, str], workers: int
    ) -> tuple[str, ...]:
        """Register the gradient worker and one state machine per peer.

        `batches` is the number of batches of a round, by rank; `config.compute.state_machine` must be a concrete mode.
        Returns the state machine ARNs in rank order.
        """
        arn = self._cloud.register_function(
            self._function,
            handler=HANDLER,
            workers=workers,
            timeout_seconds=config.compute.timeout_seconds,
            memory_mb=config.compute.memory_mb,
            env=environment,
        )
        self._functions.append(self._function)
        for rank, count in enumerate(batches):
            machine = definition(
                Mode(config.compute.state_machine),
                function_arn=arn,
                batches=count,
                concurrency=config.compute.concurrency,
                timeout_seconds=config.compute.timeout_seconds,
            )
            try:
                created = self._states.create_state_machine(
                    name=f"peerless-{self._places.run}-{rank}", definition=json.dumps(machine), roleArn=_LOCAL_ROLE
                )
            except (BotoCoreError, ClientError) as error:
                raise LocalStackError(f"the state machine of peer {rank} cannot be created: {error}") from error
            self._machines.append(created["stateMachineArn"])
        return tuple(self._machines)

    def counters(self) -> dict[str, Any]:
        """What the local Lambda service counted for this run's function (empty without one)."""
        return self._cloud.function_counters(self._function) if self._functions else {}

    def remove(self) -> None:
        """Remove what this run made; needed where the local AWS outlives the run."""
        for name in self._functions:
            self._cloud.remove_function(name)
        try:
            for arn in self._machines:
                self._states.delete_state_machine(stateMachineArn=arn)
            for bucket in self._buckets:
                for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
                    if keys:
                        self._s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
                self._s3.delete_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(
                f"what run {self._places.run} made on the local AWS cannot be removed: {error}"
            ) from error
