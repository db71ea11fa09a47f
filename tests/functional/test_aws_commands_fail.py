"""Every command for AWS, without what it needs: one sentence that says what to do, and nothing done."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from infra.local.ports import free_ports
from peerless.cli import main
from tests.e2e.conftest import make_workplace

COMMANDS = {
    "deploy": ["deploy", "config.toml", "--yes", "--set", "aws.torch_index=https://example.invalid"],
    "train": ["train", "config.toml", "--yes"],
    "attach": ["attach"],
    "status": ["status"],
    "logs": ["logs"],
    "stop": ["stop", "--yes"],
    "destroy": ["destroy", "--yes"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, on a machine without anything of AWS."""
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, standard output, and the one sentence on standard error."""
    monkeypatch.setattr(sys, "argv", ["peerless", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if line.startswith("peerless: ")]
    assert "Traceback" not in captured.err
    assert "internal error" not in captured.err
    assert len(told) <= 1
    return int(ended.value.code or 0), captured.out, told[0] if told else ""


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_region(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, told = run(COMMANDS[command], monkeypatch, capsys)
    assert (status, told) == (2, "peerless: no AWS region is chosen; set AWS_REGION, for example AWS_REGION=us-east-1")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_credentials(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    status, _, told = run(COMMANDS[command], monkeypatch, capsys)
    assert status == 2
    assert told.startswith("peerless: there are no AWS credentials; run `aws configure`")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_with_a_profile_that_does_not_exist(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    status, _, told = run(COMMANDS[command], monkeypatch, capsys)
    assert status == 2
    assert "(nobody)" in told
    assert "`aws configure list-profiles`" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status", "--name", "Foo"], "aws.name 'Foo' must be 1 to 24 lower case letters, digits or hyphens"),
        (["stop", "--yes", "--name", "-"], "aws.name '-' must be"),
        (["destroy", "--keep-data", "--purge"], "--keep-data and --purge exclude each other"),
        (["logs", "--peer", "1", "--workers"], "--peer, --workers and --broker exclude each other"),
        (["train", "config.toml", "--deployed"], "--deployed goes with --local"),
        (["train", "absent.toml"], "absent.toml: there is no such configuration file"),
        (["deploy", "absent.toml"], "absent.toml: there is no such configuration file"),
        (["doctor", "absent.toml"], "absent.toml: there is no such configuration file"),
        (
            ["deploy", "config.toml", "--set", "aws.instance_type=t3.micro", "--set", "aws.torch_index=x"],
            "is not an arm64",
        ),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    status, _, sentence = run(arguments, monkeypatch, capsys)
    assert status == 2
    assert told in sentence


def test_the_doctor_says_what_lacks_and_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    status, out, _ = run(["doctor", "--json"], monkeypatch, capsys)
    assert status == 1
    findings = {found["name"]: found for found in json.loads(out)["findings"]}
    assert findings["credentials"]["state"] == "failed"
    assert findings["Node.js"]["state"] == "ok"
    status, out, _ = run(["doctor"], monkeypatch, capsys)
    assert status == 1
    assert "failed   credentials: there are no AWS credentials; run `aws configure`" in out


def test_an_endpoint_that_nobody_listens_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed_port: int
) -> None:
    for name, value in {
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port}",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    status, _, told = run(["status"], monkeypatch, capsys)
    assert status == 1
    assert told.startswith("peerless: AWS cannot be reached to list the stacks")
    assert str(closed_port) in told


@pytest.fixture
def closed_port() -> int:
    return free_ports(1)[0]
