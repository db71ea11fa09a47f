"""`peerless deploy` onto the local AWS with the real CDK command, training on what it deployed, and `destroy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.local.cloud import LocalCloud
from peerless.launch.deployed import Deployment, stack_names
from peerless.launch.run_folder import LOCAL_FOLDER
from tests.e2e.conftest import Workplace

pytestmark = pytest.mark.slow  # tests/integration/test_deploy_fails.py has the CDK command in `make test`
NAME = "whole"
#: 480 samples over 4 peers, batches of 40, one a round: three rounds.
CONFIGURATION = [
    f"--set=aws.name={NAME}", "--set=epochs=1", "--set=batches_per_round=1", "--set=data.train_samples=480", "--peers=4"
]  # fmt: skip

Clients = Callable[[str], Any]


@pytest.fixture(scope="module")
def clients(workplace: Workplace) -> Clients:
    """boto3 clients of the workplace's local AWS."""
    return LocalCloud.attach(workplace.path / LOCAL_FOLDER).client


@pytest.fixture(scope="module")
def before(clients: Clients) -> set[str]:
    """All that is there before the deployment."""
    return inventory(clients)


@pytest.fixture(scope="module")
def deployment(workplace: Workplace, clients: Clients, before: set[str]) -> Iterator[Deployment]:
    """Deployed as a user does it; the last test here destroys it."""
    done = workplace.peerless("deploy", "config.toml", "--local", *CONFIGURATION)
    assert done.returncode == 0, done.stderr
    yield Deployment.find(clients, NAME)
    workplace.peerless("destroy", "--local", "--name", NAME, "--purge", "--yes")


def inventory(clients: Clients) -> set[str]:
    """Everything on the local AWS that a deployment consists of, but for the CDK's own."""
    found = set()
    for stack in clients("cloudformation").describe_stacks()["Stacks"]:
        found.add(f"stack {stack['StackName']} {stack['StackStatus']}")
    found |= {f"bucket {row['Name']}" for row in clients("s3").list_buckets()["Buckets"]}
    found |= {f"function {row['FunctionName']}" for row in pages(clients("lambda"), "list_functions", "Functions")}
    machines = pages(clients("stepfunctions"), "list_state_machines", "stateMachines")
    found |= {f"machine {row['name']}" for row in machines}
    found |= {f"role {row['RoleName']}" for row in pages(clients("iam"), "list_roles", "Roles")}
    policies = clients("iam").list_policies(Scope="Local")["Policies"]
    found |= {f"policy {row['PolicyName']}" for row in policies}
    groups = clients("logs").describe_log_groups()["logGroups"]
    found |= {f"log group {row['logGroupName']}" for row in groups}
    return {name for name in found if not name.split()[1].startswith(("CDKToolkit", "cdk-"))}


def pages(client: Any, operation: str, key: str) -> list[dict[str, Any]]:
    return [row for page in client.get_paginator(operation).paginate() for row in page[key]]


def test_everything_is_found_by_the_stacks_outputs(deployment: Deployment, clients: Clients) -> None:
    assert deployment.settings.local
    assert len({deployment.run_bucket, *deployment.peer_buckets}) == 5
    there = inventory(clients)
    assert {f"stack {name} CREATE_COMPLETE" for name in stack_names(deployment.settings)} <= there
    assert {f"bucket {name}" for name in (deployment.run_bucket, *deployment.peer_buckets)} <= there
    assert {f"function {name}" for name in deployment.functions} <= there
    machines = {arn.rpartition(":")[2] for arn in (*deployment.inline_machines, *deployment.distributed_machines)}
    assert len(machines) == 8
    assert {f"machine {name}" for name in machines} <= there
    assert {f"role {arn.rpartition('/')[2]}" for arn in deployment.machine_roles} <= there


