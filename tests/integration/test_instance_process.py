"""`python -m peer_agent.instance` as EC2 runs it, with the real peer as its child: S3, Secrets Manager and Auto Scaling
on the local AWS, and a real RabbitMQ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from contract.clock import SystemClock
from contract.config import RunConfig
from contract.keys import Places, current_place
from contract.records import Current, PeerReport
from contract.runspec import RunSpec
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from tests.fakes.small_run import prepare_run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 100.0


@dataclass
class Deployment:
    """A bucket, a secret and a group per peer, and the instances that were started."""

    spec: RunSpec
    store: S3Store
    aws: Callable[[str], Any]
    environment: dict[str, str]
    groups: list[str]
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def announce(self) -> None:
        place = current_place(self.spec.places.run_bucket)
        self.store.put(place, Current(run=self.spec.run, created=SystemClock().now()).to_json())

    def start(self, rank: int, **changes: str) -> subprocess.Popen[str]:
        environment = {
            **self.environment,
            "PEERLESS_RANK": str(rank),
            "PEERLESS_GROUP": self.groups[rank],
            **changes,
        }
        with open(self.log(rank), "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "peer_agent.instance"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def log(self, rank: int) -> Path:
        return self.folder / f"instance-{rank}.log"

    def tail(self, rank: int) -> str:
        """The end of the log, for a person who looks at a failed test."""
        return self.log(rank).read_text()[-2_000:]

    def lines(self, rank: int) -> list[dict[str, Any]]:
        """The log; every line is a JSON object."""
        return [json.loads(line) for line in self.log(rank).read_text().splitlines()]

    def events(self, rank: int) -> list[dict[str, Any]]:
        """What the user's side reads from the bucket."""
        prefix = self.spec.places.events_of(rank)
        keys = self.store.list(prefix.bucket, prefix.key)
        blobs = [self.store.get(self.spec.places.events(rank, self.spec.places.parse_events(rank, k))) for k in keys]
        return [json.loads(line) for blob in blobs for line in blob.splitlines()]

    def desired(self) -> list[int]:
        answer = self.aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=self.groups)
        found = {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in answer["AutoScalingGroups"]}
        return [found[name] for name in self.groups]

    def wait_for(self, rank: int, event: str) -> None:
        clock = SystemClock()
        until = clock.monotonic() + PATIENCE_SECONDS
        while not any(e["event"] == event for e in self.events(rank)):
            assert clock.monotonic() < until, f"no {event}"
            assert all(p.poll() is None for p in self.processes), self.tail(rank)
            clock.sleep(0.2)


@pytest.fixture
def deploy(
    local_cloud: LocalCloud,
    aws: Callable[[str], Any],
    bucket: str,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Deployment]]:
    for name, value in local_cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    store = S3Store(region=local_cloud.region, endpoint_url=local_cloud.endpoint_url)
    made: list[Deployment] = []
    broker = urlsplit(local_cloud.broker_url)
    user = {"username": unquote(broker.username or ""), "password": unquote(broker.password or "")}
    secret = aws("secretsmanager").create_secret(Name=unique, SecretString=json.dumps(user))["ARN"]

    def deployed(samples: tuple[int, ...], **changes: Any) -> Deployment:
        values: dict[str, Any] = {
            "peers": len(samples), "epochs": 2, "batch_size": 8, "batches_per_round": 1,
            "exchange": {"poll_seconds": 0.3, "start_timeout_seconds": 60.0}, "compute": {"service": "local"},
        }  # fmt: skip
        config = RunConfig.model_validate({**values, **changes})
        buckets = (bucket,) * config.peers
        places = Places(run=unique, run_bucket=bucket, peer_buckets=buckets, region=local_cloud.region)
        environment = {
            **os.environ,
            **local_cloud.aws_environment(),
            "OMP_NUM_THREADS": "1",
            "PEERLESS_DEPLOYMENT": "lab",
            "PEERLESS_RUN_BUCKET": bucket,
            "PEERLESS_BROKER_ENDPOINT": f"{broker.scheme}://{broker.hostname}:{broker.port}",
            "PEERLESS_BROKER_SECRET": secret,
        }
        environment.pop("PEERLESS_BROKER_URL", None)
        groups = [f"{unique}-{rank}" for rank in range(config.peers)]
        aws("autoscaling").create_launch_configuration(
            LaunchConfigurationName=unique, ImageId="ami-12345678", InstanceType="t4g.medium"
        )
        for group in groups:
            aws("autoscaling").create_auto_scaling_group(
                AutoScalingGroupName=group, LaunchConfigurationName=unique, MinSize=0, MaxSize=1, DesiredCapacity=1,
                AvailabilityZones=[f"{local_cloud.region}a"],
            )  # fmt: skip
        spec = prepare_run(store, config, samples, places)
        made.append(Deployment(spec, store, aws, environment, groups, tmp_path))
        return made[-1]

    yield deployed
    for deployment in made:
        for process in deployment.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for group in deployment.groups:
            aws("autoscaling").delete_auto_scaling_group(AutoScalingGroupName=group, ForceDelete=True)
        aws("autoscaling").delete_launch_configuration(LaunchConfigurationName=unique)
    aws("secretsmanager").delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
    store.close()


