"""The doctor's list: everything well, and each thing that can lack, on an account that answers as it is told to."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import AccountError
from infra.settings import Settings
from peerless.launch.account import Identity
from peerless.launch.doctor import examine
from peerless.launch.quotas import FAILED, OK, WARNING
from tests.unit.test_quotas import Answers, refused

WELL: dict[str, dict[str, Any]] = {
    "cloudformation": {"describe_stacks": [{"Stacks": []}]},
    "ssm": {"get_parameter": {"Parameter": {"Value": "30"}}},
    "ec2": {
        "describe_instance_type_offerings": {"InstanceTypeOfferings": [{}]},
        "describe_instance_types": {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 2}}]},
    },
    "lambda": {"get_account_settings": {"AccountLimit": {"ConcurrentExecutions": 1_000}}},
    "service-quotas": {
        "get_service_quota": {"Quota": {"Value": 64.0}},
        "list_service_quotas": [
            {"Quotas": [{"QuotaName": "Concurrently running builds for ARM/Small environment", "Value": 1.0}]}
        ],
    },
    "mq": {"describe_broker_instance_options": {"BrokerInstanceOptions": [{"SupportedEngineVersions": ["4.2"]}]}},
}


class Here:
    """An account in eu-west-1."""

    region, profile, endpoint_url = "eu-west-1", "work", None

    def __init__(self, **changed: dict[str, Any]) -> None:
        self._answers = {name: {**answers, **changed.get(name, {})} for name, answers in WELL.items()}

    def client(self, service: str) -> Answers:
        return Answers(**self._answers[service])

    def identity(self) -> Identity:
        return Identity(account="123456789012", arn="arn:aws:iam::123456789012:user/me")


def states(settings: Settings | None = None, **changed: dict[str, Any]) -> dict[str, str]:
    findings = examine("peerless", settings, lambda: Here(**changed))  # type: ignore[arg-type, return-value]
    assert all(finding.text and "\n" not in finding.sentence() for finding in findings)
    return {finding.name: finding.state for finding in findings}


def test_a_healthy_account() -> None:
    found = states(Settings(torch_index="https://example.invalid/cpu"))
    assert found.pop("CDK command") in (OK, WARNING)
    assert found.pop("deployment") == WARNING, "there is none yet"
    assert set(found) == {
        "Node.js", "torch", "credentials", "region", "bootstrap", "instance type", "instances", "Lambda concurrency",
        "CodeBuild on arm64", "broker type",
    }  # fmt: skip
    assert set(found.values()) == {OK}


@pytest.mark.parametrize(
    ("name", "state", "changed"),
    [
        ("bootstrap", FAILED, {"ssm": {"get_parameter": {"Parameter": {"Value": "3"}}}}),
        ("instance type", FAILED, {"ec2": {"describe_instance_type_offerings": {"InstanceTypeOfferings": []}}}),
        ("instances", FAILED, {"service-quotas": {"get_service_quota": {"Quota": {"Value": 5.0}}}}),
        ("instances", WARNING, {"service-quotas": {"get_service_quota": refused("AccessDeniedException")}}),
        ("broker type", FAILED, {"mq": {"describe_broker_instance_options": {"BrokerInstanceOptions": []}}}),
        ("CodeBuild on arm64", WARNING, {"service-quotas": {"list_service_quotas": [{"Quotas": []}]}}),
    ],
)
def test_what_lacks_is_found(name: str, state: str, changed: dict[str, Any]) -> None:
    assert states(**changed)[name] == state


def test_a_configuration_without_an_index_for_torch_cannot_be_deployed() -> None:
    assert states(Settings())["torch"] == FAILED
    assert "torch" not in states(), "nothing is said of a configuration that was not named"


def test_without_credentials_nothing_else_is_asked() -> None:
    def nobody() -> Any:
        raise AccountError("there are no AWS credentials")

    findings = examine("peerless", None, nobody)
    assert [finding.name for finding in findings] == ["Node.js", "CDK command", "credentials"]
    assert findings[-1].state == FAILED
