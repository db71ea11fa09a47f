"""What an account and a region must allow for a deployment: each finding a sentence with its remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from botocore.exceptions import ClientError

from contract.config import RunConfig
from contract.errors import PeerlessError
from infra.settings import Settings
from peerless.launch.account import Clients, told

OK, WARNING, FAILED = "ok", "warning", "failed"

#: The version of RabbitMQ that the broker runs, and AWS's codes of quotas (`aws service-quotas list-service-quotas`).
BROKER_VERSION = "4.2"
LAMBDA_CONCURRENCY = "L-B99A9384"
_VCPUS = {"standard": "L-1216C47A", "g": "L-DB2E81BA", "p": "L-417A185B"}
_STANDARD_FAMILIES = "acdhimrtz"
_INLINE_AT_ONCE = 40
#: The least version of the CDK's bootstrap stack that templates with assets ask for.
_BOOTSTRAP_VERSION = 6


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str
    """OK, WARNING (it works, but) or FAILED (it will not work)."""
    text: str
    remedy: str = ""
    """What to do; "" where nothing is to be done."""

    def sentence(self) -> str:
        """Text and remedy together."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def look(name: str, question: Callable[[], Finding]) -> Finding:
    """The finding, or a warning that tells why there is none: a right that lacks here need not lack for the run."""
    try:
        return question()
    except PeerlessError as error:
        return Finding(name=name, state=WARNING, text=f"not known: {error}")


def before_training(clients: Clients, settings: Settings, config: RunConfig, batches: Sequence[int]) -> list[Finding]:
    """What could keep a run of `config` from working as fast as it could, or at all; `batches` of a round by rank."""
    found = [look("instances", lambda: vcpus(clients, settings.instance_type, config.peers))]
    if config.compute.service == "lambda":
        needed = workers_at_once(config, settings, batches)
        found.append(look("Lambda concurrency", lambda: lambda_concurrency(clients, needed)))
    return found


def workers_at_once(config: RunConfig, settings: Settings, batches: Sequence[int]) -> int:
    """The most gradient workers that all peers together can want at one moment."""
    most = _INLINE_AT_ONCE if config.compute.state_machine == "inline_map" else max(batches)
    if config.compute.state_machine != "parallel" and config.compute.concurrency:
        most = min(most, config.compute.concurrency)
    if settings.reserved_concurrency and not settings.shared_worker:
        most = min(most, settings.reserved_concurrency)
    return sum(min(count, most) for count in batches)


def lambda_concurrency(clients: Clients, needed: int) -> Finding:
    """Whether so many functions may run at once; too few make rounds slower, as what is throttled is tried again."""
    with told("read Lambda's limits"):
        limit = int(clients("lambda").get_account_settings()["AccountLimit"]["ConcurrentExecutions"])
    if limit >= needed:
        return Finding(name="Lambda concurrency", state=OK, text=f"{limit} functions at once, {needed} are wanted")
    return Finding(
        name="Lambda concurrency",
        state=WARNING,
        text=f"this account runs {limit} functions at once, but a round wants {needed}, so it takes longer",
        remedy=f"ask for more in Service Quotas (Lambda, {LAMBDA_CONCURRENCY}), or set compute.concurrency",
    )


