"""What one local run uses of the local AWS: made for the run and removed with it, or found where it was deployed."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from contract.config import RunConfig
from contract.errors import ConfigError, LocalStackError
from contract.keys import Places
from infra.local.cloud import LocalCloud
from peerless.launch import parallel
from peerless.launch.deployed import Deployment
from statemachines import Mode, definition

HANDLER = "lambdas.gradient_worker.handler.handler"
REDUCER = "lambdas.gradient_reducer.handler.handler"
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


class Resources(Protocol):
    """Buckets, workers and state machines of one run."""

    @property
    def places(self) -> Places:
        """Where the run's objects are; the buckets exist once `provide` has returned."""

    def provide(
        self, config: RunConfig, batches: tuple[int, ...], environment: dict[str, str], workers: int
    ) -> tuple[str, ...]:
        """Make what is missing, and give the state machines' ARNs in rank order ("" where peers compute themselves).

        `batches` is the number of batches of a round, by rank; `config.compute.state_machine` must be a concrete mode.
        `environment` is what workers need beside the servers' addresses, `workers` the number of their processes, which
        load the handler while this returns. Raises PeerlessError.
        """

    def counters(self) -> dict[str, Any]:
        """What the local Lambda service counted for this run's workers (empty without any)."""

    def restore(self) -> None:
        """Make once more what the local AWS had in memory alone, after it was started again. Raises PeerlessError."""

    def add(self, config: RunConfig, name: str, batches: int) -> None:
        """One more state machine, of so many batches a round, for a peer that had joined. Raises PeerlessError."""

    def adopt(self, buckets: Sequence[str], machines: Sequence[str]) -> None:
        """Remove these with the rest: what those brought who joined the run."""

    def remove(self, keep_buckets: bool) -> None:
        """Remove what `provide` made, where the local AWS outlives the run; of a run that can be taken up again not
        the buckets. Raises PeerlessError."""


class LocalResources:
    """Resources of the run's own."""

    def __init__(self, cloud: LocalCloud, places: Places, name: str) -> None:
        """Function and state machines are called after `name`: the same for all internal runs of one run."""
        self._cloud = cloud
        self.places = places
        self._name = name
        self._functions: dict[str, tuple[str, str]] = {}  # by handler: name and ARN
        self._machines: dict[str, dict[str, str]] = {}  # what each is made from, by ARN
        self._guests: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # buckets and machines
        self._memory_mb = 0
        self._s3, self._states = cloud.client("s3"), cloud.client("stepfunctions")

    def provide(
        self, config: RunConfig, batches: tuple[int, ...], environment: dict[str, str], workers: int
    ) -> tuple[str, ...]:
        """As the protocol says, with one function for all peers. Raises LocalStackError."""
        self._create_buckets()
        if config.compute.service == "local":
            return ("",) * config.peers
        return self._create_workers(config, batches, environment, workers)

    def _create_buckets(self) -> None:
        for bucket in self._buckets:
            try:
                with contextlib.suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
                    self._s3.create_bucket(Bucket=bucket)
            except (BotoCoreError, ClientError) as error:
                raise LocalStackError(
                    f"bucket {bucket} cannot be created at {self._cloud.endpoint_url}: {error}"
                ) from error

    @property
    def _buckets(self) -> tuple[str, ...]:
        return (*self.places.peer_buckets, self.places.run_bucket)

    def _create_workers(
        self, config: RunConfig, batches: tuple[int, ...], environment: dict[str, str], workers: int
    ) -> tuple[str, ...]:
        names = {HANDLER: function_name(self._name)}
        if config.compute.reduce != "never":
            names[REDUCER] = reducer_name(self._name)
        for handler, name in names.items():
            arn = self._cloud.register_function(
                name,
                handler=handler,
                workers=workers,
                timeout_seconds=config.compute.timeout_seconds,
                memory_mb=config.compute.memory_mb,
                env=environment,
            )
            self._functions[handler] = name, arn
        self._memory_mb = config.compute.memory_mb
        for rank, count in enumerate(batches):
            self.add(config, f"peerless-{self._name}-{rank}", count)
        return tuple(self._machines)

    def add(self, config: RunConfig, name: str, batches: int) -> None:
        """One more state machine, for the functions of all. Raises LocalStackError."""
        reducer = self._functions.get(REDUCER, ("", ""))[1]
        order = machine_order(config, name, self._functions[HANDLER][1], batches, reducer)
        self._machines[create_machine(self._states, order)] = order

    def restore(self) -> None:
        """The functions first, which the machines name; their workers have gone on. Raises LocalStackError."""
        for handler, (name, _) in self._functions.items():
            self._cloud.create_function(name, handler=handler, memory_mb=self._memory_mb)
        for order in self._machines.values():
            create_machine(self._states, order)

    def adopt(self, buckets: Sequence[str], machines: Sequence[str]) -> None:
        """Remove these with the rest: what those brought who joined the run."""
        self._guests = (*buckets,), (*(arn for arn in machines if arn and arn not in self._machines),)

    def counters(self) -> dict[str, Any]:
        """What the local Lambda service counted for this run's functions (empty without any)."""
        return _counted(self._cloud, [name for name, _ in self._functions.values()])

    def remove(self, keep_buckets: bool) -> None:
        """Remove what this run made; needed where the local AWS outlives the run."""
        for name, _ in self._functions.values():
            self._cloud.remove_function(name)
        try:
            for arn in (*self._machines, *self._guests[1]):
                self._states.delete_state_machine(stateMachineArn=arn)
            for bucket in () if keep_buckets else (*self._buckets, *self._guests[0]):
                delete_bucket(self._s3, bucket)
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(
                f"what run {self.places.run} made on the local AWS cannot be removed: {error}"
            ) from error