def test_four_peers_train_three_rounds_on_what_was_deployed(
    deployment: Deployment, clients: Clients, workplace: Workplace
) -> None:
    there = inventory(clients)
    summary = workplace.train("--deployed", *CONFIGURATION, run_dir="deployed")
    assert summary["rounds"] == 3
    assert len(summary["weights_sha256"]) == 4
    assert len(set(summary["weights_sha256"].values())) == 1
    assert summary["lambda_invocations"] == summary["lambda_service"]["invocations"] == 4 * 3
    assert summary["lambda_service"]["errors"] == 0
    for rank, arn in enumerate(deployment.inline_machines):
        rows = clients("stepfunctions").list_executions(stateMachineArn=arn)["executions"]
        assert [row["status"] for row in rows] == ["SUCCEEDED"] * 3, f"peer {rank}'s own machine ran its three rounds"
    keys = {row["Key"] for row in pages_of_bucket(clients, deployment.run_bucket)}
    run = summary["run_id"]
    assert len([key for key in keys if key.startswith(f"runs/{run}/commits/")]) >= 3
    for rank, bucket in enumerate(deployment.peer_buckets):
        mine = {row["Key"] for row in pages_of_bucket(clients, bucket)}
        assert mine
        assert all(f"/{run}/peers/{rank:04d}/" in key for key in mine), "nobody else's data are in a peer's bucket"
    assert inventory(clients) == there, "the run's data stay in the deployed buckets, and it leaves nothing else"


def test_a_machine_with_a_branch_per_batch_is_made_for_the_run_and_removed(
    deployment: Deployment, clients: Clients, workplace: Workplace
) -> None:
    there = inventory(clients)
    form = ["--set=compute.state_machine=parallel", "--peers=2", "--set=data.train_samples=80"]
    summary = workplace.train("--deployed", *CONFIGURATION, *form, run_dir="deployed-parallel")
    assert (summary["rounds"], summary["lambda_invocations"]) == (1, 2)
    assert inventory(clients) == there


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--peers=5"], "deployment 'whole' has 4 peers, but the configuration asks for 5"),
        (["--set=aws.name=other"], "there is no deployment 'other' here; `peerless deploy CONFIG` makes one"),
    ],
)
def test_a_run_that_does_not_fit_the_deployment_is_refused(
    deployment: Deployment, workplace: Workplace, arguments: list[str], told: str
) -> None:
    words = ["--local", "--deployed", "--run-dir", "refused", *CONFIGURATION, *arguments]
    done = workplace.peerless("train", "config.toml", *words)
    assert done.returncode == 2
    assert told in one_sentence(done.stderr)
    assert not (workplace.path / "refused").exists()


def test_a_changed_configuration_changes_the_deployment(
    deployment: Deployment, clients: Clients, workplace: Workplace
) -> None:
    there = inventory(clients)
    done = workplace.peerless("deploy", "config.toml", "--local", *CONFIGURATION, "--set=compute.memory_mb=2048")
    assert done.returncode == 0, done.stderr
    assert Deployment.find(clients, NAME).settings.memory_mb == 2048
    assert clients("lambda").get_function(FunctionName=deployment.functions[3])["Configuration"]["MemorySize"] == 2048
    assert inventory(clients) - there == {f"stack {name} UPDATE_COMPLETE" for name in stack_names(deployment.settings)}


def test_destroying_leaves_nothing(
    deployment: Deployment, before: set[str], clients: Clients, workplace: Workplace
) -> None:
    """Last, because it takes away what the others use."""
    done = workplace.peerless("destroy", "--local", "--name", NAME, "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert inventory(clients) == before
    again = workplace.peerless("destroy", "--local", "--name", NAME, "--purge", "--yes")
    assert again.returncode == 2
    assert f"no deployment {NAME!r}" in one_sentence(again.stderr)


def test_without_local_servers_there_is_nothing_to_deploy_onto(lonely_workplace: Workplace) -> None:
    for words in (["deploy", "config.toml"], ["destroy", "--purge", "--yes"]):
        done = lonely_workplace.peerless(*words, "--local")
        assert done.returncode == 1
        assert "start them with `peerless local up`" in one_sentence(done.stderr)


def pages_of_bucket(clients: Clients, bucket: str) -> list[dict[str, Any]]:
    pages = clients("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [row for page in pages for row in page.get("Contents", ())]


def one_sentence(error: str) -> str:
    told = [line for line in error.splitlines() if line.startswith("peerless: ")]
    assert len(told) == 1, error
    assert "Traceback" not in error
    return told[0]
