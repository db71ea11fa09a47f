"""The local Lambda service as its users meet it: a process, real workers with AWS's runtime client, boto3."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config

from contract.errors import LocalStackError
from contract.tasks import Failure
from infra.local.lambda_client import LambdaService
from infra.local.processes import Child, Starting, wait_until_ready

HANDLERS = "tests.fakes.lambda_handlers"


class Service:
    """A started service with AWS's client and our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port_file = folder / "port.json"
        command = [sys.executable, "-m", "infra.local.lambda_service", "--port-file", str(port_file)]
        self.child = Child.start("service", command, log_path=folder / "service.log", cwd=Path(__file__).parents[2])
        wait_until_ready(self.child, port_file.exists, starting=Starting(), timeout_seconds=30)
        self.control = LambdaService.from_port_file(port_file)
        self.aws = boto3.client(
            "lambda",
            endpoint_url=self.control.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32, proxies={}),
        )

    def register(self, name: str, handler: str, **options: Any) -> str:
        values = {"workers": 1, "timeout_seconds": 30, "memory_mb": 256} | options
        return self.control.register(name, handler=f"{HANDLERS}.{handler}", **values)

    def invoke(self, name: str, event: object, **options: Any) -> tuple[str | None, Any]:
        answer = self.aws.invoke(FunctionName=name, Payload=json.dumps(event), **options)
        return answer.get("FunctionError"), json.loads(answer["Payload"].read())

    def proxy(self, name: str, event: object) -> tuple[int, bytes]:
        """As MiniStack invokes."""
        connection = http.client.HTTPConnection(self.control.url.removeprefix("http://"), timeout=60)
        try:
            path = self.control.invoke_url(name).removeprefix(self.control.url)
            connection.request("POST", path, json.dumps(event), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def worker_pids(self) -> set[int]:
        return {process.pid for process in psutil.Process(self.child.pid).children()}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("lambda"))
    yield service
    service.aws.close()
    service.child.stop()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Service]:
    """A service that the test may end."""
    service = Service(tmp_path)
    yield service
    service.aws.close()
    service.child.kill()


def test_the_handler_sees_what_it_sees_on_lambda(service: Service) -> None:
    arn = service.register("echo", "echo", env={"PROBE": "given"})
    error, answer = service.invoke("echo", {"a": [1, 2.5, "ü"]})
    assert error is None
    assert answer["event"] == {"a": [1, 2.5, "ü"]}
    assert answer["arn"] == arn == "arn:aws:lambda:us-east-1:000000000000:function:echo"
    assert answer["environment"] == {"PROBE": "given", "AWS_LAMBDA_FUNCTION_NAME": "echo"}
    assert 0 < answer["remaining_ms"] <= 30_000
    assert service.invoke("echo", {})[1]["pid"] == answer["pid"], "the worker stays warm"


@pytest.mark.parametrize(
    "name", ["{}", "{}:$LATEST", "000000000000:function:{}", "arn:aws:lambda:eu-west-1:123456789012:function:{}:live"]
)
def test_a_function_goes_by_all_its_names(service: Service, name: str) -> None:
    service.register("named", "echo")
    assert service.invoke(name.format("named"), 1)[1]["event"] == 1


def test_an_unknown_function_is_a_404(service: Service) -> None:
    with pytest.raises(service.aws.exceptions.ResourceNotFoundException, match="nowhere"):
        service.invoke("nowhere", {})
    status, body = service.proxy("nowhere", {})
    assert (status, json.loads(body)["errorType"]) == (502, "Lambda.ResourceNotFoundException")


def test_errors_carry_the_name_of_the_exception(service: Service) -> None:
    service.register("fail", "fail")
    event = {"error": "StoreUnavailable", "message": "S3 does not answer"}
    error, answer = service.invoke("fail", event)
    assert (error, answer["errorType"], answer["errorMessage"]) == ("Unhandled", "StoreUnavailable", event["message"])
    assert "lambda_handlers.py" in answer["stackTrace"][0]
    assert service.control.counters("fail")["errors_by_name"] == {"StoreUnavailable": 1}