def vcpus(clients: Clients, instance_type: str, peers: int) -> Finding:
    """Whether the account may run so many instances of this type. One that may not leaves the peers without any."""
    with told(f"ask for the size of {instance_type}"):
        answer = clients("ec2").describe_instance_types(InstanceTypes=[instance_type])
    each = int(answer["InstanceTypes"][0]["VCpuInfo"]["DefaultVCpus"])
    family = re.sub(r"[^a-z].*", "", instance_type)
    code = _VCPUS.get("standard" if family[0] in _STANDARD_FAMILIES and len(family) == 1 else family[:1])
    if code is None:
        return Finding(name="instances", state=OK, text=f"{peers} x {instance_type}, {each} vCPUs each; no known limit")
    with told("read the limit of vCPUs"):
        limit = float(clients("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
    if limit >= peers * each:
        text = f"{limit:.0f} vCPUs may run, {peers} x {instance_type} take {peers * each}"
        return Finding(name="instances", state=OK, text=text)
    return Finding(
        name="instances",
        state=FAILED,
        text=f"{peers} x {instance_type} take {peers * each} vCPUs, but this account may run {limit:.0f}",
        remedy=f"ask for more in Service Quotas (EC2, {code}), or take fewer peers or a smaller aws.instance_type",
    )


def instance_offered(clients: Clients, instance_type: str, region: str) -> Finding:
    """Whether the region has this instance type."""
    with told("ask which instances there are"):
        answer = clients("ec2").describe_instance_type_offerings(
            LocationType="region", Filters=[{"Name": "instance-type", "Values": [instance_type]}]
        )
    if answer["InstanceTypeOfferings"]:
        return Finding(name="instance type", state=OK, text=f"{region} has {instance_type}")
    text = f"{region} does not have {instance_type}"
    return Finding(
        name="instance type", state=FAILED, text=text, remedy="choose another aws.instance_type or AWS_REGION"
    )


def broker_offered(clients: Clients, instance_type: str, region: str) -> Finding:
    """Whether Amazon MQ has this instance type for the version of RabbitMQ that is deployed."""
    with told("ask which brokers there are"):
        answer = clients("mq").describe_broker_instance_options(EngineType="RABBITMQ", HostInstanceType=instance_type)
    versions = [v for option in answer["BrokerInstanceOptions"] for v in option.get("SupportedEngineVersions", ())]
    if any(version.startswith(BROKER_VERSION) for version in versions):
        text = f"{region} has {instance_type} with RabbitMQ {BROKER_VERSION}"
        return Finding(name="broker type", state=OK, text=text)
    return Finding(
        name="broker type",
        state=FAILED,
        text=f"{region} has no {instance_type} with RabbitMQ {BROKER_VERSION}",
        remedy='choose another aws.broker_instance_type or AWS_REGION, or set exchange.transport = "s3"',
    )


def image_builds(clients: Clients, architecture: str) -> Finding:
    """Whether CodeBuild may build images for this processor; a new account may start at 0."""
    kind = "ARM" if architecture == "arm64" else "Linux"
    wanted = re.compile(rf"Concurrently running builds for {kind}/(Small|Medium|Large)\b")
    limits: dict[str, float] = {}
    with told("read CodeBuild's limits"):
        pages = clients("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="codebuild")
        for page in pages:
            limits |= {q["QuotaName"]: float(q["Value"]) for q in page["Quotas"] if wanted.match(q["QuotaName"])}
    name = f"CodeBuild on {architecture}"
    if not limits:
        return Finding(name=name, state=WARNING, text=f"no limit of builds for {kind} is to be found in this region")
    if min(limits.values()) >= 1:
        return Finding(name=name, state=OK, text=f"{min(limits.values()):.0f} builds at once")
    short = next(title for title, limit in limits.items() if limit < 1)
    return Finding(
        name=name,
        state=FAILED,
        text=f'this account may run no build ("{short}" is 0)',
        remedy="ask for more in Service Quotas (CodeBuild), or build with `peerless deploy --local-docker`",
    )


def bootstrapped(clients: Clients, region: str) -> Finding:
    """Whether the CDK's own stack is in the region, which holds what deploying uploads."""
    remedy = "`peerless deploy` makes it"
    try:
        with told("look for the CDK's bootstrap stack"):
            answer = clients("ssm").get_parameter(Name="/cdk-bootstrap/hnb659fds/version")
    except PeerlessError as error:
        cause = error.__cause__
        if not (isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "ParameterNotFound"):
            raise
        text = f"{region} has no CDK bootstrap stack yet"
        return Finding(name="bootstrap", state=WARNING, text=text, remedy=remedy)
    version = int(answer["Parameter"]["Value"])
    if version < _BOOTSTRAP_VERSION:
        text = f"the CDK's bootstrap stack in {region} has version {version}, {_BOOTSTRAP_VERSION} is needed"
        return Finding(name="bootstrap", state=FAILED, text=text, remedy=remedy)
    return Finding(name="bootstrap", state=OK, text=f"version {version} in {region}")
