"""The definitions executed by MiniStack over HTTP: with workers that fail as told, and with the real worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from contract import wire
from contract.batches import encode_batch
from contract.clock import SystemClock
from contract.store import S3Store
from contract.tasks import Failure, distributed_input, inline_input, items_json
from contract.tensors import flatten, read_buffers
from infra.local import ministack
from infra.local.lambda_client import LambdaService
from infra.local.processes import Child, Starting, wait_until_ready
from lambdas.gradient_worker.gradient import Weights, gradient_frame
from peer_agent.compute.diagnosis import CHILD_FAILED, failed_children, of_children
from statemachines import Mode
from tests.fakes.executions import BUCKET, Executions, Executor
from tests.fakes.gradient_round import PEER_BUCKET, PLACES, RUN_BUCKET, prepare

ROOT = Path(__file__).resolve().parents[2]
REGION = "us-east-1"
ROLE = "arn:aws:iam::000000000000:role/peerless"


@dataclass
class Cloud:
    """A MiniStack whose functions run in the local Lambda service."""

    endpoint_url: str
    service: LambdaService
    client: Callable[[str], Any]

    def register(self, name: str, handler: str, *, workers: int, env: dict[str, str] | None = None) -> str:
        """Gives the function's ARN in MiniStack."""
        self.service.register(name, handler=handler, workers=workers, timeout_seconds=60, memory_mb=1024, env=env)
        made = self.client("lambda").create_function(
            FunctionName=name,
            PackageType="Image",
            Code={"ImageUri": "local/peerless:latest"},
            Role=ROLE,
            Timeout=900,  # includes waiting for a free worker; the service keeps the function's own limit
            Environment={"Variables": {"MINISTACK_LAMBDA_PROXY_URL": self.service.invoke_url(name)}},
        )
        return str(made["FunctionArn"])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    port_file = folder / "lambda.json"
    server = ministack.start(folder, folder / "ministack.log", Starting(), folder / "data")
    command = [sys.executable, "-m", "infra.local.lambda_service", "--port-file", str(port_file)]
    lambdas = Child.start("lambda", command, log_path=folder / "lambda.log", cwd=ROOT)
    clients: dict[str, Any] = {}

    def client(name: str) -> Any:
        if name not in clients:
            clients[name] = boto3.client(
                name,
                endpoint_url=server.endpoint_url,
                region_name=REGION,
                aws_access_key_id="test",
                aws_secret_access_key="test",
                config=Config(proxies={}, s3={"addressing_style": "path"}),
            )
        return clients[name]

    try:
        wait_until_ready(lambdas, port_file.exists, starting=Starting(), timeout_seconds=30)
        yield Cloud(server.endpoint_url, LambdaService.from_port_file(port_file), client)
    finally:
        for made in clients.values():
            made.close()
        lambdas.stop()
        server.child.stop()


@pytest.fixture(scope="module")
def executor(cloud: Cloud) -> Executor:
    cloud.client("s3").create_bucket(Bucket=BUCKET)
    arn = cloud.register("item", "tests.fakes.lambda_handlers.item", workers=2)
    reducer = cloud.register("group", "tests.fakes.lambda_handlers.group", workers=2)
    return Executor(cloud.client("stepfunctions"), cloud.client("s3"), arn, cloud.service, "item", reducer)


