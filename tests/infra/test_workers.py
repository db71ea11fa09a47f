"""Gradient workers and state machines: per peer, within limits, with what their handler reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from contract.env import ALLOCATOR, ReducerEnv, WorkerEnv
from infra import outputs
from infra.local.lambda_client import LambdaService
from statemachines import Mode, definition
from tests.infra.deployment import Deployment

#: Set by Lambda itself (https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html), or only locally.
NOT_OURS = {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}
#: Read by OpenMP and MKL under torch.
THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
#: These, and what the C library reads.
LIBRARIES = THREADS | set(ALLOCATOR)


class Recorder(Mapping[str, str]):
    """An environment that remembers what was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values_, self.asked = dict(values), set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def lists(deployment: Deployment, name: str) -> list[str]:
    """An output of all Workers stacks, joined in rank order."""
    groups = range(len(deployment.settings.groups))
    return [part for number in groups for part in deployment.output(f"{outputs.WORKERS}{number}", name).split(",")]


def functions(deployment: Deployment, kind: str = "") -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Functions of workers and reducers, or of the one kind; other stacks have functions of their own."""
    found = [found for found in deployment.of("AWS::Lambda::Function") if f"-{outputs.WORKERS}" in found[0]]
    return [each for each in found if kind in each[0].rpartition("/")[2]]


def machines(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Properties of the peers' state machines by ARN; the time limit has one of its own."""
    found = {}
    for stack, id, _ in deployment.stacks.resources("AWS::StepFunctions::StateMachine"):
        if f"-{outputs.WORKERS}" not in stack:
            continue
        resource = deployment.templates[stack]["Resources"][id]
        found[deployment.stacks.arn(stack, id)] = deployment.stacks.resolve(resource["Properties"], stack)
    return found


def test_outputs_have_one_entry_per_rank(deployment: Deployment) -> None:
    peers = deployment.settings.peers
    for name in (outputs.FUNCTIONS, outputs.FUNCTION_ARNS):
        assert len(lists(deployment, name)) == peers
        assert len(set(lists(deployment, name))) == (1 if deployment.settings.shared_worker else peers)
    for name in (outputs.REDUCERS, outputs.REDUCER_ARNS) if deployment.settings.reduce else ():
        assert len(lists(deployment, name)) == peers
        assert len(set(lists(deployment, name))) == (1 if deployment.settings.shared_worker else peers)
    for name in (outputs.INLINE_MACHINES, outputs.DISTRIBUTED_MACHINES, outputs.MACHINE_ROLES):
        assert len(set(lists(deployment, name))) == peers


def test_functions_are_as_the_settings_say(on_aws: Deployment) -> None:
    settings = on_aws.settings
    found, most = functions(on_aws), 1 if settings.shared_worker else settings.peers
    reducers = functions(on_aws, "Reducer")
    assert (len(found), len(reducers)) == ((2 * most, most) if settings.reduce else (most, 0))
    for _, _, properties in reducers:
        assert properties["ImageConfig"] == {"Command": ["lambdas.gradient_reducer.handler.handler"]}
        assert "ReservedConcurrentExecutions" not in properties, "reducers run when workers have ended"
    for where, _, properties in functions(on_aws, "Worker"):
        assert properties.get("ReservedConcurrentExecutions", 0) == settings.reserved_concurrency, where
        assert "ImageConfig" not in properties, "the image's own handler"
    for where, _, properties in found:
        assert properties["PackageType"] == "Image", where
        assert properties["Architectures"] == [settings.architecture], where
        assert (properties["MemorySize"], properties["Timeout"]) == (settings.memory_mb, settings.timeout_seconds)
        assert properties.get("SnapStart") == ({"ApplyOn": "PublishedVersions"} if settings.snap_start else None)
        assert properties["TracingConfig"] == {"Mode": "Active"}, where
        assert "VpcConfig" not in properties, where
        assert "FunctionName" not in properties, f"{where}: a name chosen by hand collides"


def test_every_function_and_machine_logs_into_a_group_that_expires(deployment: Deployment) -> None:
    groups = {deployment.stacks.resolve({"Ref": id}, stack) for stack, id, _ in deployment.stacks.resources(LOG_GROUP)}
    for where, _, properties in functions(deployment):
        assert properties["LoggingConfig"]["LogGroup"] in groups, where
    for arn, properties in machines(deployment).items():
        (destination,) = properties["LoggingConfiguration"]["Destinations"]
        assert destination["CloudWatchLogsLogGroup"]["LogGroupArn"].split(":")[6] in groups, arn
        assert properties["LoggingConfiguration"]["IncludeExecutionData"] is False
        assert properties["TracingConfiguration"] == {"Enabled": True}, arn
    for where, _, properties in deployment.of(LOG_GROUP):
        assert properties["RetentionInDays"] == deployment.settings.log_days, where


LOG_GROUP = "AWS::Logs::LogGroup"


