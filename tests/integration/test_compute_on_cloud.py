"""Gradients by the real parts: generated definitions in MiniStack, the real handler in a warm worker process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.config import AwsConfig
from contract.errors import GradientFailed
from contract.keys import Place
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from statemachines import Mode, definition
from tests.fakes.gradient_run import COUNTS, RANK, GradientRun, prepare

ROLE = "arn:aws:iam::000000000000:role/peerless-local"
FUNCTION = "gradient-worker-test"


@dataclass
class Deployed:
    """A prepared run whose state machine exists, and the service that uses it."""

    run: GradientRun
    store: S3Store
    service: StepFunctionsGradientService


@pytest.fixture(scope="module")
def function(local_cloud: LocalCloud) -> Iterator[str]:
    """ARN of the gradient worker, with one warm process."""
    yield local_cloud.register_function(
        FUNCTION,
        handler="lambdas.gradient_worker.handler.handler",
        workers=1,
        timeout_seconds=60,
        memory_mb=1_769,
        env={},
    )
    local_cloud.remove_function(FUNCTION)


@pytest.fixture
def deploy(
    local_cloud: LocalCloud, aws: Callable[[str], Any], bucket: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], Deployed]]:
    """(mode, function) -> a run with its state machine; removed after the test. Mode `express` is an inline map in an
    Express execution."""
    for name, value in local_cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    store = S3Store(region=local_cloud.region, endpoint_url=local_cloud.endpoint_url)
    machines: list[str] = []
    services: list[StepFunctionsGradientService] = []

    def deployed(mode: str, function: str, model: str = "cnn") -> Deployed:
        express, mode = mode == "express", "inline_map" if mode == "express" else mode
        made = definition(Mode(mode), function_arn=function, batches=len(COUNTS), concurrency=0, timeout_seconds=60)
        machine = aws("stepfunctions").create_state_machine(
            name=unique, definition=json.dumps(made), roleArn=ROLE, type="EXPRESS" if express else "STANDARD"
        )
        machines.append(machine["stateMachineArn"])
        run = prepare(store, model, machine=machines[-1], buckets=(bucket, bucket), state_machine=mode)
        if express:
            config = run.spec.config.model_copy(update={"aws": AwsConfig(express=True)})
            run = dataclasses.replace(run, spec=dataclasses.replace(run.spec, config=config))
        service = StepFunctionsGradientService(
            run.spec, RANK, store=store, endpoint_url=local_cloud.endpoint_url, clock=SystemClock()
        )
        services.append(service)
        return Deployed(run, store, service)

    yield deployed
    for service in services:
        service.close()
    for machine in machines:
        aws("stepfunctions").delete_state_machine(stateMachineArn=machine)
    store.close()


@pytest.mark.parametrize("mode", ["inline_map", "distributed_map", "parallel", "express"])
def test_every_mode_gives_the_local_gradient(
    deploy: Callable[[str, str], Deployed], function: str, bucket: str, mode: str
) -> None:
    deployed = deploy(mode, function)
    run = deployed.run
    found = deployed.service.compute(**run.arguments())
    local = LocalGradientService(run.spec, RANK, store=deployed.store).compute(**run.arguments())
    assert found.gradient.tobytes() == local.gradient.tobytes()
    assert (found.loss, found.samples) == (local.loss, local.samples)
    assert (found.invocations, found.executions) == (len(COUNTS), 1)
    assert not [key for key in deployed.store.list(bucket, "") if "/gradients/" in key or "/items/" in key]


def test_worker_processes_that_start_at_once_fetch_the_weights_once(
    deploy: Callable[[str, str, str], Deployed], local_cloud: LocalCloud, unique: str
) -> None:
    arn = local_cloud.register_function(
        unique,
        handler="lambdas.gradient_worker.handler.handler",
        workers=3,
        timeout_seconds=60,
        memory_mb=1_769,
        env={},
    )
    try:
        deployed = deploy("inline_map", arn, "mlp")  # weights that no worker of this machine has fetched before
        work = deployed.service.compute(**deployed.run.arguments()).work
    finally:
        local_cloud.remove_function(unique)
    assert work is not None
    assert work.weights_fetched == 1
    assert 1 <= work.cold_starts <= 3
    assert (work.batches_per_worker, work.step_seconds > 0) == (1, True)


@pytest.mark.parametrize("mode", ["inline_map", "distributed_map", "parallel", "express"])
def test_a_failed_batch_is_named(deploy: Callable[[str, str], Deployed], function: str, bucket: str, mode: str) -> None:
    deployed = deploy(mode, function)
    run = deployed.run
    deployed.store.delete([Place(bucket, run.batches[1].key)])
    with pytest.raises(GradientFailed) as error:
        deployed.service.compute(**run.arguments())
    missing = f"s3://{bucket}/{run.batches[1].key} does not exist"
    told, _, log = str(error.value).partition("; its log: ")
    assert told == f"no gradient for batch 1 of rank 0 in round 3: {missing} (ObjectMissing)"
    assert "ObjectMissing" in Path(log).read_text(), "the worker's log has the stack trace"


def test_waiting_costs_less_than_a_tenth(deploy: Callable[[str, str], Deployed], function: str) -> None:
    deployed = deploy("inline_map", function)
    asked = count_questions(deployed.service)
    for _ in range(3):
        deployed.service.compute(**deployed.run.arguments())
    assert asked.pop() <= 8, "the third execution is asked about around its expected end only"


def test_a_state_machine_that_does_not_exist(deploy: Callable[[str, str], Deployed], function: str) -> None:
    deployed = deploy("inline_map", function)
    deployed.service._executions.machine += "-gone"
    with pytest.raises(GradientFailed, match="Step Functions said StateMachineDoesNotExist"):
        deployed.service.compute(**deployed.run.arguments())


def count_questions(service: StepFunctionsGradientService) -> list[int]:
    """A list that gets the number of questions of every later execution."""
    counts: list[int] = []
    client = service._executions.client
    start, describe = client.start_execution, client.describe_execution

    def started(**arguments: Any) -> Any:
        counts.append(0)
        return start(**arguments)

    def described(**arguments: Any) -> Any:
        counts[-1] += 1
        return describe(**arguments)

    client.start_execution, client.describe_execution = started, described
    return counts