def function_name(name: str) -> str:
    """Of the gradient workers of a run's own."""
    return f"peerless-{name}-gradient"


def reducer_name(name: str) -> str:
    """Of what adds their gradients up."""
    return f"peerless-{name}-reduce"


def _counted(cloud: LocalCloud, names: Sequence[str]) -> dict[str, Any]:
    """The sum over functions of what the local Lambda service counted."""
    total: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for name in names:
        counted = cloud.function_counters(name)
        errors.update(counted.pop("errors_by_name"))
        total.update(counted)
    return {**total, "errors_by_name": dict(errors)} if names else {}


def machine_order(
    config: RunConfig, name: str, function_arn: str, batches: int, reducer_arn: str = ""
) -> dict[str, str]:
    """What to ask Step Functions for: the machine of one peer with so many batches a round."""
    compute = config.compute
    express = config.aws.express and compute.state_machine == "inline_map"
    machine = definition(
        Mode(compute.state_machine),
        function_arn=function_arn,
        batches=batches,
        concurrency=compute.concurrency,
        timeout_seconds=compute.timeout_seconds,
        tolerated=compute.tolerated_failures,
        reducer_arn=reducer_arn,
    )
    return {
        "name": name,
        "definition": json.dumps(machine),
        "roleArn": _LOCAL_ROLE,
        "type": "EXPRESS" if express else "STANDARD",
    }


def create_machine(states: Any, order: dict[str, str]) -> str:
    """Gives its ARN, which follows from its name. One that is there already, of the same definition, is as good.

    Raises LocalStackError.
    """
    try:
        return str(states.create_state_machine(**order)["stateMachineArn"])
    except (BotoCoreError, ClientError) as error:
        raise LocalStackError(f"state machine {order['name']} cannot be created: {error}") from error


def delete_bucket(s3: Any, bucket: str) -> None:
    """With all that is in it; fine where there is none. Raises what boto3 raises."""
    with contextlib.suppress(s3.exceptions.NoSuchBucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if keys:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        s3.delete_bucket(Bucket=bucket)


class DeployedResources:
    """Resources that `peerless deploy --local` made. The run's objects stay in their buckets, as on AWS."""

    def __init__(self, cloud: LocalCloud, deployment: Deployment, run: str, peers: int) -> None:
        self._cloud, self._deployment, self._run = cloud, deployment, run
        self.places = deployment.places(run, peers, cloud.region, None)
        self._functions: list[str] = []
        self._parallel = False

    def provide(
        self, config: RunConfig, batches: tuple[int, ...], environment: dict[str, str], workers: int
    ) -> tuple[str, ...]:
        """As the protocol says: processes behind the deployed functions, and machines for `parallel` alone."""
        if config.compute.service == "local":
            return ("",) * config.peers
        used = {HANDLER: self._deployment.functions[: config.peers]}
        if config.compute.reduce != "never":
            used[REDUCER] = self._deployment.reducers[: config.peers]
        for handler, functions in used.items():
            names = list(dict.fromkeys(functions))
            for name in names:
                self._cloud.start_workers(
                    name,
                    handler=handler,
                    workers=max(1, workers // len(names)),
                    timeout_seconds=config.compute.timeout_seconds,
                    memory_mb=config.compute.memory_mb,
                    env=environment,
                )
            self._functions += names
        mode = Mode(config.compute.state_machine)
        if mode is not Mode.PARALLEL:
            return self._deployment.machines(mode)[: config.peers]
        self._parallel = True
        return parallel.create(self._cloud.client, self._deployment, config, self._run, batches)

    def counters(self) -> dict[str, Any]:
        """Of functions that no run before has used since their processes were started."""
        return _counted(self._cloud, self._functions)

    def restore(self) -> None:
        """Stacks are more than a run can make. Raises LocalStackError."""
        name = self._deployment.settings.name
        raise LocalStackError(f"with the local AWS the deployment {name} is gone; deploy it again, then resume the run")

    def add(self, config: RunConfig, name: str, batches: int) -> None:
        """Raises ConfigError: nobody joins a run on what was deployed."""
        raise ConfigError(f"{name} has no place in the deployment {self._deployment.settings.name}")

    def adopt(self, buckets: Sequence[str], machines: Sequence[str]) -> None:
        """Nobody has joined."""

    def remove(self, keep_buckets: bool) -> None:
        """End the processes; the functions themselves stay, and so does what the run has in the buckets."""
        for name in self._functions:
            self._cloud.stop_workers(name)
        if self._parallel:
            parallel.remove(self._cloud.client, self._deployment.settings.prefix, self._run)


@contextlib.contextmanager
def one_run_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """Keep other runs off the local deployment `name`, whose functions have one set of processes. Raises ConfigError.

    `folder` is that of the local servers; the lock goes with this process, however it ends.
    """
    with (folder / f"deployment-{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run trains on the local deployment {name!r}; wait for its end") from error
        yield
