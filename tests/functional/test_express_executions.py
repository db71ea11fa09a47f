"""Rounds as Express executions: one request that answers with the end, within five minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from contract.clock import SystemClock
from contract.config import AwsConfig
from contract.env import WorkerEnv
from contract.errors import GradientFailed, TransientError
from contract.keys import Place
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import RANK, GradientRun, prepare
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore


def express(run: GradientRun) -> GradientRun:
    """The same run, configured for Express executions."""
    config = run.spec.config.model_copy(update={"aws": AwsConfig(express=True)})
    return dataclasses.replace(run, spec=dataclasses.replace(run.spec, config=config))


def worker(store: MemoryStore) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The real Lambda worker over `store`."""
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    made = GradientWorker(env, store=store, clock=SystemClock())
    return lambda event: made(event).to_dict()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> MemoryStepFunctions:
    return MemoryStepFunctions(store, worker(store))


def service(run: GradientRun, store: MemoryStore, client: Any, clock: Any = None) -> StepFunctionsGradientService:
    return StepFunctionsGradientService(
        run.spec, RANK, store=store, endpoint_url=None, clock=clock or FakeClock(), client=client
    )


def test_one_request_gives_the_gradient_without_a_wait(store: MemoryStore, client: MemoryStepFunctions) -> None:
    run, clock = express(prepare(store, "cnn", machine=MACHINE)), FakeClock()
    client.retries = 1
    found = service(run, store, client, clock).compute(**run.arguments())
    local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
    assert found.gradient.tobytes() == local.gradient.tobytes()
    assert (found.invocations, found.executions) == (6, 1)
    assert (client.sync_starts, clock.slept) == (1, [])


def test_a_round_computed_again_needs_no_other_name(store: MemoryStore, client: MemoryStepFunctions) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE))
    made = service(run, store, client)
    assert made.compute(**run.arguments()).loss == made.compute(**run.arguments()).loss
    assert client.sync_starts == 2


@pytest.mark.parametrize("mode", ["distributed_map", "parallel"])
def test_other_forms_stay_standard(store: MemoryStore, client: MemoryStepFunctions, mode: str) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE, state_machine=mode))
    service(run, store, client).compute(**run.arguments())
    assert (client.sync_starts, len(client.executions)) == (0, 1)


def test_a_worker_that_raises_is_named_as_in_a_standard_execution(
    store: MemoryStore, client: MemoryStepFunctions
) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE))
    store.delete([Place("peer-bucket", run.batches[1].key)])
    with pytest.raises(GradientFailed) as error:
        service(run, store, client).compute(**run.arguments())
    missing = f"s3://peer-bucket/{run.batches[1].key} does not exist"
    assert str(error.value) == f"no gradient for batch 1 of rank 0 in round 3: {missing} (ObjectMissing)"


def test_a_sandbox_that_dies_is_told_without_a_history(store: MemoryStore) -> None:
    class ExitError(Exception):
        pass

    def dying(event: dict[str, Any]) -> dict[str, Any]:
        raise ExitError("Runtime exited with error: signal: killed")

    run = express(prepare(store, "cnn", machine=MACHINE))
    with pytest.raises(GradientFailed, match=r"^no gradient for rank 0 in round 3: .*killed \(ExitError\)$"):
        service(run, store, MemoryStepFunctions(store, dying)).compute(**run.arguments())


def test_the_time_limit_names_the_setting(store: MemoryStore, client: MemoryStepFunctions) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE))
    client.sync_status = "TIMED_OUT"
    client.worker = lambda event: {}
    with pytest.raises(GradientFailed, match=r"ended after 5 minutes, their limit; set aws\.express = false"):
        service(run, store, client).compute(**run.arguments())


def test_what_the_time_limit_cut_off_is_computed_in_another_execution(
    store: MemoryStore, client: MemoryStepFunctions
) -> None:
    run, whole = express(prepare(store, "cnn", machine=MACHINE)), client.worker
    client.sync_status = "TIMED_OUT"

    def ended(event: dict[str, Any]) -> dict[str, Any]:
        if client.sync_starts == 1:
            client.sync_status = None
        return whole(event) if client.sync_starts == 1 or event["batch"]["index"] == 0 else {}

    client.worker = ended
    found = service(run, store, client).compute(**run.arguments())
    assert (found.executions, found.invocations, client.sync_starts) == (2, 3 + 2, 2)
    assert [[batch["index"] for batch in given["batches"]] for given in client.inputs] == [[0, 1, 2], [1, 2]]
    local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
    assert found.gradient.tobytes() == local.gradient.tobytes()


def test_refusals_and_lost_answers_are_told_as_for_standard_ones(
    store: MemoryStore, client: MemoryStepFunctions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE))

    def raising(error: Exception) -> None:
        def start(**_: Any) -> Any:
            raise error

        monkeypatch.setattr(client, "start_sync_execution", start)

    answer: Any = {"Error": {"Code": "StateMachineTypeNotSupported", "Message": "not express"}}
    raising(ClientError(answer, "StartSyncExecution"))
    with pytest.raises(GradientFailed, match="Step Functions said StateMachineTypeNotSupported: not express"):
        service(run, store, client).compute(**run.arguments())
    raising(ReadTimeoutError(endpoint_url="https://sync-states.us-east-1.amazonaws.com/"))
    with pytest.raises(TransientError, match="Step Functions at AWS in us-east-1 does not answer"):
        service(run, store, client).compute(**run.arguments())


def test_a_stopped_peer_starts_nothing(store: MemoryStore, client: MemoryStepFunctions) -> None:
    run = express(prepare(store, "cnn", machine=MACHINE))
    made = service(run, store, client)
    made.close()
    with pytest.raises(GradientFailed, match="the peer was stopped"):
        made.compute(**run.arguments())
    assert client.sync_starts == 0


@pytest.mark.parametrize(("endpoint", "prefixed"), [(None, True), ("http://127.0.0.1:1", False)])
def test_the_client_waits_long_enough_and_asks_the_right_host(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, prefixed: bool
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    for made, least in (
        (express(prepare(store, "cnn", machine=MACHINE)), 301),
        (prepare(store, "cnn", machine=MACHINE), 60),
    ):
        config = StepFunctionsGradientService(
            made.spec, RANK, store=store, endpoint_url=endpoint, clock=FakeClock()
        )._executions.client.meta.config
        assert config.read_timeout >= least
        assert config.inject_host_prefix is prefixed