@pytest.mark.parametrize("message", ["short", "long " * 400, "é" * 3000, '"\\' * 500, "😀" * 500])
def test_a_proxied_error_fits_what_ministack_passes_on(service: Service, message: str) -> None:
    service.register("proxied", "fail")
    status, body = service.proxy("proxied", {"error": "ModelError", "message": message})
    assert (status, len(body) <= 512) == (502, True)
    cause = json.dumps({"errorMessage": f"Proxy target returned HTTP 502: {body.decode()}", "errorType": "X"})
    found = Failure.parse("Runtime.HandlerError", cause)
    assert found.name == "ModelError"
    assert message.startswith(found.message)
    assert len(found.message) >= min(len(message), 30)


def test_a_crash_is_an_exit_error_and_the_next_call_works(service: Service) -> None:
    service.register("leave", "leave")
    for event, reason in (({"status": 3}, "exit status 3"), ({"signal": signal.SIGKILL}, "signal: killed")):
        error, answer = service.invoke("leave", event)
        assert (error, answer["errorType"]) == ("Unhandled", "Runtime.ExitError")
        assert answer["errorMessage"].endswith(f" Error: Runtime exited with error: {reason}")
    assert service.control.counters("leave")["cold_starts"] == 2


def test_more_memory_than_the_function_has_ends_the_worker(service: Service) -> None:
    service.register("hoard", "hoard", memory_mb=128)
    error, answer = service.invoke("hoard", {"mb": 200})
    assert (error, answer["errorType"]) == ("Unhandled", "Runtime.OutOfMemory")
    took = re.search(r"signal: killed \(out of memory: it took (\d+) MB of 128 MB\)$", answer["errorMessage"])
    assert took is not None
    assert 128 < int(took[1]) < 400
    status, body = service.proxy("hoard", {"mb": 200})
    found = Failure.parse("Runtime.HandlerError", json.dumps({"errorMessage": body.decode(), "errorType": "X"}))
    assert (status, found.name) == (502, "Runtime.OutOfMemory")
    assert Path(found.log).is_relative_to(service.folder)
    assert Path(found.log).exists()


def test_a_time_out_ends_the_worker(service: Service) -> None:
    service.register("hang", "hang", timeout_seconds=0.2)
    assert service.control.wait_ready("hang", 30)
    before = service.worker_pids()
    error, answer = service.invoke("hang", {})
    assert (error, answer["errorType"]) == ("Unhandled", "Sandbox.Timedout")
    assert answer["errorMessage"].endswith(" Error: Task timed out after 0.20 seconds")
    assert service.control.wait_ready("hang", 30)
    assert len(before - service.worker_pids()) == 1


def test_a_handler_that_cannot_be_imported_is_told_as_on_lambda(service: Service) -> None:
    service.control.register("broken", handler="no.such.module", workers=2, timeout_seconds=5, memory_mb=128)
    assert not service.control.wait_ready("broken", 30)
    error, answer = service.invoke("broken", {})
    assert (error, answer["errorType"]) == ("Unhandled", "Runtime.ImportModuleError")
    assert "No module named 'no'" in answer["errorMessage"]


def test_the_log_comes_with_the_answer_and_stays_in_a_file(service: Service) -> None:
    service.register("speak", "speak")
    service.invoke("speak", {"text": "before"})
    answer = service.aws.invoke(FunctionName="speak", Payload=json.dumps({"text": "x" * 5000 + "end"}), LogType="Tail")
    log = base64.b64decode(answer["LogResult"])
    assert len(log) == 4096
    assert log.endswith(b"xend\n")
    files = list(service.folder.glob("speak-*.log"))
    assert [b"before\n" in path.read_bytes() for path in files] == [True]


def test_sizes_are_limited_as_on_lambda(service: Service) -> None:
    service.register("large", "large")
    with pytest.raises(service.aws.exceptions.RequestTooLargeException):
        service.invoke("large", {"padding": "x" * 6_300_000})
    assert service.invoke("large", {"bytes": 6_400_000})[1]["errorType"] == "Function.ResponseSizeTooLarge"
    assert len(service.invoke("large", {"bytes": 6_000_000})[1]) == 6_000_000


