"""Instances of peers: how they are launched, what they are told, and that each can be switched off."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from contract.env import ALLOCATOR, InstanceEnv
from infra import outputs
from infra.amazon_mq import user_name
from infra.settings import MOST_PEERS, Settings
from infra.stacks.user_data import LIMIT, user_data
from tests.infra.deployment import Deployment
from tests.infra.simulator import Request

#: Read by OpenMP and MKL under torch.
THREADS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
#: These, and what the C library reads.
LIBRARIES = THREADS | set(ALLOCATOR)
#: Only for a local AWS, which has no instances; and what AWS_REGION comes before.
NOT_ON_AWS = {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}
GROUP = "AWS::AutoScaling::AutoScalingGroup"
TEMPLATE = "AWS::EC2::LaunchTemplate"
#: CloudFormation's limits for one template:
#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MOST_RESOURCES, MOST_OUTPUTS, MOST_PARAMETERS, MOST_SECRETS, MOST_BYTES = 500, 200, 200, 60, 1_000_000
ROOT = Path(__file__).resolve().parents[2]


class Recorder(Mapping[str, str]):
    """An environment that remembers what was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values, self.asked = dict(values), set[str]()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def by_rank(deployment: Deployment, kind: str) -> list[dict[str, Any]]:
    """Properties of the groups or templates, in the order of ranks."""
    found = {}
    for where, _, properties in deployment.of(kind):
        rank = re.search(r"/(?:Group|Template)(\d{4})", where)
        assert rank is not None, where
        found[int(rank[1])] = properties
    assert sorted(found) == list(range(deployment.settings.peers))
    return [found[rank] for rank in sorted(found)]


def scripts(deployment: Deployment) -> list[str]:
    """The user data of all ranks, as an instance gets them."""
    return [template["LaunchTemplateData"]["UserData"] for template in by_rank(deployment, TEMPLATE)]


def variables(script: str, file: str) -> dict[str, str]:
    """The variables that a script writes into a file."""
    text = re.search(rf"cat >{re.escape(file)} <<'END'\n(.*?)\nEND\n", script, re.DOTALL)
    assert text is not None, f"nothing is written into {file}"
    return dict(line.split("=", 1) for line in text[1].splitlines())


def test_groups_hold_one_instance_at_most_and_leave_the_count_to_runs(on_aws: Deployment) -> None:
    for rank, group in enumerate(by_rank(on_aws, GROUP)):
        assert (group["MinSize"], group["MaxSize"]) == ("0", "1")
        assert "DesiredCapacity" not in group, "an update of the stack would switch a running peer off"
        assert {"Key": "peerless:rank", "Value": f"{rank:04d}", "PropagateAtLaunch": True} in group["Tags"]
        assert {"GroupInServiceInstances"} <= set(group["MetricsCollection"][0]["Metrics"])
    for where, resource, _ in on_aws.of(GROUP):
        assert set(resource["UpdatePolicy"]) == {"AutoScalingScheduledAction"}, f"{where}: an update replaces instances"


def test_outputs_name_the_groups_in_the_order_of_ranks(on_aws: Deployment) -> None:
    told = [
        name
        for number in range(len(on_aws.settings.groups))
        for name in on_aws.output(f"{outputs.PEERS}{number}", outputs.AUTO_SCALING_GROUPS).split(",")
    ]
    assert told == [group["AutoScalingGroupName"] for group in by_rank(on_aws, GROUP)]
    assert len(set(told)) == on_aws.settings.peers
    for number in range(len(on_aws.settings.groups)):
        assert on_aws.output(f"{outputs.PEERS}{number}", outputs.PEER_LOG_GROUP)


def test_instances_are_closed(on_aws: Deployment) -> None:
    for template in by_rank(on_aws, TEMPLATE):
        data = template["LaunchTemplateData"]
        assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        assert "KeyName" not in data
        (interface,) = data["NetworkInterfaces"]
        assert interface["AssociatePublicIpAddress"] is (on_aws.settings.network == "public")
        (device,) = data["BlockDeviceMappings"]
        assert device["Ebs"]["Encrypted"] is True
        assert (device["Ebs"]["VolumeType"], device["Ebs"]["DeleteOnTermination"]) == ("gp3", True)


