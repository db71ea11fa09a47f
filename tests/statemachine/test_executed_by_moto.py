"""The definitions executed in process by moto, against real workers of the local Lambda service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl

from contract.clock import SystemClock
from contract.tasks import Failure
from infra.local.lambda_client import LambdaService
from infra.local.lambda_http import Server
from infra.local.lambda_service import Functions, front
from statemachines import Mode
from statemachines.transitions import transitions
from tests.fakes.executions import BUCKET, Executions, Executor

NAME, REDUCER = "worker", "reducer"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaService]:
    functions = Functions(tmp_path_factory.mktemp("lambda"), SystemClock())
    server = Server(front(functions))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    service = LambdaService(server.server_port)
    service.register(NAME, handler="tests.fakes.lambda_handlers.item", workers=2, timeout_seconds=30, memory_mb=128)
    service.register(REDUCER, handler="tests.fakes.lambda_handlers.group", workers=2, timeout_seconds=30, memory_mb=128)
    yield service
    functions.close()
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What moto would have waited between attempts, in seconds."""
    waits: list[float] = []
    monkeypatch.setattr(retrier_decl, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def executor(service: LambdaService, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.url)
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        arn = "arn:aws:lambda:us-east-1:123456789012:function:"
        yield Executor(boto3.client("stepfunctions"), s3, arn + NAME, service, NAME, arn + REDUCER)


class TestExecutedByMoto(Executions):
    children_are_told = False

    @pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
    def test_failures_that_are_caught_are_billed_as_the_formula_says(self, executor: Executor, mode: Mode) -> None:
        done = executor.run(mode, 3, {1: ("ModelError", 99)}, 1)
        expected = transitions(mode, executions=1, invocations=done["invocations"], caught=1)
        assert executor.billed(done["executionArn"]) == expected

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("error", ["StoreUnavailable", "crash"])
    def test_what_may_work_is_tried_again_and_counted(
        self, executor: Executor, slept: list[float], mode: Mode, error: str
    ) -> None:
        done = executor.run(mode, 3, {1: (error, 2)})
        assert (done["status"], done["invocations"]) == ("SUCCEEDED", 5)
        assert json.loads(done["output"]) == {"retries": [0, 2, 0]}
        if mode is not Mode.DISTRIBUTED_MAP:
            billed = transitions(mode, executions=1, invocations=done["invocations"])
            assert executor.billed(done["executionArn"]) == billed, "each attempt costs a transition"
        assert len(slept) == 2
        assert slept[0] <= 1.0
        assert slept[1] <= 2.0

    @pytest.mark.parametrize(
        ("error", "attempts"), [("StoreUnavailable", 6), ("crash", 3), ("RunFailed", 3), ("ModelError", 1)]
    )
    def test_tries_end(self, executor: Executor, slept: list[float], error: str, attempts: int) -> None:
        done = executor.run(Mode.INLINE_MAP, 1, {0: (error, 99)})
        assert (done["status"], done["invocations"], len(slept)) == ("FAILED", attempts, attempts - 1)

    def test_a_reducer_is_tried_again_like_a_worker(self, executor: Executor, slept: list[float]) -> None:
        output = json.loads(executor.reduce(Mode.INLINE_MAP, 3, {1: ("StoreUnavailable", 2)})["output"])
        assert output["reducers"] == {"level1": [2], "level2": [], "level3": []}
        assert len(slept) == 2
        slept.clear()
        assert "not_reduced" in json.loads(executor.reduce(Mode.INLINE_MAP, 3, {1: ("ModelError", 99)})["output"])
        assert slept == [], "never after what stays"

    def test_a_mistake_of_the_users_is_told_and_not_tried_again(self, executor: Executor, slept: list[float]) -> None:
        done = executor.run(Mode.PARALLEL, 1, {0: ("ModelError", 99)})
        assert Failure.parse(done["error"], done["cause"]) == Failure("ModelError", "batch 0 failed as it was told")
        assert slept == []
