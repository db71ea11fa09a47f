"""Least privilege is not too little: every call that peers make of S3 in whole runs is allowed to their instances."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from contract.config import RunConfig
from contract.keys import Place, current_place
from infra import outputs
from tests.fakes.peers import Cast, Peer
from tests.fakes.store import MemoryStore
from tests.fakes.sync_runs import configuration, exchange
from tests.infra.deployment import Deployment
from tests.infra.test_isolation import CREATE, REPLACE, RUN, WHOLE, Cloud

SAMPLES = (24, 24, 12)
#: What a call of ObjectStore is to IAM. Looking for what is not there yet needs the right to list, or S3 answers 403.
READS = (("s3:GetObject", {}), ("s3:ListBucket", {}))
ACTIONS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "get": READS,
    "get_range": READS,
    "find": READS,
    "head": READS,
    "list": (("s3:ListBucket", {}),),
    "put": (("s3:PutObject", WHOLE),),
    "create": (("s3:PutObject", CREATE),),
    "replace": (("s3:PutObject", REPLACE),),
    "delete": (("s3:DeleteObject", {}),),
}
Call = tuple[int, str, Place]


class Recorded(Cast):
    """A run that remembers who called what of the store."""

    def __init__(self, config: RunConfig, **options: Any) -> None:
        self.calls: set[Call] = set()
        self._rank: int | None = None
        store = MemoryStore(before=self._remember)
        super().__init__(config, SAMPLES, store=store, **options)

    def add(self, rank: int, peer_id: str | None = None) -> Peer:
        return self._as(rank, lambda: Cast.add(self, rank, peer_id))

    def advance(self, rank: int, what: Callable[[], None]) -> None:
        self._as(rank, lambda: Cast.advance(self, rank, what))

    def _as(self, rank: int, act: Callable[[], Any]) -> Any:
        self._rank, before = rank, self._rank
        try:
            return act()
        finally:
            self._rank = before

    def _remember(self, operation: str, place: Place) -> None:
        if self._rank is not None:
            self.calls.add((self._rank, operation, place))


def synchronous() -> set[Call]:
    cast = Recorded(configuration())
    cast.play()
    cast.close()
    return cast.calls


def without_a_broker() -> set[Call]:
    cast = Recorded(configuration(exchange=exchange(round_timeout_seconds=60.0)), broker=False)
    cast.play()
    cast.close()
    return cast.calls


def taken_over() -> set[Call]:
    """Another process of the same peer takes its rank, by `If-Match`."""
    cast = Recorded(configuration())
    earlier, cast.peers[1] = cast.peers[1], cast.add(1)
    earlier.actions.close()
    cast.play()
    cast.close()
    return cast.calls


def asynchronous() -> set[Call]:
    cast = Recorded(configuration(mode="async", exchange=exchange(max_staleness=2)))
    cast.play()
    cast.close()
    return cast.calls


@pytest.mark.parametrize("run", [synchronous, without_a_broker, taken_over, asynchronous])
def test_instances_may_do_all_that_peers_do(deployments: dict[str, Deployment], run: Callable[[], set[Call]]) -> None:
    cloud = Cloud(deployments["default"])
    buckets = {"run": cloud.places.run_bucket}
    buckets |= {f"peer-{rank}": name for rank, name in enumerate(cloud.places.peer_buckets)}
    refused, seen = set(), set()
    for rank, operation, place in run():
        seen.add(operation)
        for action, context in ACTIONS[operation]:
            bucket = f"arn:aws:s3:::{buckets[place.bucket]}"
            arn = bucket if action == "s3:ListBucket" else f"{bucket}/{place.key}"
            if not cloud.allows(cloud.role(rank, "instance"), action, arn, context):
                refused.add(f"rank {rank}: {action} {place}")
    assert not refused
    assert {"find", "create"} <= seen
    if run is taken_over:
        assert "replace" in seen


def test_instances_may_do_what_the_agent_and_the_workers_service_do(on_aws: Deployment) -> None:
    """What those runs leave out: `python -m peer_agent.instance`, and gradients from state machines."""
    cloud = Cloud(on_aws)
    places = cloud.places
    for rank in range(cloud.settings.peers):
        role = cloud.role(rank, "instance")
        reads = [current_place(places.run_bucket), places.spec(), places.report(rank), places.validation()]
        reads += [places.manifest(rank), places.batch(rank, 0), places.gradient(rank, 1, 0, 0)]
        assert all(cloud.allows(role, "s3:GetObject", place) for place in reads)
        assert cloud.allows(role, "s3:PutObject", places.events(rank, 1_700_000_000_000), CREATE)
        assert cloud.allows(role, "s3:PutObject", places.items(rank, 1, 0), WHOLE)
        assert cloud.allows(role, "s3:DeleteObject", places.items(rank, 1, 0))
        assert cloud.allows(role, "s3:DeleteObject", places.gradient(rank, 1, 0, 0))
        assert cloud.allows(role, "s3:PutObject", places.groups(rank, 1, 0), WHOLE)
        for made in (places.groups(rank, 1, 0), places.partial(rank, 1, 0, 2, 0)):
            assert cloud.allows(role, "s3:DeleteObject", made)
        assert cloud.allows(role, "s3:GetObject", places.partial(rank, 1, 0, 2, 0))
        _check_machines(cloud, role, rank)


def _check_machines(cloud: Cloud, role: str, rank: int) -> None:
    parallel = outputs.parallel_machine(cloud.settings.prefix, rank, RUN)
    inline, distributed = (cloud.listed(name)[rank] for name in (outputs.INLINE_MACHINES, outputs.DISTRIBUTED_MACHINES))
    for machine in (inline, distributed, f"arn:aws:states:us-east-1:123456789012:stateMachine:{parallel}"):
        execution = machine.replace(":stateMachine:", ":execution:") + f":{RUN}-1"
        assert cloud.allows(role, "states:StartExecution", machine)
        assert cloud.allows(role, "states:DescribeExecution", execution)
        assert cloud.allows(role, "states:StopExecution", execution)
        assert cloud.allows(role, "states:GetExecutionHistory", execution)
        assert cloud.allows(role, "states:ListMapRuns", execution)
        child, run = (machine.replace(":stateMachine:", f":{kind}:") + "/label:1" for kind in ("execution", "mapRun"))
        assert cloud.allows(role, "states:DescribeExecution", child)
        assert cloud.allows(role, "states:ListExecutions", run)
    assert cloud.allows(role, "states:StartSyncExecution", inline) is cloud.settings.express
    assert not cloud.allows(role, "lambda:InvokeFunction", cloud.listed(outputs.FUNCTION_ARNS)[rank])


def test_an_instance_reads_its_own_secret_of_the_broker_only(on_aws: Deployment) -> None:
    cloud = Cloud(on_aws)
    if on_aws.settings.broker:
        secrets = [
            on_aws.stacks.arn(stack, id)
            for stack, id, _ in sorted(on_aws.stacks.resources("AWS::SecretsManager::Secret"), key=lambda s: s[1])
            if id.startswith("Peer")
        ]
        assert len(secrets) == cloud.settings.peers
    else:
        secrets = ["arn:aws:secretsmanager:us-east-1:123456789012:secret:anything-AbCdEf"] * cloud.settings.peers
    for kind in cloud.kinds():
        for rank in range(cloud.settings.peers):
            role = cloud.role(rank, kind)
            allowed = [s for s in secrets if cloud.allows(role, "secretsmanager:GetSecretValue", s)]
            assert allowed == ([secrets[rank]] if kind == "instance" and on_aws.settings.broker else [])
            assert not cloud.allows(role, "secretsmanager:PutSecretValue", secrets[rank])


def test_a_right_that_is_missing_is_noticed(deployments: dict[str, Deployment]) -> None:
    """Without its right to write results, a peer's run is refused."""
    deployment = deployments["default"]
    templates = copy.deepcopy(deployment.templates)
    for template in templates.values():
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::IAM::Policy":
                for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                    if statement.get("Sid") == "WriteRun":
                        statement["Resource"] = [r for r in statement["Resource"] if "results" not in str(r)]
    cloud = Cloud(deployment, templates)
    role = cloud.role(0, "instance")
    assert cloud.allows(role, "s3:PutObject", cloud.places.commit(1), CREATE)
    assert not cloud.allows(role, "s3:PutObject", cloud.places.result(1), CREATE)
