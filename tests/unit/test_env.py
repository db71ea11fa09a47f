"""The environment of peers and workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.env import AgentEnv, InstanceEnv, ReducerEnv, WorkerEnv
from contract.errors import ConfigError

REGION = {"AWS_REGION": "eu-central-1"}
INSTANCE = {
    **REGION,
    "PEERLESS_DEPLOYMENT": "lab",
    "PEERLESS_RUN_BUCKET": "runs",
    "PEERLESS_RANK": "0012",
    "PEERLESS_BROKER_ENDPOINT": "amqps://mq.example:5671",
    "PEERLESS_BROKER_SECRET": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:peer",
    "PEERLESS_GROUP": "group-12",
    "PEERLESS_ACCOUNT": "123456789012",
}


def test_a_peer_on_aws_needs_a_region_only() -> None:
    assert AgentEnv.read(REGION) == AgentEnv(broker_url="", endpoint_url=None, region="eu-central-1", code_dir=None)
    assert WorkerEnv.read(REGION) == WorkerEnv(endpoint_url=None, region="eu-central-1", code_dir=None)


def test_everything_set(tmp_path: Path) -> None:
    environ = {
        "AWS_REGION": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
        "PEERLESS_BROKER_URL": "amqp://guest:guest@127.0.0.1:5672/%2f",
        "PEERLESS_CODE_DIR": str(tmp_path),
        "PEERLESS_SHARED_DIR": str(tmp_path),
        "PEERLESS_ACCOUNT": "123456789012",
    }
    env = AgentEnv.read(environ)
    assert env.broker_url == environ["PEERLESS_BROKER_URL"]
    assert (env.endpoint_url, env.region, env.code_dir) == ("http://127.0.0.1:4566", "us-east-1", tmp_path)
    assert env.account == "123456789012"
    worker = WorkerEnv.read(environ)
    assert (worker.endpoint_url, worker.region) == ("http://127.0.0.1:4566", "us-east-1")
    assert (worker.code_dir, worker.shared_dir) == (tmp_path, tmp_path)


def test_the_password_is_not_shown() -> None:
    env = AgentEnv.read(REGION | {"PEERLESS_BROKER_URL": "amqps://user:geheim@mq.example:5671"})
    assert "geheim" not in repr(env)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"PEERLESS_BROKER_URL": "http://user:geheim@host"}, "PEERLESS_BROKER_URL is not a URL"),
        ({"PEERLESS_BROKER_URL": "amqp://"}, "PEERLESS_BROKER_URL is not a URL"),
        ({"PEERLESS_BROKER_URL": "amqp://user:geheim@host:port"}, "PEERLESS_BROKER_URL is not a URL"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:4566"}, "AWS_ENDPOINT_URL is not a URL"),
        ({"PEERLESS_CODE_DIR": "/there/is/no/such"}, "PEERLESS_CODE_DIR: /there/is/no/such is not a folder"),
        ({"AWS_REGION": ""}, "AWS_REGION is not set"),
        ({"PEERLESS_ACCOUNT": "12"}, "PEERLESS_ACCOUNT = '12' is not an AWS account"),
    ],
)
def test_mistakes_are_named_and_passwords_are_not(extra: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        AgentEnv.read(REGION | extra)
    assert "geheim" not in str(caught.value)


def test_an_instance_knows_its_place() -> None:
    assert InstanceEnv.read(INSTANCE) == InstanceEnv(
        deployment="lab",
        run_bucket="runs",
        rank=12,
        broker_endpoint="amqps://mq.example:5671",
        broker_secret=INSTANCE["PEERLESS_BROKER_SECRET"],
        group="group-12",
        account="123456789012",
        endpoint_url=None,
        region="eu-central-1",
        code_dir=None,
    )


def test_an_instance_without_broker_group_or_account() -> None:
    less = {key: INSTANCE[key] for key in ("AWS_REGION", "PEERLESS_DEPLOYMENT", "PEERLESS_RUN_BUCKET", "PEERLESS_RANK")}
    env = InstanceEnv.read(less)
    assert (env.broker_endpoint, env.broker_secret, env.group, env.account) == ("", "", "", None)


def test_an_instances_environment_is_enough_for_its_peer() -> None:
    """The child inherits it; only the broker's address with the password is added."""
    env = AgentEnv.read(INSTANCE | {"PEERLESS_BROKER_URL": "amqps://a:b@mq.example:5671"})
    assert (env.region, env.account) == ("eu-central-1", "123456789012")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"PEERLESS_DEPLOYMENT": ""}, "PEERLESS_DEPLOYMENT is not set"),
        ({"PEERLESS_RUN_BUCKET": " "}, "PEERLESS_RUN_BUCKET is not set"),
        ({"PEERLESS_RANK": ""}, "PEERLESS_RANK is not set"),
        ({"PEERLESS_RANK": "-1"}, "PEERLESS_RANK = '-1' is not a rank"),
        ({"PEERLESS_RANK": "two"}, "PEERLESS_RANK = 'two' is not a rank"),
        ({"PEERLESS_BROKER_SECRET": ""}, "PEERLESS_BROKER_SECRET is not set, but"),
        ({"PEERLESS_BROKER_ENDPOINT": "https://mq.example:443"}, "PEERLESS_BROKER_ENDPOINT is not a URL"),
        ({"PEERLESS_BROKER_ENDPOINT": "amqps://a:geheim@mq.example:5671"}, "and nothing more"),
        ({"PEERLESS_BROKER_ENDPOINT": "amqps://mq.example:5671/vhost"}, "and nothing more"),
        ({"PEERLESS_ACCOUNT": "12345678901x"}, "is not an AWS account"),
        ({"AWS_REGION": ""}, "AWS_REGION is not set"),
    ],
)
def test_an_instances_mistakes_are_named(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        InstanceEnv.read(INSTANCE | change)
    assert "geheim" not in str(caught.value)


def test_a_reducer_needs_a_region_and_nothing_else() -> None:
    made = ReducerEnv.read({"AWS_REGION": "eu-west-1", "PEERLESS_CODE_DIR": "/nowhere"})
    assert made == ReducerEnv(endpoint_url=None, region="eu-west-1")
    assert ReducerEnv.read({"AWS_DEFAULT_REGION": "r", "AWS_ENDPOINT_URL": "http://h:1"}).endpoint_url == "http://h:1"
    with pytest.raises(ConfigError, match="AWS_REGION is not set"):
        ReducerEnv.read({})
