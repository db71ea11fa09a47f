"""The environment of peers and workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.env import AgentEnv, WorkerEnv
from contract.errors import ConfigError

REGION = {"AWS_REGION": "eu-central-1"}


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
    }
    env = AgentEnv.read(environ)
    assert env.broker_url == environ["PEERLESS_BROKER_URL"]
    assert (env.endpoint_url, env.region, env.code_dir) == ("http://127.0.0.1:4566", "us-east-1", tmp_path)
    worker = WorkerEnv.read(environ)
    assert (worker.endpoint_url, worker.region, worker.code_dir) == ("http://127.0.0.1:4566", "us-east-1", tmp_path)


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
    ],
)
def test_mistakes_are_named_and_passwords_are_not(extra: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        AgentEnv.read(REGION | extra)
    assert "geheim" not in str(caught.value)
