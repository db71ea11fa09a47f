"""The local cloud as a whole: functions behind state machines, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.errors import BrokerUnavailable, LocalStackError
from infra.local import lambda_start, ministack, rabbitmq, unfinished
from infra.local.cloud import S3_FOLDER, LocalCloud
from infra.local.detached import State
from infra.local.ports import free_ports
from tests.processes import gone, mentioned, wait_for

ROOT = Path(__file__).resolve().parents[2]
_ROLE = "arn:aws:iam::000000000000:role/test"
HANDLER_MODULE = """
import os

def handler(event, context):
    if event["n"] < 0:
        raise ValueError(f"negative: {event['n']}")
    return {"twice": 2 * event["n"], "setting": os.environ["SETTING"], "endpoint": os.environ["AWS_ENDPOINT_URL"]}
"""
#: Owns a cloud, and says so when it is up.
OWNER = """
import sys, time
from pathlib import Path
from infra.local.cloud import LocalCloud
print("starting", flush=True)
with LocalCloud.start(Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(300)
"""


def offspring(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def own(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Exit status and what it said on standard error."""
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def execute(states: Any, name: str, function_arn: str, numbers: list[int]) -> dict[str, Any]:
    """Map a function over numbers; gives the execution's description once it has ended."""
    task = {"Type": "Task", "Resource": function_arn, "End": True}
    definition = {
        "StartAt": "Map",
        "States": {
            "Map": {
                "Type": "Map",
                "ItemsPath": "$.items",
                "ItemProcessor": {"StartAt": "Task", "States": {"Task": task}},
                "End": True,
            }
        },
    }
    machine = states.create_state_machine(name=name, definition=json.dumps(definition), roleArn=_ROLE)[
        "stateMachineArn"
    ]
    items = json.dumps({"items": [{"n": number} for number in numbers]})
    execution = states.start_execution(stateMachineArn=machine, input=items)["executionArn"]
    wait_for(lambda: states.describe_execution(executionArn=execution)["status"] != "RUNNING")
    return dict(states.describe_execution(executionArn=execution))


@pytest.fixture
def function_arn(local_cloud: LocalCloud, unique: str, tmp_path: Path) -> str:
    (tmp_path / f"{unique}_module.py").write_text(HANDLER_MODULE)
    arn = local_cloud.register_function(
        unique,
        handler=f"{unique}_module.handler",
        workers=2,
        timeout_seconds=20,
        memory_mb=256,
        env={"SETTING": "as given", "PYTHONPATH": str(tmp_path)},
    )
    assert local_cloud.wait_function(unique, 60)
    return arn


def test_a_state_machine_invokes_a_registered_function(
    local_cloud: LocalCloud, aws: Callable[[str], Any], unique: str, function_arn: str
) -> None:
    done = execute(aws("stepfunctions"), unique, function_arn, [1, 2, 3])
    assert done["status"] == "SUCCEEDED"
    answers = json.loads(done["output"])
    assert [answer["twice"] for answer in answers] == [2, 4, 6]
    assert answers[0]["setting"] == "as given"
    assert answers[0]["endpoint"] == local_cloud.endpoint_url
    assert local_cloud.function_counters(unique)["invocations"] == 3
    local_cloud.remove_function(unique)


def test_a_handler_that_raises_fails_the_execution(
    local_cloud: LocalCloud, aws: Callable[[str], Any], unique: str, function_arn: str
) -> None:
    done = execute(aws("stepfunctions"), unique, function_arn, [1, -2])
    assert done["status"] == "FAILED"
    assert "negative: -2" in done["cause"]
    assert local_cloud.function_counters(unique)["errors_by_name"] == {"ValueError": 1}
    local_cloud.remove_function(unique)


def test_a_removed_function_is_unknown_everywhere(
    local_cloud: LocalCloud, aws: Callable[[str], Any], unique: str, function_arn: str
) -> None:
    local_cloud.remove_function(unique)
    local_cloud.remove_function(unique)
    client = aws("lambda")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function(FunctionName=unique)
    with pytest.raises(LocalStackError):
        local_cloud.function_counters(unique)


def test_children_meet_the_local_aws_and_nothing_of_the_user_s(local_cloud: LocalCloud) -> None:
    base = {
        "PATH": "/bin",
        "AWS_PROFILE": "production",
        "AWS_ENDPOINT_URL_S3": "https://elsewhere",
        "NO_PROXY": "intranet",
        "no_proxy": "example.com",
        "http_proxy": "http://proxy:3128",
    }
    environment = local_cloud.environment(base)
    assert environment["PATH"] == "/bin"
    assert environment["AWS_ENDPOINT_URL"] == local_cloud.endpoint_url
    assert environment["PEERLESS_BROKER_URL"] == local_cloud.broker_url
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet,example.com,127.0.0.1,localhost"
    assert environment["http_proxy"] == "http://proxy:3128"
    assert {"AWS_PROFILE", "AWS_ENDPOINT_URL_S3"}.isdisjoint(environment)


def test_no_server_listens_beyond_the_loopback_interface(local_cloud: LocalCloud) -> None:
    for child in local_cloud.children.values():
        for process in offspring(child.guard_pid):
            listening = [each for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
            assert {each.laddr.ip for each in listening} <= {"127.0.0.1"}


def test_two_clouds_side_by_side_and_nothing_outlives_a_killed_owner(local_cloud: LocalCloud, tmp_path: Path) -> None:
    owner = own(tmp_path)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"starting\n"
        assert owner.stdout.readline() == b"up\n"
        processes = offspring(owner.pid)
        assert len([process for process in processes if "guard.py" in " ".join(process.cmdline())]) == 3
    finally:
        owner.kill()
        ended(owner)
    wait_for(lambda: gone(processes))
    for name in ("ministack", "rabbitmq", "lambda"):
        assert not (tmp_path / name).exists()
    local_cloud.check()
    assert ministack.answers(int(local_cloud.endpoint_url.rpartition(":")[2]))


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    owner = own(tmp_path)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"starting\n"
    wait_for(lambda: len(offspring(owner.pid)) >= 4)
    processes = offspring(owner.pid)
    owner.send_signal(signal.SIGINT)
    status, error = ended(owner)
    assert status == -signal.SIGINT
    assert error.strip().endswith(b"KeyboardInterrupt")
    wait_for(lambda: gone(processes))


def test_a_start_that_fails_half_way_stops_the_rest(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    before = set(offspring(os.getpid()))
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
        LocalCloud.start(tmp_path, broker_url=f"amqp://me:secret@127.0.0.1:{port}/")
    assert set(offspring(os.getpid())) <= before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalStackError, match="the local servers cannot be started in"):
        LocalCloud.start(tmp_path / "file")


def test_a_server_that_dies_is_told(tmp_path: Path, broker_url: str) -> None:
    with LocalCloud.start(tmp_path, broker_url=broker_url) as cloud:
        assert rabbitmq.NAME not in cloud.children
        cloud.check()
        os.kill(cloud.children[ministack.NAME].pid, signal.SIGKILL)
        wait_for(lambda: cloud.children[ministack.NAME].poll() is not None)
        with pytest.raises(LocalStackError, match="MiniStack ended with status 137"):
            cloud.check()


def test_without_a_broker_none_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("PEERLESS_BROKER_URL", f"amqp://me:secret@127.0.0.1:{port}/")
    with LocalCloud.start(tmp_path, broker=False) as cloud:
        assert sorted(cloud.children) == ["Lambda service", "MiniStack"]
        assert cloud.environment({})["PEERLESS_BROKER_URL"] == ""


@pytest.fixture
def given_broker(monkeypatch: pytest.MonkeyPatch, broker_url: str) -> None:
    """Detached servers use the session's broker, to start sooner."""
    monkeypatch.setenv("PEERLESS_BROKER_URL", broker_url)


@pytest.mark.usefixtures("given_broker")
def test_detached_servers_stay_until_they_are_taken_down(tmp_path: Path, unique: str) -> None:
    assert LocalCloud.status(tmp_path) == {"state": "stopped", "folder": str(tmp_path)}
    up = LocalCloud.up(tmp_path)
    try:
        assert up["state"] == "running"
        assert set(up) == {"state", "folder", "ministack", "rabbitmq", "lambda"}
        assert LocalCloud.up(tmp_path) == up
        assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0
        password = LocalCloud.attach(tmp_path).broker_url.split(":")[2].split("@")[0]
        assert password not in json.dumps(up)
        with LocalCloud.attach(tmp_path) as cloud:
            cloud.register_function(unique, handler="json.dumps", workers=1, timeout_seconds=5, memory_mb=128)
        assert LocalCloud.status(tmp_path)["state"] == "running"
        alias = LocalCloud.attach(tmp_path).broker_url.replace("127.0.0.1", "localhost")
        assert LocalCloud.attach(tmp_path, broker_url=alias).environment()["PEERLESS_BROKER_URL"] == alias
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 "):
            LocalCloud.attach(tmp_path, broker_url="amqp://127.0.0.1:1/")
        supervisor = psutil.Process(int((tmp_path / "lock").read_text()))
        assert supervisor.ppid() != os.getpid()
        processes = [supervisor, *supervisor.children(recursive=True)]
    finally:
        down = LocalCloud.down(tmp_path)
    assert down["state"] == "stopped"
    wait_for(lambda: gone(processes))
    assert not (tmp_path / "state.json").exists()
    assert LocalCloud.down(tmp_path)["state"] == "stopped"
    with pytest.raises(LocalStackError, match="peerless local up"):
        LocalCloud.attach(tmp_path)


@pytest.mark.usefixtures("given_broker")
def test_servers_go_with_a_killed_supervisor(tmp_path: Path) -> None:
    LocalCloud.up(tmp_path)
    supervisor = psutil.Process(int((tmp_path / "lock").read_text()))
    processes = supervisor.children(recursive=True)
    state = State.read(tmp_path)
    assert state is not None
    os.kill(state.pids[lambda_start.NAME], signal.SIGKILL)  # the one whose functions would be lost: it is not mended
    wait_for(lambda: LocalCloud.status(tmp_path)["state"] == "failed")
    with pytest.raises(LocalStackError, match=r"does not answer.*peerless local down"):
        LocalCloud.up(tmp_path)
    supervisor.kill()
    wait_for(lambda: gone([supervisor, *processes]))
    assert LocalCloud.status(tmp_path)["state"] == "stopped"
    assert LocalCloud.down(tmp_path)["state"] == "stopped"


@pytest.mark.usefixtures("given_broker")
def test_detached_servers_are_mended_and_keep_the_buckets_of_unfinished_runs(tmp_path: Path) -> None:
    LocalCloud.up(tmp_path)
    try:
        cloud, notes, restored = LocalCloud.attach(tmp_path), list[str](), list[str]()
        assert cloud.mend(notes.append, restored.append) == []
        s3 = cloud.client("s3")
        for bucket in ("finished", "unfinished"):
            s3.create_bucket(Bucket=bucket)
            s3.put_object(Bucket=bucket, Key="a", Body=bucket.encode())
        unfinished.note(tmp_path, "run-1", ["unfinished"])
        state = State.read(tmp_path)
        assert state is not None
        os.kill(state.pids[ministack.NAME], signal.SIGKILL)
        wait_for(lambda: cloud.mend(notes.append, restored.append) == [] and restored == [ministack.NAME])
        assert notes == ["MiniStack was started again"]
        assert s3.get_object(Bucket="finished", Key="a")["Body"].read() == b"finished"
        LocalCloud.down(tmp_path)
        LocalCloud.up(tmp_path)
        s3 = LocalCloud.attach(tmp_path).client("s3")
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["unfinished"]
        assert s3.get_object(Bucket="unfinished", Key="a")["Body"].read() == b"unfinished"
        unfinished.forget(tmp_path, "run-1")
    finally:
        LocalCloud.down(tmp_path)
    assert not (tmp_path / S3_FOLDER).exists()


def test_what_detached_servers_meet_is_told_as_if_they_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("PEERLESS_BROKER_URL", f"amqp://me:secret@127.0.0.1:{port}/")
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
        LocalCloud.up(tmp_path)
    wait_for(lambda: LocalCloud.status(tmp_path)["state"] == "stopped")


@pytest.fixture
def slow_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker that keeps silent, so that detached servers stay in their start for five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PEERLESS_BROKER_URL", f"amqp://me:secret@127.0.0.1:{silent.getsockname()[1]}/")
        yield


UP = "import sys, pathlib; from infra.local.cloud import LocalCloud; LocalCloud.up(pathlib.Path(sys.argv[1]))"


@pytest.mark.usefixtures("slow_broker")
def test_detached_servers_stop_when_their_launcher_dies_before_they_are_up(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: LocalCloud.status(tmp_path)["state"] == "starting")
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not mentioned(str(tmp_path)))
    assert LocalCloud.status(tmp_path)["state"] == "stopped"


@pytest.mark.usefixtures("slow_broker")
def test_detached_servers_can_be_taken_down_while_they_start(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path)], stderr=subprocess.PIPE, cwd=ROOT)
    wait_for(lambda: LocalCloud.status(tmp_path)["state"] == "starting")
    assert LocalCloud.down(tmp_path)["state"] == "stopped"
    status, error = ended(launcher)
    assert status == 1
    assert b"starting the local servers was interrupted" in error
    wait_for(lambda: not mentioned(str(tmp_path)))