def test_dry_runs_and_events_are_accepted(service: Service, tmp_path: Path) -> None:
    service.register("event", "gate")
    assert service.aws.invoke(FunctionName="event", InvocationType="DryRun")["StatusCode"] == 204
    pipes = {name: str(tmp_path / name) for name in ("in", "out")}
    for path in pipes.values():
        os.mkfifo(path)
    payload = json.dumps({**pipes, "number": 7})
    assert service.aws.invoke(FunctionName="event", InvocationType="Event", Payload=payload)["StatusCode"] == 202
    assert Path(pipes["in"]).read_text() == "7"
    Path(pipes["out"]).write_text("go")


def test_two_workers_work_at_once_and_no_more(service: Service, tmp_path: Path) -> None:
    service.register("gate", "gate", workers=2)
    entered, out = tmp_path / "in", [tmp_path / f"out{number}" for number in range(3)]
    for path in (entered, *out):
        os.mkfifo(path)
    with ThreadPoolExecutor(3) as threads:
        made = [
            threads.submit(service.invoke, "gate", {"number": number, "in": str(entered), "out": str(out[number])})
            for number in range(3)
        ]
        # A reader at each moment takes what the handlers say; two may say it in one go.
        inside = ""
        while len(inside) < 2:
            inside += entered.read_text()
        described = {found["name"]: found for found in service.control.functions()}["gate"]
        assert (described["workers_busy"], described["waiting"]) == (2, 1)
        out[int(inside[0])].write_text("go")
        inside += entered.read_text()
        for number in inside[1:]:
            out[int(number)].write_text("go")
        answers = [future.result()[1] for future in made]
    assert sorted(inside) == ["0", "1", "2"]
    assert len({answer["pid"] for answer in answers}) == 2


def test_registering_again_replaces_and_removing_removes(service: Service) -> None:
    service.register("again", "echo", env={"PROBE": "old"})
    old = service.invoke("again", {})[1]
    service.register("again", "echo", env={"PROBE": "new"})
    new = service.invoke("again", {})[1]
    assert (old["environment"]["PROBE"], new["environment"]["PROBE"]) == ("old", "new")
    assert not psutil.pid_exists(old["pid"])
    service.control.remove("again")
    assert not psutil.pid_exists(new["pid"])
    service.control.remove("again")
    with pytest.raises(LocalStackError, match="again"):
        service.control.counters("again")


def test_nonsense_is_refused(service: Service) -> None:
    with pytest.raises(LocalStackError, match="workers"):
        service.register("nonsense", "echo", workers=0)
    with pytest.raises(LocalStackError, match="did not answer"):
        LambdaService(1).functions()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_worker_outlives_the_service(alone: Service, end: str) -> None:
    alone.register("left", "hang", workers=2)
    assert alone.control.wait_ready("left", 30)
    workers = [psutil.Process(pid) for pid in alone.worker_pids()]
    assert len(workers) == 2
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(alone.proxy, "left", {})
        while not alone.control.functions()[0]["workers_busy"]:
            pass
        {"stop": alone.child.stop, "kill": alone.child.kill}[end]()
        with pytest.raises((OSError, http.client.HTTPException)):
            raise busy.exception() or _answered(busy.result())
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def _answered(answer: tuple[int, bytes]) -> Exception:
    """A service that ends in order may still say so: of its function, or of the worker where the signal, which the
    whole process group gets, ended that one first.
    """
    assert answer[0] == 502
    assert json.loads(answer[1])["errorType"] in ("ResourceNotFoundException", "Runtime.ExitError")
    return ConnectionError("ended in order")


def test_hundreds_of_invocations_at_once_all_come_home(service: Service) -> None:
    service.register("many", "echo", workers=2)
    call: Callable[[int], tuple[int, bytes]] = lambda number: service.proxy("many", number)  # noqa: E731
    with ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(call, range(400)))
    assert [json.loads(body)["event"] for _, body in answers] == list(range(400))
    assert service.control.counters("many") | {"billed_ms": 0, "init_ms": 0} == {
        "invocations": 400,
        "billed_ms": 0,
        "init_ms": 0,
        "cold_starts": 2,
        "workers_started": 2,
        "errors": 0,
        "errors_by_name": {},
    }
