"""Deploying onto the local AWS where something is wrong: the real CDK command, and one clear sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from botocore.config import Config

from contract.config import from_mapping
from contract.errors import AwsUnavailable, DeployFailed, DeploymentMissing
from infra import toolkit
from infra.local.cloud import LocalCloud
from infra.local.ports import free_ports
from peerless.launch import deploy
from peerless.launch.deploy import Target
from peerless.launch.destroy import destroy
from tests.fakes.clock import FakeClock

#: Builds one stack as CDK's would be, but in no time: a manifest and a template.
APP = """
import json, os, pathlib
folder = pathlib.Path(os.environ["CDK_OUTDIR"])
folder.mkdir(exist_ok=True)
name = {name!r}
stack = {{
    "type": "aws:cloudformation:stack",
    "environment": "aws://unknown-account/unknown-region",
    "properties": {{"templateFile": "template.json", "stackName": name}},
}}
(folder / "template.json").write_text({template!r})
(folder / "manifest.json").write_text(json.dumps({{"version": "36.0.0", "artifacts": {{name: stack}}}}))
"""


@pytest.fixture
def target(local_cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The session's local AWS; logs go to an empty working directory."""
    monkeypatch.chdir(tmp_path)
    environ = local_cloud.environment(os.environ)
    return Target(
        clients=local_cloud.client, region=local_cloud.region, environ=environ, lambda_url=local_cloud.lambda_url
    )


def put_app(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """In place of ours."""
    (folder / "app.py").write_text(text)
    monkeypatch.setattr(toolkit, "ROOT", folder)


def attempt(target: Target, name: str) -> list[str]:
    """Deploy; gives what the user was told."""
    said: list[str] = []
    config = from_mapping({"aws": {"name": name}}, "test")
    deploy.deploy(config, target=target, note=said.append, confirm=lambda _: True)
    return said


def test_a_template_that_is_refused_is_told_in_one_sentence(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    template = {"Resources": {"Broker": {"Type": "AWS::AmazonMQ::Broker", "Properties": {}}}}
    name = f"Peerless-{unique}-Storage"
    put_app(tmp_path, monkeypatch, APP.format(name=name, template=json.dumps(template)))
    with pytest.raises(DeployFailed, match=r"the CDK command failed: .*AWS::AmazonMQ::Broker") as told:
        attempt(target, unique)
    assert "\n" not in str(told.value)
    log = tmp_path / f".peerless/deploy-{unique}.log"
    assert f"(log: {log.relative_to(tmp_path)})" in str(told.value)
    assert "AWS::AmazonMQ::Broker" in log.read_text()


def test_a_mistake_while_the_stacks_are_built_keeps_its_sentence(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    put_app(tmp_path, monkeypatch, "class ConfigError(Exception): pass\nConfigError.__module__ = 'contract.errors'\n"
            "raise ConfigError('peers = 0: a deployment holds 1 to 150')")  # fmt: skip
    with pytest.raises(DeployFailed, match=r"^the CDK command failed: peers = 0: a deployment holds 1 to 150 \(log: "):
        attempt(target, unique)


def test_what_is_half_made_is_neither_used_nor_left_behind(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    template = {"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain"}}}
    name = f"Peerless-{unique}-Storage"
    put_app(tmp_path, monkeypatch, APP.format(name=name, template=json.dumps(template)))
    with pytest.raises(DeploymentMissing, match=r"is not whole: its stack of buckets .* has no outputs"):
        attempt(target, unique)
    s3 = target.clients("s3")
    (bucket,) = [row["Name"] for row in s3.list_buckets()["Buckets"] if unique in row["Name"]]
    s3.put_object(Bucket=bucket, Key="key", Body=b"data")
    kept = destroy(target.clients, unique, purge=False, note=lambda _: None, clock=FakeClock())
    assert kept == [bucket]
    assert s3.head_object(Bucket=bucket, Key="key")["ContentLength"] == 4
    assert destroy(target.clients, unique, purge=True, note=lambda _: None, clock=FakeClock()) == []
    assert bucket not in [row["Name"] for row in s3.list_buckets()["Buckets"]]
    with pytest.raises(DeploymentMissing, match="no deployment"):
        destroy(target.clients, unique, purge=True, note=lambda _: None, clock=FakeClock())


def test_an_aws_that_stopped_is_named(target: Target, local_cloud: LocalCloud) -> None:
    (port,) = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"

    def client(service: str) -> object:
        once = Config(retries={"mode": "standard", "max_attempts": 1}, proxies={})
        return local_cloud.session().client(service, endpoint_url=nowhere, config=once)  # type: ignore[call-overload]

    gone = Target(clients=client, region=target.region, environ={**target.environ}, lambda_url=target.lambda_url)
    with pytest.raises(AwsUnavailable, match=f"cannot be reached to list the stacks: .*{nowhere}"):
        attempt(gone, "gone")