def test_an_alias_of_a_published_version_is_invoked(on_aws: Deployment) -> None:
    aliases = {
        on_aws.stacks.resolve({"Ref": id}, stack): on_aws.stacks.resolve(resource["Properties"], stack)
        for stack, id, resource in on_aws.stacks.resources("AWS::Lambda::Alias")
    }
    names = dict(zip(lists(on_aws, outputs.FUNCTION_ARNS), lists(on_aws, outputs.FUNCTIONS), strict=True))
    if on_aws.settings.reduce:
        names |= dict(zip(lists(on_aws, outputs.REDUCER_ARNS), lists(on_aws, outputs.REDUCERS), strict=True))
    for arn, name in names.items():
        assert aliases[arn]["FunctionName"] == name
        assert "RoutingConfig" not in aliases[arn]
    versions = [where for where, _, _ in on_aws.of("AWS::Lambda::Version") if f"-{outputs.WORKERS}" in where]
    assert len(versions) == len(aliases)


def test_machines_are_the_generated_definitions_for_the_peers_own_function(deployment: Deployment) -> None:
    settings, found = deployment.settings, machines(deployment)
    arns = lists(deployment, outputs.FUNCTION_ARNS)
    reducers = lists(deployment, outputs.REDUCER_ARNS) if settings.reduce else [""] * settings.peers
    roles = lists(deployment, outputs.MACHINE_ROLES)
    kinds = [
        (outputs.INLINE_MACHINES, Mode.INLINE_MAP, "EXPRESS" if settings.express else "STANDARD"),
        (outputs.DISTRIBUTED_MACHINES, Mode.DISTRIBUTED_MAP, "STANDARD"),
    ]
    assert len(found) == 2 * settings.peers
    for output, mode, kind in kinds:
        for rank, machine in enumerate(lists(deployment, output)):
            properties = found[machine]
            assert json.loads(properties["DefinitionString"]) == definition(
                mode,
                function_arn=arns[rank],
                batches=None,
                concurrency=settings.concurrency,
                timeout_seconds=settings.timeout_seconds,
                tolerated=settings.tolerated_failures,
                reducer_arn=reducers[rank],
            )
            assert properties.get("StateMachineType", "STANDARD") == kind
            assert properties["LoggingConfiguration"]["Level"] == ("ALL" if kind == "EXPRESS" else "ERROR")
            assert properties["RoleArn"] == roles[rank]


def test_a_machine_waits_for_its_roles_rights(deployment: Deployment) -> None:
    """CloudFormation checks a machine's logging with its role when it makes it."""
    for where, resource, _ in deployment.of("AWS::StepFunctions::StateMachine"):
        policies = {id for stack, id, _ in deployment.stacks.resources("AWS::IAM::Policy") if where.startswith(stack)}
        assert policies & set(resource["DependsOn"]), where


def test_a_worker_has_every_variable_that_its_handler_reads_and_no_other(
    on_aws: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where, _, properties in functions(on_aws, "Reducer"):
        variables = properties["Environment"]["Variables"]
        environment = Recorder({**variables, "AWS_REGION": "us-east-1"})
        ReducerEnv.read(environment)
        assert (set(variables), environment.asked - NOT_OURS) == (LIBRARIES, set()), f"{where}: it runs no own code"
    for where, _, properties in functions(on_aws, "Worker"):
        variables = properties["Environment"]["Variables"]
        assert all(isinstance(value, str) for value in variables.values())
        in_lambda = {**variables, "AWS_REGION": "us-east-1"}
        if code := variables.get("PEERLESS_CODE_DIR"):
            assert code == "/opt/peerless/code"
            in_lambda["PEERLESS_CODE_DIR"] = str(tmp_path)
        environment = Recorder(in_lambda)
        WorkerEnv.read(environment)
        ours = environment.asked - NOT_OURS
        # Sandboxes of Lambda share no folder; where there is no own code, its folder is not set on purpose.
        unset = {"PEERLESS_SHARED_DIR"} | (set() if on_aws.settings.code_dir else {"PEERLESS_CODE_DIR"})
        assert set(variables) == (ours - unset) | LIBRARIES, where
        assert {variables[name] for name in THREADS} == {str(on_aws.settings.threads)}


def test_local_functions_send_their_invocations_to_the_local_service(deployments: dict[str, Deployment]) -> None:
    local = deployments["local"]
    service = LambdaService(9)
    assert service.url == local.settings.lambda_url
    for where, _, properties in functions(local):
        assert properties["Environment"]["Variables"] == {
            "MINISTACK_LAMBDA_PROXY_URL": service.invoke_url(properties["FunctionName"])
        }, where
    assert lists(local, outputs.FUNCTIONS) == [f"Peerless-local-gradient-{rank:04d}" for rank in range(4)]
    assert lists(local, outputs.REDUCERS) == [f"Peerless-local-reduce-{rank:04d}" for rank in range(4)]
    assert all(arn.endswith(f":function:{name}") for arn, name in zip(
        lists(local, outputs.FUNCTION_ARNS), lists(local, outputs.FUNCTIONS), strict=True
    ))  # fmt: skip


def test_only_what_a_local_deployment_supports_is_in_it(deployments: dict[str, Deployment]) -> None:
    local = deployments["local"]
    kinds = {resource["Type"] for template in local.templates.values() for resource in template["Resources"].values()}
    assert kinds == {
        "AWS::S3::Bucket",
        "AWS::S3::BucketPolicy",
        "AWS::IAM::Role",
        "AWS::IAM::Policy",
        "AWS::Lambda::Function",
        "AWS::Logs::LogGroup",
        "AWS::StepFunctions::StateMachine",
    }
