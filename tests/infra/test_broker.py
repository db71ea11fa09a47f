"""The broker: private, over TLS, one account per peer whose password stands in no template, and a function that makes
the accounts and cannot keep CloudFormation waiting."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import outputs
from infra.amazon_mq import ADMINISTRATOR, rabbitmq_conf, rights, user_name
from tests.infra.deployment import Deployment
from tests.infra.simulator import Request

HANDLER = Path(__file__).resolve().parents[2] / "lambdas/broker_users/handler.py"
REFERENCE = "{{resolve:secretsmanager:"


@pytest.fixture(params=["default", "full"])
def with_broker(request: pytest.FixtureRequest, deployments: dict[str, Deployment]) -> Deployment:
    return deployments[request.param]


def broker(deployment: Deployment) -> dict[str, Any]:
    ((_, _, properties),) = deployment.of("AWS::AmazonMQ::Broker")
    return properties


def secrets(deployment: Deployment) -> dict[str, str]:
    """ARN of the secret by user name."""
    found = {}
    for stack, id, resource in deployment.stacks.resources("AWS::SecretsManager::Secret"):
        generated = resource["Properties"]["GenerateSecretString"]
        found[json.loads(generated["SecretStringTemplate"])["username"]] = deployment.stacks.resolve({"Ref": id}, stack)
    return found


def test_without_a_broker_there_is_nothing_of_it(deployments: dict[str, Deployment]) -> None:
    for name in ("shared", "local"):
        assert not deployments[name].has(outputs.BROKER)
        assert not deployments[name].of("AWS::AmazonMQ::Broker")
        assert not deployments[name].of("AWS::SecretsManager::Secret")


def test_it_is_private_and_of_the_form_that_was_asked_for(with_broker: Deployment) -> None:
    settings, found = with_broker.settings, broker(with_broker)
    assert (found["EngineType"], found["EngineVersion"]) == ("RABBITMQ", "4.2")
    assert found["PubliclyAccessible"] is False
    assert found["HostInstanceType"] == settings.broker_instance_type
    assert found["AutoMinorVersionUpgrade"] is True
    assert found["MaintenanceWindowStartTime"]["DayOfWeek"] == "SUNDAY"
    assert found["Logs"] == {"General": True}
    mode, subnets = ("CLUSTER_MULTI_AZ", 2) if settings.broker_cluster else ("SINGLE_INSTANCE", 1)
    assert (found["DeploymentMode"], len(found["SubnetIds"])) == (mode, subnets)
    assert len(found["BrokerName"]) <= 50
    assert "AWS::StackId" in json.dumps(
        with_broker.templates[f"{settings.prefix}-Broker"]["Resources"]["Broker"]["Properties"]["BrokerName"]
    ), "two deployments of one name, in turn, must not collide"


def test_its_configuration_is_the_one_of_the_settings(with_broker: Deployment) -> None:
    ((_, resource, _),) = with_broker.of("AWS::AmazonMQ::Configuration")
    data = resource["Properties"]["Data"]["Fn::Base64"]
    assert data == rabbitmq_conf(with_broker.settings.peers, with_broker.settings.broker_instance_type)


def test_it_admits_peers_over_amqps_and_the_function_over_https(with_broker: Deployment) -> None:
    (own,) = broker(with_broker)["SecurityGroups"]
    rules = {
        (rule["FromPort"], rule["SourceSecurityGroupId"])
        for _, _, rule in with_broker.of("AWS::EC2::SecurityGroupIngress")
        if rule["GroupId"] == own
    }
    (function,) = functions(with_broker)
    (users_group,) = function["VpcConfig"]["SecurityGroupIds"]
    assert (443, users_group) in rules
    ((port, peers_group),) = rules - {(443, users_group)}
    assert port == 5671
    for _, _, template in with_broker.of("AWS::EC2::LaunchTemplate"):
        data = template["LaunchTemplateData"]
        interfaces = data.get("NetworkInterfaces") or [{"Groups": data.get("SecurityGroupIds")}]
        assert [interface["Groups"] for interface in interfaces] == [[peers_group]]


def test_passwords_are_generated_one_per_account_and_stand_in_no_template(with_broker: Deployment) -> None:
    peers = with_broker.settings.peers
    assert set(secrets(with_broker)) == {ADMINISTRATOR, *(user_name(rank) for rank in range(peers))}
    for where, resource, properties in with_broker.of("AWS::SecretsManager::Secret"):
        assert "SecretString" not in properties, where
        assert "Name" not in properties, f"{where}: a name chosen by hand collides"
        assert properties["GenerateSecretString"]["PasswordLength"] >= 32, where
        assert resource["DeletionPolicy"] == "Delete", f"{where}: it costs 0.40 USD a month"
    passwords = [user["Password"] for user in broker(with_broker)["Users"]]
    passwords += [value for user in accounts(with_broker) for value in [user["Password"]]]
    assert len(passwords) == 1 + peers
    assert all(password.startswith(REFERENCE) and password.endswith("}}") for password in passwords)


def test_every_account_is_its_peer_s_with_its_rights_and_secret(with_broker: Deployment) -> None:
    found = accounts(with_broker)
    assert len(found) == with_broker.settings.peers
    for rank, user in enumerate(found):
        may, arn = rights(rank), secrets(with_broker)[user_name(rank)]
        assert user == {
            "Username": user_name(rank),
            "Password": f"{REFERENCE}{arn}:SecretString:password::}}}}",
            "Configure": may.configure,
            "Write": may.write,
            "Read": may.read,
        }


def test_no_role_reads_another_account_s_secret(with_broker: Deployment) -> None:
    account, readers = with_broker.account(), 0
    for stack, id, _ in with_broker.stacks.resources("AWS::IAM::Role"):
        role = with_broker.stacks.arn(stack, id)
        may = [
            name
            for name, arn in secrets(with_broker).items()
            if account.allows(role, Request("secretsmanager:GetSecretValue", arn))
        ]
        rank = account.tags(role).get("peerless:peer", "")
        is_peer = "-Peers" in stack
        assert may == ([user_name(int(rank))] if is_peer else []), role
        readers += is_peer
    assert readers == with_broker.settings.peers


def test_the_function_answers_before_cloudformation_gives_up(with_broker: Deployment) -> None:
    (function,) = functions(with_broker)
    assert function["Timeout"] == 300
    for resource in custom_resources(with_broker):
        assert int(resource["ServiceTimeout"]) > function["Timeout"]
        assert int(resource["ServiceTimeout"]) <= 600
    ((_, _, invoked),) = with_broker.of("AWS::Lambda::EventInvokeConfig")
    assert invoked["MaximumRetryAttempts"] == 0


def test_the_function_stands_where_only_broker_and_s3_can_be_reached(with_broker: Deployment) -> None:
    (function,) = functions(with_broker)
    assert set(broker(with_broker)["SubnetIds"]) <= set(function["VpcConfig"]["SubnetIds"])
    assert len(function["VpcConfig"]["SubnetIds"]) == 2


def test_the_function_reads_no_environment_and_is_given_none(with_broker: Deployment) -> None:
    (function,) = functions(with_broker)
    assert "Environment" not in function
    assert "environ" not in HANDLER.read_text(encoding="utf-8")


def test_the_function_needs_nothing_but_the_standard_library() -> None:
    """Its package is that one file."""
    tree = ast.parse(HANDLER.read_text(encoding="utf-8"))
    imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_a_function_of_that_name_is_in_the_package(with_broker: Deployment) -> None:
    (function,) = functions(with_broker)
    folder = with_broker.files[0].parent / f"asset.{function['Code']['S3Key'].removesuffix('.zip')}"
    assert [path.name for path in folder.iterdir()] == ["handler.py"]
    assert function["Handler"] == "handler.handler"
    assert (folder / "handler.py").read_bytes() == HANDLER.read_bytes()


def functions(deployment: Deployment) -> list[dict[str, Any]]:
    """The broker's stack has one."""
    prefix = f"{deployment.settings.prefix}-{outputs.BROKER}/"
    return [properties for where, _, properties in deployment.of("AWS::Lambda::Function") if where.startswith(prefix)]


def custom_resources(deployment: Deployment) -> list[dict[str, Any]]:
    return [properties for _, _, properties in deployment.of("Custom::BrokerUsers")]


def accounts(deployment: Deployment) -> list[dict[str, str]]:
    """What the custom resource is told of each peer, in order of rank."""
    return [user for resource in custom_resources(deployment) for user in resource["Users"]]