def test_two_instances_train_to_the_end_and_switch_themselves_off(
    deploy: Callable[..., Deployment], local_cloud: LocalCloud
) -> None:
    deployment = deploy((24, 20))
    processes = [deployment.start(rank) for rank in range(2)]
    assert deployment.desired() == [1, 1]
    deployment.announce()  # while they wait for it
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0], deployment.tail(0)
    assert deployment.desired() == [0, 0]

    places = deployment.spec.places
    reports = [PeerReport.from_json(deployment.store.get(places.report(rank))) for rank in range(2)]
    assert {(r.reason, r.error) for r in reports} == {("epoch_limit", None)}
    assert reports[0].weights_sha256 == reports[1].weights_sha256
    for rank in range(2):
        events = deployment.events(rank)
        assert [e["event"] for e in events][:2] == ["instance_started", "peer_started"]
        assert [e["event"] for e in events][-2:] == ["finished", "instance_ended"]
        committed = [e["round"] for e in events if e["event"] == "commit" and e["contributors"]]
        assert committed == list(range(reports[rank].rounds)), "nothing is lost on the way"
        assert {(e["run"], e["rank"]) for e in events} == {(deployment.spec.run, rank)}
        lines = deployment.lines(rank)
        assert sum(line.get("RoundsCommitted", 0) for line in lines) == reports[rank].rounds
        assert any(line.get("Stage") == "compute" and line["StageSeconds"] > 0 for line in lines)
        password = unquote(urlsplit(local_cloud.broker_url).password or "")
        assert f":{password}@" not in deployment.log(rank).read_text()


@pytest.mark.slow  # a run of its own
def test_sigterm_ends_the_run_in_order(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy((24,), epochs=100_000, early_stopping={"patience": 0})
    deployment.announce()
    process = deployment.start(0)
    deployment.wait_for(0, "commit")  # chunks come while the run goes on
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0, deployment.tail(0)
    assert PeerReport.from_json(deployment.store.get(deployment.spec.places.report(0))).reason == "interrupted"
    assert [e["event"] for e in deployment.events(0)][-2:] == ["finished", "instance_ended"]
    assert deployment.desired() == [0]


def test_a_lost_secret_reaches_the_users_side(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy((24,))
    deployment.announce()
    process = deployment.start(0, PEERLESS_BROKER_SECRET="no-such-secret")
    assert process.wait(PATIENCE_SECONDS) == 1
    (failed,) = [e for e in deployment.events(0) if e["event"] == "failed"]
    assert failed["error"].startswith("the broker user's secret no-such-secret cannot be read from Secrets Manager in ")
    assert "ResourceNotFoundException" in failed["error"]
    assert PeerReport.from_json(deployment.store.get(deployment.spec.places.report(0))).error == failed["error"]
    assert [line["message"] for line in deployment.lines(0) if line.get("level") == "error"] == [failed["error"]]
    assert deployment.desired() == [0]


def test_an_incomplete_environment_is_one_line(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy((24,))
    assert deployment.start(0, PEERLESS_RUN_BUCKET="").wait(PATIENCE_SECONDS) == 1
    (line,) = deployment.lines(0)
    assert (line["level"], line["message"]) == ("error", "PEERLESS_RUN_BUCKET is not set")