def test_nothing_comes_in(on_aws: Deployment) -> None:
    """The only way in is from peers to the broker."""
    interfaces = [template["LaunchTemplateData"]["NetworkInterfaces"][0] for template in by_rank(on_aws, TEMPLATE)]
    groups = {group for interface in interfaces for group in interface["Groups"]}
    assert len(groups) == 1
    for stack, id, resource in on_aws.stacks.resources("AWS::EC2::SecurityGroup"):
        if on_aws.stacks.resolve({"Fn::GetAtt": [id, "GroupId"]}, stack) in groups:
            assert not resource["Properties"].get("SecurityGroupIngress")
    for _, _, rule in on_aws.of("AWS::EC2::SecurityGroupIngress"):
        assert rule["GroupId"] not in groups


def test_the_machine_image_is_found_at_deployment(on_aws: Deployment) -> None:
    arm = on_aws.settings.architecture == "arm64"
    for stack, template in on_aws.templates.items():
        if f"-{outputs.PEERS}" not in stack:
            continue
        images = [
            parameter["Default"]
            for parameter in template["Parameters"].values()
            if parameter["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"
        ]
        (image,) = images
        assert image.startswith("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-")
        assert image.endswith("-arm64" if arm else "-x86_64")
    for template in by_rank(on_aws, TEMPLATE):
        assert template["LaunchTemplateData"]["ImageId"] == image
        assert template["LaunchTemplateData"]["InstanceType"] == on_aws.settings.instance_type


def test_a_container_has_every_variable_that_the_instance_reads_and_no_other(
    on_aws: Deployment, tmp_path: Path
) -> None:
    settings = on_aws.settings
    groups = by_rank(on_aws, GROUP)
    for rank, script in enumerate(scripts(on_aws)):
        given = variables(script, "/etc/peerless/peer.env")
        if settings.code_dir:
            assert given["PEERLESS_CODE_DIR"] == "/opt/peerless/code"
            given["PEERLESS_CODE_DIR"] = str(tmp_path)
        if settings.broker:  # only Amazon MQ knows the address
            assert given["PEERLESS_BROKER_ENDPOINT"]
            given["PEERLESS_BROKER_ENDPOINT"] = "amqps://b-1.mq.us-east-1.amazonaws.com:5671"
        environment = Recorder(given)
        read = InstanceEnv.read(environment)
        assert set(given) == (environment.asked - NOT_ON_AWS) | LIBRARIES
        assert read.rank == rank
        assert read.deployment == settings.name
        assert read.group == groups[rank]["AutoScalingGroupName"]
        assert read.run_bucket == on_aws.output(outputs.STORAGE, outputs.RUN_BUCKET)
        assert read.account == "123456789012"
        assert (read.code_dir is not None) == bool(settings.code_dir)
        assert bool(read.broker_secret) == bool(read.broker_endpoint) == settings.broker
        assert {given[name] for name in THREADS} == {str(settings.threads)}


def test_each_peer_has_a_broker_user_of_its_own(on_aws: Deployment) -> None:
    secrets = [variables(script, "/etc/peerless/peer.env")["PEERLESS_BROKER_SECRET"] for script in scripts(on_aws)]
    assert len(set(secrets)) == (on_aws.settings.peers if on_aws.settings.broker else 1)


def test_user_data_hold_no_secret(on_aws: Deployment) -> None:
    """Whoever may describe a launch template reads them."""
    for stack, id, resource in on_aws.stacks.resources(TEMPLATE):
        text = str(resource["Properties"]["LaunchTemplateData"]["UserData"])
        assert "{{resolve:" not in text, f"{stack}/{id}"
        assert "GenerateSecretString" not in text


def test_user_data_end_the_instance_after_max_hours(on_aws: Deployment) -> None:
    for script in scripts(on_aws):
        host = variables(script, "/etc/peerless/host.env")
        assert float(host["MAX_SECONDS"]) == on_aws.settings.max_hours * 3_600
        timer = script.index("systemctl enable --now peerless-limit.timer")
        assert timer < script.index("dnf install"), "what fails before the limit is set is never ended"
        assert "OnBootSec=${MAX_SECONDS}s" in script


def test_user_data_start_the_pinned_image(on_aws: Deployment) -> None:
    images = {variables(script, "/etc/peerless/host.env")["IMAGE"] for script in scripts(on_aws)}
    (image,) = images
    tag = image.rpartition(":")[2]
    assert re.fullmatch(r"[\w.-]{16,}", tag), f"{image} is not pinned"


def test_user_data_are_valid_shell(on_aws: Deployment, tmp_path: Path) -> None:
    """As a whole, and the script within, which bash sees as mere text."""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    script = scripts(on_aws)[0]
    assert len(script.encode()) < LIMIT
    inner = re.search(r"cat >/usr/local/sbin/peerless-end <<'END'\n(.*?)\nEND\n", script, re.DOTALL)
    assert inner is not None
    for name, text in (("user-data", script), ("peerless-end", inner[1] + "\n")):
        path = tmp_path / name
        path.write_text(text)
        for command in (["bash", "-n", str(path)], [str(shellcheck), "--shell=bash", str(path)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("value", ["two words", "a\nB=c", "it's", 'say "so"', "back\\slash"])
def test_a_variable_that_a_file_cannot_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="PEERLESS_GROUP"):
        user_data(container={"PEERLESS_GROUP": value}, host={})


def test_an_instance_may_switch_off_its_own_group_and_log_as_its_own_rank_only(on_aws: Deployment) -> None:
    account = on_aws.account()
    groups = [group["AutoScalingGroupName"] for group in by_rank(on_aws, GROUP)]
    arn = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:0a1b:autoScalingGroupName/"
    log = on_aws.output(f"{outputs.PEERS}0", outputs.PEER_LOG_GROUP)
    stream = f"arn:aws:logs:us-east-1:123456789012:log-group:{log}:log-stream:"
    (role,) = (
        role
        for role, (stack, id) in account.roles.items()
        if stack.endswith(f"-{outputs.PEERS}0") and id.startswith("Role0000")
    )

    def may(action: str, resource: str) -> bool:
        return account.allows(role, Request(action, resource))

    assert may("autoscaling:SetDesiredCapacity", arn + groups[0])
    assert not may("autoscaling:SetDesiredCapacity", arn + groups[0].removesuffix("0000") + "0001")
    assert not may("autoscaling:UpdateAutoScalingGroup", arn + groups[0])
    assert may("logs:PutLogEvents", f"{stream}0000/i-1")
    assert not may("logs:PutLogEvents", f"{stream}0001/i-1")
    assert not may("ssm:GetParameter", "arn:aws:ssm:us-east-1:123456789012:parameter/x")
    assert not may("ec2:RunInstances", "*")
    assert not may("iam:PassRole", role)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_largest_deployment_stays_within_cloudformations_limits(tmp_path: Path) -> None:
    settings = Settings(peers=MOST_PEERS, alarm_email="owner@example.com", monthly_budget_usd=100.0)
    (tmp_path / "settings.json").write_text(settings.to_json())
    command = [
        sys.executable,
        "-c",
        "import app\n"
        "from aws_cdk import App\n"
        "import json, sys\n"
        "flags = json.loads((app.FOLDER / 'cdk.json').read_text())['context']\n"
        "made = App(context={**flags, 'settings': sys.argv[1]}, outdir=sys.argv[2])\n"
        "app.build(made, app.settings_of(made))\n"
        "made.synth()\n",
        str(tmp_path / "settings.json"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    templates = {path.name: path for path in (tmp_path / "out").glob("*.template.json")}
    assert f"{settings.prefix}-{outputs.PEERS}14.template.json" in templates
    accounts = set()
    for name, path in templates.items():
        text = path.read_text()
        template = json.loads(text)
        assert text.count("resolve:secretsmanager") <= MOST_SECRETS, name
        assert len(template.get("Parameters", {})) <= MOST_PARAMETERS, name
        made = [r["Properties"]["Users"] for r in template["Resources"].values() if r["Type"] == "Custom::BrokerUsers"]
        accounts |= {user["Username"] for users in made for user in users}
        assert len(template["Resources"]) < MOST_RESOURCES, name
        assert len(template.get("Outputs", {})) <= MOST_OUTPUTS, name
        assert path.stat().st_size < MOST_BYTES, name
    assert accounts == {user_name(rank) for rank in range(MOST_PEERS)}