class TestExecutedByMiniStack(Executions):
    def test_what_may_work_is_tried_again_and_counted(self, executor: Executor) -> None:
        done = executor.run(Mode.INLINE_MAP, 4, {1: ("StoreUnavailable", 1), 2: ("crash", 1)})
        assert (done["status"], done["invocations"]) == ("SUCCEEDED", 6)
        assert json.loads(done["output"]) == {"retries": [0, 1, 1, 0]}

    def test_a_failed_child_of_a_distributed_map_fails_the_execution(self, executor: Executor) -> None:
        assert executor.run(Mode.DISTRIBUTED_MAP, 2, {1: ("ModelError", 99)})["status"] == "FAILED"

    def test_a_failed_reducer_of_a_distributed_map_fails_nothing_else(self, executor: Executor) -> None:
        done = executor.reduce(Mode.DISTRIBUTED_MAP, 12, {1: ("CorruptObject", 99)})
        output = json.loads(done["output"])
        assert output["retries"] == [0] * 12
        assert output["not_reduced"]["Error"] == CHILD_FAILED
        told = [failure for given, failure in failed_children(executor.sfn, done) if '"group"' in given]
        assert set(told) == {Failure("CorruptObject", "group of level 1 failed as it was told")}

    def test_more_failures_than_tolerated_fail_a_distributed_map(self, executor: Executor) -> None:
        done = executor.run(Mode.DISTRIBUTED_MAP, 3, {0: ("ModelError", 99), 1: ("ModelError", 99)}, 1)
        assert (done["status"], done["error"]) == ("FAILED", CHILD_FAILED)
        assert set(of_children(executor.sfn, done)) == {0, 1}

    def test_the_cause_can_be_read_from_what_ministack_passes_on(self, executor: Executor) -> None:
        done = executor.run(Mode.INLINE_MAP, 1, {0: ("ModelError", 99)})
        assert Failure.parse(done["error"], done["cause"]) == Failure("ModelError", "batch 0 failed as it was told")

    def test_a_thousand_batches(self, executor: Executor) -> None:
        done = executor.run(Mode.DISTRIBUTED_MAP, 1000)
        assert (done["status"], done["invocations"]) == ("SUCCEEDED", 1000)
        assert len(done["output"]) < 4_000


@pytest.fixture(scope="module")
def store(cloud: Cloud) -> Iterator[S3Store]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        for bucket in (RUN_BUCKET, PEER_BUCKET):
            cloud.client("s3").create_bucket(Bucket=bucket)
        store = S3Store(region=REGION, endpoint_url=cloud.endpoint_url)
        yield store
        store.close()


@pytest.fixture(scope="module")
def gradients(cloud: Cloud, store: S3Store) -> Executor:
    """Executes with the real gradient worker."""
    env = {
        "AWS_ENDPOINT_URL": cloud.endpoint_url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    arn = cloud.register("gradient", "lambdas.gradient_worker.handler.handler", workers=1, env=env)
    return Executor(cloud.client("stepfunctions"), cloud.client("s3"), arn, cloud.service, "gradient")


@pytest.mark.parametrize("mode", Mode)
def test_the_real_workers_store_the_gradients_of_the_peers_own_process(
    gradients: Executor, store: S3Store, mode: Mode
) -> None:
    made = prepare(store, round=list(Mode).index(mode))
    common = made.tasks[0].common_dict()
    if mode is Mode.DISTRIBUTED_MAP:
        items = PLACES.items(0, made.tasks[0].round, made.tasks[0].incarnation)
        store.put(items, items_json(made.batches))
        text = distributed_input(common, items)
    else:
        text = inline_input(common, made.batches)
    done = gradients.execute(mode, len(made.batches), text)
    assert (done["status"], done["invocations"]) == ("SUCCEEDED", 3), done.get("cause")
    weights = Weights(flatten(made.model, made.layout), read_buffers(made.model, made.layout))
    for task, (x, y) in zip(made.tasks, made.samples, strict=True):
        expected = gradient_frame(
            task, made.model, made.layout, weights, [(task.batch, encode_batch(x, y))],
            clock=SystemClock(), peak_bytes=lambda: 0, cold_start=False, weights_fetched=False,
        )  # fmt: skip
        # Of the headers, what the worker measured differs.
        sizes = {"expected_elements": made.layout.elements, "expected_buffers_bytes": made.layout.buffers_bytes}
        found, wanted = wire.decode(store.get(task.output), **sizes), wire.decode(expected.frame, **sizes)
        assert (found.payload, found.buffers) == (wanted.payload, wanted.buffers)
        assert (found.header.samples, found.header.loss) == (wanted.header.samples, wanted.header.loss)


def test_an_error_of_the_real_worker_names_batch_and_cause(gradients: Executor, store: S3Store) -> None:
    made = prepare(store, weights_sha256="0" * 64)
    done = gradients.execute(Mode.INLINE_MAP, 1, inline_input(made.tasks[0].common_dict(), made.batches[:1]))
    assert Failure.parse(done["error"], done["cause"]) == Failure(
        "ObjectMissing", f"batch 0 of rank 0 in round 3: {made.tasks[0].weights} does not exist"
    )
