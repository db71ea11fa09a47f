"""status, logs, stop and destroy, as a user types them, on a deployment on the local AWS."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.keys import current_place
from contract.records import Current
from infra import outputs
from infra.local.cloud import LocalCloud
from infra.settings import Settings
from peerless.cli import main
from peerless.launch import parallel
from peerless.launch.deployed import Deployment
from peerless.launch.stacks import Stack
from peerless.launch.stop import delete_old_versions
from tests.fakes.aws_deployment import deploy

Clients = Callable[[str], Any]
PEERS = 3


@pytest.fixture
def clients(aws: Clients) -> Clients:
    return functools.cache(aws)


@pytest.fixture
def deployment(
    local_cloud: LocalCloud, clients: Clients, unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    for name, value in local_cloud.aws_environment(os.environ).items():
        monkeypatch.setenv(name, value)
    settings = Settings(name=unique, peers=PEERS, workers=False, broker=False, network="private")
    names = deploy(clients, settings)
    found = Deployment.find(clients, unique)
    yield found
    for name in reversed(names):
        clients("cloudformation").delete_stack(StackName=name)
    here = {bucket["Name"] for bucket in clients("s3").list_buckets()["Buckets"]}
    for bucket in {found.run_bucket, *found.peer_buckets} & here:
        for page in clients("s3").get_paginator("list_object_versions").paginate(Bucket=bucket):
            for row in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                clients("s3").delete_object(Bucket=bucket, Key=row["Key"], VersionId=row["VersionId"])
        clients("s3").delete_bucket(Bucket=bucket)


@pytest.fixture
def peerless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; gives exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peerless", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


Peerless = Callable[..., tuple[int, str, str]]


def stacks(clients: Clients, deployment: Deployment) -> set[str]:
    prefix = f"{deployment.settings.prefix}-"
    names = [stack["StackName"] for stack in clients("cloudformation").describe_stacks()["Stacks"]]
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def buckets(clients: Clients, deployment: Deployment) -> int:
    here = {bucket["Name"] for bucket in clients("s3").list_buckets()["Buckets"]}
    return len(here & {deployment.run_bucket, *deployment.peer_buckets})


def test_status_before_and_while_something_runs(deployment: Deployment, clients: Clients, peerless: Peerless) -> None:
    name = deployment.settings.name
    status, out, _ = peerless("status", "--name", name, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["stacks"] == dict.fromkeys(["Images", "Network", "Peers0", "Storage", "Watch"], "CREATE_COMPLETE")
    assert (found["peers_wanted"], found["peers_in_service"], found["run"]) == (0, [], None)
    assert found["usd_per_hour"] == pytest.approx(0.05 + 3.5 / 730, abs=1e-4)  # NAT, dashboard, five metrics in alarms
    clients("autoscaling").set_desired_capacity(AutoScalingGroupName=deployment.groups[1], DesiredCapacity=1)
    status, out, _ = peerless("status", "--name", name, "--json")
    found = json.loads(out)
    assert (found["peers_wanted"], found["peers_in_service"]) == (1, [1])
    assert found["usd_per_hour_by_part"]["peers, 1 x t4g.medium"] == pytest.approx(0.0336)
    record = Current(run="gone-1", created=SystemClock().now()).to_json()
    clients("s3").put_object(Bucket=deployment.run_bucket, Key=current_place("").key, Body=record)
    status, out, _ = peerless("status", "--name", name)
    assert status == 0
    assert "peers          1 wanted, in service: 1" in out
    assert "run            cannot be read: s3://" in out


def test_logs_of_one_peer_and_of_all(deployment: Deployment, clients: Clients, peerless: Peerless) -> None:
    name, (group,), logs = deployment.settings.name, deployment.log_groups, clients("logs")
    now = SystemClock().now()
    for stream, ago, text in (("0000/i-a", 20, "first"), ("0002/i-b", 10, "second\n"), ("0000/i-a", 7_200, "old")):
        if ago != 7_200:
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        event = {"timestamp": round((now - ago) * 1_000), "message": text}
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])
    status, out, _ = peerless("logs", "--name", name)
    assert status == 0
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["0000/i-a first", "0002/i-b second"]
    status, out, _ = peerless("logs", "--name", name, "--peer", "2", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["second"]
    status, out, _ = peerless("logs", "--name", name, "--since", "3")
    assert len(out.splitlines()) == 3
    for arguments, told in (
        (["--peer", "3"], "there is no peer 3; the deployment"),
        (["--workers"], "the deployment has no gradient workers"),
        (["--broker"], "the deployment has no broker"),
    ):
        status, _, err = peerless("logs", "--name", name, *arguments)
        assert status == 2
        assert told in err


def test_stopping_keeps_the_data_and_what_costs_nothing(
    deployment: Deployment, clients: Clients, peerless: Peerless
) -> None:
    name = deployment.settings.name
    clients("s3").put_object(Bucket=deployment.run_bucket, Key="runs/x/run.json", Body=b"{}")
    status, _, err = peerless("stop", "--name", name)
    assert status == 2
    assert "stop the deployment" in err
    assert "add --yes" in err
    assert len(stacks(clients, deployment)) == 5
    status, out, _ = peerless("stop", "--name", name, "--yes", "--json")
    assert status == 0
    assert {title.rpartition("-")[2] for title in json.loads(out)["deleted"]} == {"Network", "Peers0", "Watch"}
    assert stacks(clients, deployment) == {"Storage", "Images"}
    assert buckets(clients, deployment) == 1 + PEERS
    status, out, _ = peerless("status", "--name", name, "--json")
    assert json.loads(out)["usd_per_hour"] == 0
    status, _, err = peerless("train", "absent.toml")
    assert status == 2
    status, _, err = peerless("logs", "--name", name)
    assert "has no peers now" in err
    status, out, _ = peerless("stop", "--name", name, "--yes", "--json")
    assert (status, json.loads(out)["deleted"]) == (0, [])


def test_versions_that_no_alias_names_are_deleted(aws: Clients, unique: str) -> None:
    clients, code = functools.cache(aws), io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("index.py", "def handler(event, context): return 1")
    functions = clients("lambda")
    functions.create_function(
        FunctionName=unique, Runtime="python3.12", Role="arn:aws:iam::000000000000:role/r", Handler="index.handler",
        Code={"ZipFile": code.getvalue()},
    )  # fmt: skip
    workers = [
        Stack(name="w", title="Workers0", status="", outputs={"Functions": f"{unique},{unique},absent-{unique}"})
    ]
    functions.publish_version(FunctionName=unique)
    assert delete_old_versions(clients, workers) == 0, "without an alias nobody says which one is in use"
    functions.update_function_configuration(FunctionName=unique, Description="another")
    last = functions.publish_version(FunctionName=unique)["Version"]
    functions.create_alias(FunctionName=unique, Name="live", FunctionVersion=last)
    assert delete_old_versions(clients, workers) == 1
    left = functions.list_versions_by_function(FunctionName=unique)["Versions"]
    assert {row["Version"] for row in left} == {"$LATEST", last}
    functions.delete_function(FunctionName=unique)


def test_machines_of_runs_are_found_by_their_names(aws: Clients, unique: str) -> None:
    clients, prefix = functools.cache(aws), f"Peerless-{unique}"
    machine = json.dumps({"StartAt": "A", "States": {"A": {"Type": "Pass", "End": True}}})

    def make(name: str) -> None:
        role = "arn:aws:iam::000000000000:role/r"
        clients("stepfunctions").create_state_machine(name=name, definition=machine, roleArn=role)

    for rank in (0, 1):
        for run in ("run-a", "run-b"):
            make(outputs.parallel_machine(prefix, rank, run))
    make(f"{prefix}-Inline")
    make(outputs.parallel_machine(f"{prefix}-2", 0, "run-a"))
    assert parallel.remove(clients, prefix, "run-a") == 2
    assert parallel.remove(clients, prefix) == 2
    assert parallel.remove(clients, prefix) == 0
    assert parallel.remove(clients, f"{prefix}-2") == 1
    machines = clients("stepfunctions").list_state_machines()["stateMachines"]
    (left,) = [row for row in machines if row["name"].startswith(prefix)]
    assert left["name"] == f"{prefix}-Inline"
    clients("stepfunctions").delete_state_machine(stateMachineArn=left["stateMachineArn"])


def test_destroying_asks_for_the_data_apart(deployment: Deployment, clients: Clients, peerless: Peerless) -> None:
    name, run_bucket = deployment.settings.name, deployment.run_bucket
    clients("s3").put_bucket_versioning(Bucket=run_bucket, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"one", b"two"):
        clients("s3").put_object(Bucket=run_bucket, Key="runs/x/results/000000.json", Body=body)
    status, out, err = peerless("destroy", "--name", name, "--yes", "--json")
    assert status == 0
    assert set(json.loads(out)["buckets_left"]) == {run_bucket, *deployment.peer_buckets}
    assert "4 buckets stay with their data; `peerless destroy --purge` deletes them" in err
    assert stacks(clients, deployment) == {"Storage"}, "by which the buckets are found again"
    assert buckets(clients, deployment) == 1 + PEERS
    status, out, _ = peerless("destroy", "--name", name, "--yes", "--purge", "--json")
    assert (status, json.loads(out)["buckets_left"]) == (0, [])
    assert stacks(clients, deployment) == set()
    assert buckets(clients, deployment) == 0
    groups = clients("logs").describe_log_groups()["logGroups"]
    assert not [group for group in groups if name in group["logGroupName"]]
    status, _, err = peerless("destroy", "--name", name, "--yes", "--purge")
    assert status == 2
    assert f"there is no deployment {name!r} here" in err


def test_empty_buckets_go_without_a_question(deployment: Deployment, clients: Clients, peerless: Peerless) -> None:
    status, out, err = peerless("destroy", "--name", deployment.settings.name, "--yes", "--json")
    assert (status, json.loads(out)["buckets_left"]) == (0, [])
    assert stacks(clients, deployment) == set()
    assert buckets(clients, deployment) == 0
    assert "the CDK's own stack CDKToolkit stays" in err
