"""The boot script of a peer's instance, run with stand-ins for what only an instance has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.stacks.user_data import user_data

#: Programs that the script calls and that say what they were called with. `sleep` is among them: nothing waits.
PROGRAMS = ("aws", "dnf", "docker", "journalctl", "shutdown", "sleep", "systemctl")
#: Folders of the instance, which become folders of the test.
FOLDERS = ("/etc/", "/usr/local/sbin/", "/run/", "/var/lib/cloud/")
CONTAINER = {"AWS_REGION": "us-east-1", "PEERLESS_RANK": "3", "PEERLESS_GROUP": "Peerless-x-Peers0-0003"}
HOST = {
    "IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/peer:0123abcd",
    "LOG_GROUP": "peers",
    "STREAM": "0003",
    "MAX_SECONDS": "43200",
}
FAILING = "exit 1\n"
BASH = shutil.which("bash") or "/bin/bash"


@dataclass
class Instance:
    """A folder as its root, and what was called."""

    root: Path

    def make(self, **programs: str) -> None:
        """Stand-ins; the text is what one does beside being noted."""
        (self.root / "bin").mkdir()
        for folder in ("etc/systemd/system", "usr/local/sbin", "run", "var/lib/cloud/data"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "var/lib/cloud/data/instance-id").write_text("i-0123456789\n")
        for name in PROGRAMS:
            stub = self.root / "bin" / name
            stub.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.root}/calls"\n{programs.get(name, "")}')
            stub.chmod(0o755)

    def here(self, script: str) -> str:
        """The script with this folder as its root."""
        for folder in FOLDERS:
            script = re.sub(rf"(?<![\w/]){folder}", f"{self.root}{folder}", script)
        return script

    def run(self, script: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [BASH, "-c", self.here(script)],
            env={"PATH": path, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()

    def unit(self, name: str) -> dict[str, str]:
        """A unit's settings; of one that stands twice the last."""
        text = (self.root / "etc/systemd/system" / name).read_text().replace("\\\n", "")
        return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


def test_the_limit_stands_before_anything_that_can_fail(instance: Instance) -> None:
    instance.make()
    done = instance.run(user_data(container=CONTAINER, host=HOST))
    assert done.returncode == 0, done.stderr
    calls = instance.calls()
    limit = calls.index("systemctl enable --now peerless-limit.timer")
    assert calls[limit - 1] == "systemctl daemon-reload"
    assert limit < next(number for number, call in enumerate(calls) if call.startswith("dnf"))
    assert calls[-1] == "systemctl start --no-block peerless-peer.service"
    assert instance.unit("peerless-limit.timer") == {
        "Description": "The longest that this instance may run",
        "OnBootSec": "43200s",
        "Unit": "peerless-end.service",
        "WantedBy": "timers.target",
    }


def test_the_container_gets_its_variables_and_nothing_of_the_hosts(instance: Instance) -> None:
    instance.make()
    instance.run(user_data(container=CONTAINER, host=HOST))
    peer = dict(line.split("=", 1) for line in (instance.root / "etc/peerless/peer.env").read_text().splitlines())
    host = dict(line.split("=", 1) for line in (instance.root / "etc/peerless/host.env").read_text().splitlines())
    assert peer == CONTAINER
    assert host == {**HOST, "INSTANCE": "i-0123456789"}
    config = json.loads((instance.root / "etc/peerless/docker/config.json").read_text())
    assert config == {"credHelpers": {"123456789012.dkr.ecr.us-east-1.amazonaws.com": "ecr-login"}}


def test_the_agent_is_told_to_end_and_started_again_within_bounds(instance: Instance) -> None:
    instance.make()
    instance.run(user_data(container=CONTAINER, host=HOST))
    unit = instance.unit("peerless-peer.service")
    agents, docker, systemd = 100, 120, int(unit["TimeoutStopSec"])  # seconds; the first is peer_agent.instance's
    assert f"--time {docker} " in unit["ExecStop"]
    assert f"--stop-timeout {docker} " in unit["ExecStart"]
    assert agents < docker < systemd
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", "1")
    assert (unit["StartLimitIntervalSec"], unit["StartLimitBurst"]) == ("3600", "5")
    assert unit["OnFailure"] == "peerless-end.service"
    assert unit["OnSuccess"] == "peerless-off.service", (
        "another instance may hold the rank: the group is not ours to set"
    )
    assert "RuntimeMaxSec" not in unit, "Restart=on-failure would start it again"
    assert "--cap-drop ALL" in unit["ExecStart"]
    assert "--env-file" in unit["ExecStart"], "values on the command line can be read by every process"


def test_an_installation_that_fails_is_tried_again_and_then_switches_the_peer_off(instance: Instance) -> None:
    instance.make(dnf=FAILING)
    assert instance.run(user_data(container=CONTAINER, host=HOST)).returncode != 0
    calls = instance.calls()
    assert sum(call.startswith("dnf install") for call in calls) == 5
    assert calls[-1] == "systemctl start --no-block peerless-end.service"


def test_an_installation_that_fails_once_goes_on(instance: Instance) -> None:
    instance.make(dnf=f'[ "$(grep -c ^dnf {instance.root}/calls)" -gt 1 ]\n')
    assert instance.run(user_data(container=CONTAINER, host=HOST)).returncode == 0
    assert instance.calls()[-1] == "systemctl start --no-block peerless-peer.service"


@pytest.mark.parametrize("aws", ["", FAILING])
def test_the_end_leaves_the_log_and_wants_no_instance(instance: Instance, aws: str) -> None:
    instance.make(journalctl="echo 'docker: \"no basic auth credentials\"'\n", aws=aws)
    instance.run(user_data(container=CONTAINER, host=HOST))
    (instance.root / "calls").unlink()
    script = (instance.root / "usr/local/sbin/peerless-end").read_text()
    environ = {**CONTAINER, **HOST, "INSTANCE": "i-0123456789"}
    path = f"{instance.root / 'bin'}:{os.environ['PATH']}"
    subprocess.run([BASH, "-c", script], env={"PATH": path, **environ}, timeout=60, check=True, capture_output=True)
    journal, create, put, capacity, off = instance.calls()
    assert journal.startswith("journalctl --boot")
    assert create == "aws logs create-log-stream --log-group-name peers --log-stream-name 0003/i-0123456789/host"
    assert put.startswith("aws logs put-log-events --log-group-name peers --log-stream-name 0003/i-0123456789/host")
    assert capacity == (
        "aws autoscaling set-desired-capacity --auto-scaling-group-name Peerless-x-Peers0-0003 --desired-capacity 0"
    )
    assert off == "shutdown --poweroff +10", "where the call failed, the group must notice that the instance is gone"
    (event,) = json.loads((instance.root / "run/peerless-host-log.json").read_text())
    assert event["message"] == 'docker: "no basic auth credentials"\n'
    assert event["timestamp"] > 1_600_000_000_000
