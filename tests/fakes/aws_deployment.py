"""A deployment on the local AWS as CloudFormation shows it, from small templates in place of the CDK's; and its EC2.

What the commands ask of a deployment is real: stacks and outputs, buckets, auto scaling groups, log groups. An instance
is a process, `python -m peer_agent.instance`, started as soon as a group wants one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.clock import SystemClock
from infra import outputs
from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
Clients = Callable[[str], Any]


def deploy(clients: Clients, settings: Settings) -> list[str]:
    """Make the stacks; gives their names, those that use others last."""
    bucket = {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain"}
    log = {"Type": "AWS::Logs::LogGroup"}
    peers = range(settings.peers)
    name = f"{settings.prefix}-template"
    clients("ec2").create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": settings.instance_type}
    )
    group = {
        "Type": "AWS::AutoScaling::AutoScalingGroup",
        "Properties": {
            "MinSize": "0",
            "MaxSize": "1",
            "AvailabilityZones": ["us-east-1a"],
            "LaunchTemplate": {"LaunchTemplateName": name, "Version": "1"},
        },
    }
    storage = {
        "Resources": {"Run": bucket, **{f"Peer{rank}": bucket for rank in peers}},
        "Outputs": {
            outputs.SETTINGS: {"Value": settings.to_json()},
            outputs.RUN_BUCKET: {"Value": {"Ref": "Run"}},
            f"{outputs.PEER_BUCKETS}0": {"Value": _joined("Peer", peers)},
        },
    }
    instances = {
        "Resources": {"Log": log, **{f"Group{rank}": group for rank in peers}},
        "Outputs": {
            outputs.AUTO_SCALING_GROUPS: {"Value": _joined("Group", peers)},
            outputs.PEER_LOG_GROUP: {"Value": {"Ref": "Log"}},
        },
    }
    templates = {
        outputs.STORAGE: storage,
        outputs.IMAGES: {"Resources": {"Log": log}},
        outputs.NETWORK: {"Resources": {"Log": log}},
        f"{outputs.PEERS}0": instances,
        outputs.WATCH: {"Resources": {"Log": log}},
    }
    cloudformation = clients("cloudformation")
    for title, template in templates.items():
        stack = f"{settings.prefix}-{title}"
        cloudformation.create_stack(StackName=stack, TemplateBody=json.dumps(template))
        clock = SystemClock()
        while (state := cloudformation.describe_stacks(StackName=stack)["Stacks"][0])["StackStatus"] != _DONE:
            assert state["StackStatus"] == "CREATE_IN_PROGRESS", state
            clock.sleep(0.05)
    return [f"{settings.prefix}-{title}" for title in templates]


_DONE = "CREATE_COMPLETE"


def _joined(prefix: str, ranks: range) -> dict[str, Any]:
    return {"Fn::Join": [",", [{"Ref": f"{prefix}{rank}"} for rank in ranks]]}


@dataclass
class Ec2:
    """Starts an instance for every group that wants one; used as a context, at whose end none is left."""

    clients: Clients
    settings: Settings
    run_bucket: str
    groups: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    scheduled_at_start: list[int] = field(default_factory=list)
    """Scheduled actions that each group had when its instance was wanted."""
    on_look: Callable[[], None] = lambda: None
    """Called between the looks at the groups."""
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Ec2:
        self._thread = threading.Thread(target=self._work, name="ec2")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _work(self) -> None:
        autoscaling = self.clients("autoscaling")
        while not self._over.wait(0.2):
            found = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=list(self.groups))
            desired = {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in found["AutoScalingGroups"]}
            for rank, group in enumerate(self.groups):
                process = self.processes.get(rank)
                if desired.get(group) and process is None:
                    actions = autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)
                    self.scheduled_at_start.append(len(actions["ScheduledUpdateGroupActions"]))
                    self.processes[rank] = self._launch(rank, group)
                elif not desired.get(group) and process is not None and process.poll() is None:
                    process.terminate()
            self.on_look()

    def _launch(self, rank: int, group: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **self.environment,
            "PEERLESS_DEPLOYMENT": self.settings.name,
            "PEERLESS_RUN_BUCKET": self.run_bucket,
            "PEERLESS_RANK": str(rank),
            "PEERLESS_GROUP": group,
            "PEERLESS_BROKER_ENDPOINT": "",
            "OMP_NUM_THREADS": "1",
        }
        with open(self.folder / f"instance-{rank}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "peer_agent.instance"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
