"""`peerless train` on AWS, played on the local AWS: real buckets, stacks, groups and peers; instances are processes."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import contract.config
from contract.config import RunConfig
from contract.errors import ConfigError, DeploymentMissing, UserError
from contract.keys import Places, current_place
from contract.records import Current
from contract.runspec import RunSpec
from infra.local.cloud import LocalCloud
from infra.settings import Settings
from peerless.launch import bucket_follow, shipping
from peerless.launch.aws import attach, train_on_aws
from peerless.launch.deployed import Deployment
from tests.e2e.conftest import make_workplace
from tests.fakes.aws_deployment import Ec2, deploy
from tests.unit.test_follow import Recorder

PEERS = 2
ACCOUNT = "000000000000"


@pytest.fixture
def clients(aws: Callable[[str], Any]) -> Callable[[str], Any]:
    """One client per service, as making them takes longer than using them."""
    return functools.cache(aws)


@pytest.fixture
def config(tmp_path: Path, unique: str) -> RunConfig:
    make_workplace(tmp_path)
    given = [
        f"peers={PEERS}", f"aws.name={unique}", 'compute.service="local"', 'exchange.transport="s3"',
        "exchange.poll_seconds=0.3", "epochs=1", "data.train_samples=320",
    ]  # fmt: skip
    return shipping.resolve_paths(contract.config.from_toml(tmp_path / "config.toml", given), tmp_path)


@pytest.fixture
def deployment(
    local_cloud: LocalCloud, clients: Callable[[str], Any], unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployment]:
    for name, value in local_cloud.aws_environment(os.environ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_follow, "POLL_SECONDS", 0.5)
    settings = Settings(name=unique, peers=PEERS, workers=False, broker=False)
    names = deploy(clients, settings)
    found = Deployment.find(clients, unique)
    yield found
    for name in reversed(names):
        clients("cloudformation").delete_stack(StackName=name)
    for bucket in (found.run_bucket, *found.peer_buckets):
        for page in clients("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                clients("s3").delete_object(Bucket=bucket, Key=item["Key"])
        clients("s3").delete_bucket(Bucket=bucket)


@pytest.fixture
def ec2(
    deployment: Deployment, clients: Callable[[str], Any], local_cloud: LocalCloud, tmp_path: Path
) -> Iterator[Ec2]:
    settings, environment = deployment.settings, local_cloud.aws_environment(os.environ)
    with Ec2(clients, settings, deployment.run_bucket, deployment.groups, environment, tmp_path) as running:
        yield running


def desired(clients: Callable[[str], Any], deployment: Deployment) -> list[int]:
    answer = clients("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=list(deployment.groups))
    return [group["DesiredCapacity"] for group in answer["AutoScalingGroups"]]


def lines(folder: Path) -> list[str]:
    return sorted((folder / "events.jsonl").read_text().splitlines())


def yes(_: str) -> bool:
    return True


def test_a_run_from_question_to_result(
    config: RunConfig, deployment: Deployment, ec2: Ec2, clients: Callable[[str], Any], tmp_path: Path
) -> None:
    seen, questions = Recorder(), []

    def confirm(question: str) -> bool:
        questions.append(question)
        assert not ec2.processes, "nothing is started before the answer"
        return True

    outcome = train_on_aws(config, seen, confirm, run_dir=tmp_path / "run")
    assert questions == [f"train with {PEERS} peers now, for at most 12 hours?"]
    assert any(note.startswith("USD per hour while it trains: 0.0") for note in seen.notes)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == outcome.summary
    assert (summary["reason"], summary["peers_lost"], summary["rounds"]) == ("epoch_limit", 0, 2)
    assert len(set(summary["weights_sha256"].values())) == 1
    assert summary["test_accuracy"] is not None
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 1_000
    assert ec2.scheduled_at_start == [1] * PEERS, "the end was scheduled before an instance was wanted"
    assert desired(clients, deployment) == [0] * PEERS
    for group in deployment.groups:
        left = clients("autoscaling").describe_scheduled_actions(AutoScalingGroupName=group)
        assert left["ScheduledUpdateGroupActions"] == []
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events == seen.events
    for rank in range(PEERS):
        mine = [event for event in events if event["rank"] == rank]
        assert [e["round"] for e in mine if e["event"] == "commit"] == [0, 1, 2]
        assert [e["event"] for e in mine if e["event"] in ("finished", "instance_ended")] == [
            "finished",
            "instance_ended",
        ]
        assert [e["t"] for e in mine] == sorted(e["t"] for e in mine)
    current = clients("s3").get_object(Bucket=deployment.run_bucket, Key=current_place("").key)["Body"].read()
    assert Current.from_json(current).run == outcome.run
    places = Places(run=outcome.run, run_bucket=deployment.run_bucket, peer_buckets=(), region="us-east-1")
    spec = clients("s3").get_object(Bucket=deployment.run_bucket, Key=places.spec().key)["Body"].read()
    prices = RunSpec.from_json(spec).prices
    assert prices is not None
    assert prices.run_usd_per_hour == pytest.approx(2 * (0.0336 + 0.005 + 30 * 0.08 / 730) + 3.4 / 730)


@pytest.mark.slow  # a run of its own
def test_letting_go_of_a_run_and_taking_it_up_again(
    config: RunConfig, deployment: Deployment, ec2: Ec2, clients: Callable[[str], Any], tmp_path: Path
) -> None:
    def press_once_training() -> None:
        if ec2.processes and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    pressed: list[bool] = []
    ec2.on_look = press_once_training
    with pytest.raises(KeyboardInterrupt, match=r"goes on without this command; `peerless attach --name") as let_go:
        train_on_aws(config, Recorder(), yes, run_dir=tmp_path / "run")
    assert "`peerless stop --name" in str(let_go.value)
    assert desired(clients, deployment) == [1] * PEERS, "the instances were left alone"
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(ConfigError, match=r"goes on on the deployment .* `peerless attach` follows it"):
        train_on_aws(config, Recorder(), yes, run_dir=tmp_path / "second")
    seen = Recorder()
    outcome = attach(config.aws.name, None, seen, run_dir=tmp_path / "run")
    assert str(outcome.run) in str(let_go.value)
    assert outcome.summary["rounds"] == 2
    assert outcome.summary["test_accuracy"] is not None
    assert desired(clients, deployment) == [0] * PEERS
    clients("cloudformation").delete_stack(StackName=f"{deployment.settings.prefix}-Watch")  # as `stop` does
    again = attach(config.aws.name, outcome.run, Recorder(), run_dir=tmp_path / "elsewhere")
    assert again.summary["model_sha256"] == outcome.summary["model_sha256"]
    assert lines(tmp_path / "elsewhere") == lines(tmp_path / "run"), "only their order depends on the looks"


def test_what_is_refused_begins_nothing(
    config: RunConfig, deployment: Deployment, clients: Callable[[str], Any], tmp_path: Path
) -> None:
    def changed(**values: Any) -> RunConfig:
        return contract.config.from_mapping({**config.model_dump(), **values}, "test")

    def no(_: str) -> bool:
        return False

    with pytest.raises(UserError, match="nothing was started"):
        train_on_aws(config, Recorder(), no, run_dir=tmp_path / "run")
    with pytest.raises(DeploymentMissing, match="has 2 peers, but the configuration asks for 3"):
        train_on_aws(changed(peers=3), Recorder(), yes, run_dir=tmp_path / "run")
    with pytest.raises(DeploymentMissing, match=r"no gradient workers"):
        train_on_aws(changed(compute={"service": "lambda"}), Recorder(), yes, run_dir=tmp_path / "run")
    with pytest.raises(DeploymentMissing, match=r"no deployment 'absent' here; `peerless deploy CONFIG` makes one"):
        train_on_aws(changed(aws={"name": "absent"}), Recorder(), yes, run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="no run was started"):
        attach(config.aws.name, None, Recorder(), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="knows no run 'other'"):
        attach(config.aws.name, "other", Recorder(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert desired(clients, deployment) == [0] * PEERS
