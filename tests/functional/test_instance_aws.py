"""An instance's two services beside S3, held against moto: the broker user's secret, and the end of its own group."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from contract.errors import PermanentError, TransientError
from peer_agent.instance.aws import AutoScalingGroup, NoGroup, SecretsManager, judged
from peer_agent.instance.ports import Credentials

REGION = "us-east-1"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's client of a service of moto's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        session: Any = boto3.session.Session()
        yield lambda service: session.client(service, region_name=REGION)


def test_a_users_password_comes_from_the_secret(aws: Any) -> None:
    value = {"username": "peer-3", "password": "a/b:c@d%", "more": 1}
    arn = aws("secretsmanager").create_secret(Name="peer", SecretString=json.dumps(value))["ARN"]
    found = SecretsManager(region=REGION).credentials(arn)
    assert found == Credentials("peer-3", "a/b:c@d%")
    assert "a/b" not in repr(found)
    assert found.url("amqps://mq.example:5671") == "amqps://peer-3:a%2Fb%3Ac%40d%25@mq.example:5671/%2F"


USER = '"username": "u"'


@pytest.mark.parametrize(
    "text",
    ["geheim", "[]", "{}", f"{{{USER}}}", f'{{{USER}, "password": ""}}', '{"username": 1, "password": 2}'],
)
def test_a_secret_of_another_form_is_refused_and_not_shown(aws: Any, text: str) -> None:
    aws("secretsmanager").create_secret(Name="peer", SecretString=text)
    with pytest.raises(PermanentError, match=r"^the broker user's secret peer (is not of the form|lacks a)") as caught:
        SecretsManager(region=REGION).credentials("peer")
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_secret_that_is_not_there_is_permanent(aws: Any) -> None:
    with pytest.raises(PermanentError, match=r"secret gone cannot be read from Secrets Manager in us-east-1: Resource"):
        SecretsManager(region=REGION).credentials("gone")


def test_the_group_is_set_to_no_instance(aws: Any) -> None:
    client = aws("autoscaling")
    client.create_launch_configuration(LaunchConfigurationName="l", ImageId="ami-12c6146b", InstanceType="t2.medium")
    client.create_auto_scaling_group(
        AutoScalingGroupName="g", LaunchConfigurationName="l", MinSize=0, MaxSize=1, DesiredCapacity=1,
        AvailabilityZones=[f"{REGION}a"],
    )  # fmt: skip
    AutoScalingGroup("g", region=REGION).release()
    (group,) = client.describe_auto_scaling_groups(AutoScalingGroupNames=["g"])["AutoScalingGroups"]
    assert (group["DesiredCapacity"], group["Instances"]) == (0, [])
    NoGroup().release()


def refused(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "SetDesiredCapacity")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (refused("AccessDenied", 403), PermanentError, "it: AccessDenied: m"),
        (refused("ValidationError", 400), PermanentError, "it: ValidationError: m"),
        (refused("Throttling", 400), TransientError, "it: Throttling: m"),
        (refused("ScalingActivityInProgress", 400), TransientError, "it: ScalingActivityInProgress: m"),
        (refused("InternalFailure", 500), TransientError, "it: InternalFailure: m"),
        (EndpointConnectionError(endpoint_url="https://x"), TransientError, "it: Could not connect"),
    ],
)
def test_what_another_try_may_do_away_with(error: Any, kind: type[Exception], text: str) -> None:
    made = judged("it", error)
    assert type(made) is kind
    assert str(made).startswith(text)
