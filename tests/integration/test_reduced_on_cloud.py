"""Gradients added up by the real parts: MiniStack, workers and reducers in processes of the local Lambda service."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.config import AwsConfig
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from peerless.launch.resources import HANDLER, REDUCER, create_machine, machine_order
from tests.fakes.gradient_run import INCARNATION, RANK, ROUND, GradientRun, prepare

#: Ten batches: two groups and a second level.
COUNTS = (8, 5, 3, 4, 2, 7, 6, 3, 2, 4)
#: What `make test` takes for all of them, as tests/functional/test_reduced_rounds.py has each.
FIRST_MODE, OTHER_MODES = "inline_map", ("distributed_map", "parallel", "express")


@pytest.fixture(scope="module")
def functions(local_cloud: LocalCloud) -> Iterator[tuple[str, str]]:
    """ARNs of worker and reducer, with a warm process each."""
    arns = []
    for handler in (HANDLER, REDUCER):
        name = f"reduced-test-{handler.split('.')[1].replace('_', '-')}"
        arn = local_cloud.register_function(
            name, handler=handler, workers=1, timeout_seconds=60, memory_mb=1_769, env={}
        )
        arns.append((name, arn))
    yield arns[0][1], arns[1][1]
    for name, _ in arns:
        local_cloud.remove_function(name)


@dataclasses.dataclass
class Deployed:
    run: GradientRun
    store: S3Store
    service: StepFunctionsGradientService

    def left(self, bucket: str) -> list[str]:
        kinds = ("/gradients/", "/items/", "/partials/")
        return [key for key in self.store.list(bucket, "") if any(kind in key for kind in kinds)]


@pytest.fixture
def deploy(
    local_cloud: LocalCloud,
    aws: Callable[[str], Any],
    bucket: str,
    unique: str,
    functions: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Deployed]]:
    """Mode -> a run with its state machine; removed after the test."""
    for name, value in local_cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    store = S3Store(region=local_cloud.region, endpoint_url=local_cloud.endpoint_url)
    made: list[tuple[str, StepFunctionsGradientService]] = []

    def deployed(mode: str, **compute: Any) -> Deployed:
        express, mode = mode == "express", "inline_map" if mode == "express" else mode
        settings = {"state_machine": mode, "reduce": "always", **compute}
        run = prepare(store, "cnn", machine="arn", buckets=(bucket, bucket), counts=COUNTS, **settings)
        config = run.spec.config.model_copy(update={"aws": AwsConfig(express=express)})
        machine = create_machine(
            aws("stepfunctions"), machine_order(config, unique, functions[0], len(COUNTS), functions[1])
        )
        spec = dataclasses.replace(run.spec, config=config, state_machines=(machine,))
        run = dataclasses.replace(run, spec=spec)
        service = StepFunctionsGradientService(
            spec, RANK, store=store, endpoint_url=local_cloud.endpoint_url, clock=SystemClock()
        )
        made.append((machine, service))
        return Deployed(run, store, service)

    yield deployed
    for machine, service in made:
        service.close()
        aws("stepfunctions").delete_state_machine(stateMachineArn=machine)
    store.close()


@pytest.mark.parametrize("mode", [FIRST_MODE, *(pytest.param(mode, marks=pytest.mark.slow) for mode in OTHER_MODES)])
def test_every_mode_reads_one_mean_that_equals_the_local_one(
    deploy: Callable[..., Deployed], bucket: str, mode: str
) -> None:
    deployed = deploy(mode)
    found = deployed.service.compute(**deployed.run.arguments())
    local = LocalGradientService(deployed.run.spec, RANK, store=deployed.store).compute(**deployed.run.arguments())
    assert found.not_reduced == ""
    assert (found.gradient.tobytes(), found.loss, found.samples) == (local.gradient.tobytes(), local.loss, sum(COUNTS))
    assert (found.invocations, found.reducers, found.executions) == (len(COUNTS) + 3, 3, 1)
    assert found.bytes_in < 2 * found.gradient.nbytes, "one frame, not ten"
    assert found.work is not None
    assert found.work.step_seconds > 0
    assert deployed.left(bucket) == []


@pytest.mark.slow  # tests/functional/test_reduced_rounds.py has it in `make test`
@pytest.mark.parametrize("mode", ["inline_map", "distributed_map"])
def test_a_reducer_that_fails_costs_a_round_nothing_but_time(
    deploy: Callable[..., Deployed], bucket: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reducers look for the gradient of batch 7 where it is not."""
    deployed = deploy(mode)
    place = deployed.run.spec.places.gradient(RANK, ROUND, INCARNATION, 7)
    deployed.service.compute(**deployed.run.arguments())  # all parts are warm
    service, run = deployed.service, deployed.service._executions.run

    def with_a_gap(task: Any, text: str) -> Any:
        wrong = text.replace("[7,3,0]", "[7,3,99]")
        if mode == "distributed_map":
            groups = deployed.run.spec.places.groups(RANK, ROUND, INCARNATION)
            deployed.store.put(groups, deployed.store.get(groups).replace(b"[7,3,0]", b"[7,3,99]"))
        else:
            assert wrong != text
        return run(task, wrong)

    monkeypatch.setattr(service._executions, "run", with_a_gap)
    found = service.compute(**deployed.run.arguments())
    local = LocalGradientService(deployed.run.spec, RANK, store=deployed.store).compute(**deployed.run.arguments())
    gone = str(place).replace(f"{ROUND:06d}-0/", f"{ROUND:06d}-99/")
    told = f"group 1 of level 1 of rank 0 in round 3: batch 7: {gone} does not exist (ObjectMissing)"
    assert found.not_reduced == told
    assert (found.gradient.tobytes(), found.loss) == (local.gradient.tobytes(), local.loss)
    assert (found.failures, found.executions) == ((), 1)
    assert deployed.left(bucket) == []
