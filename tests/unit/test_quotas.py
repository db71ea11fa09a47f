"""What an account must allow: each answer of AWS's becomes a finding with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from contract.config import RunConfig, from_mapping
from contract.errors import AccountError, AwsUnavailable, DeployFailed
from infra.settings import Settings
from peerless.launch import quotas
from peerless.launch.account import told
from peerless.launch.quotas import FAILED, OK, WARNING, Finding


class Answers:
    """A client whose calls answer what they were told to, or raise it."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**_: Any) -> Any:
            answer = self._answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    def get_paginator(self, name: str) -> Any:
        pages = self._answers[name]

        class Pages:
            def paginate(self, **_: Any) -> Any:
                return pages

        return Pages()


def clients(**services: Answers) -> Callable[[str], Any]:
    return lambda service: services[service.replace("-", "_")]


def refused(code: str, message: str = "", status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "Operation")


def limit(value: float) -> dict[str, Any]:
    return {"Quota": {"Value": value}}


@pytest.mark.parametrize(
    ("peers", "allowed", "state", "told"),
    [
        (4, 32.0, OK, "32 vCPUs may run, 4 x t4g.medium take 8"),
        (4, 8.0, OK, "8 vCPUs may run"),
        (5, 8.0, FAILED, "5 x t4g.medium take 10 vCPUs, but this account may run 8; ask for more in Service Quotas"),
    ],
)
def test_instances_must_fit_the_limit_of_vcpus(peers: int, allowed: float, state: str, told: str) -> None:
    found = quotas.vcpus(_vcpus(allowed), "t4g.medium", peers)
    assert found.state == state
    assert told in found.sentence()


def _vcpus(allowed: float) -> Callable[[str], Any]:
    types = {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 2}}]}
    return clients(ec2=Answers(describe_instance_types=types), service_quotas=Answers(get_service_quota=limit(allowed)))


@pytest.mark.parametrize(
    ("instance_type", "code"), [("c7g.large", "L-1216C47A"), ("g6.xlarge", "L-DB2E81BA"), ("inf2.xlarge", None)]
)
def test_each_family_has_its_own_limit(instance_type: str, code: str | None) -> None:
    asked = []

    class Quotas:
        def get_service_quota(self, *, ServiceCode: str, QuotaCode: str) -> dict[str, Any]:
            asked.append(QuotaCode)
            return limit(100.0)

    types = {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 4}}]}
    services = {"ec2": Answers(describe_instance_types=types), "service-quotas": Quotas()}
    assert quotas.vcpus(services.__getitem__, instance_type, 1).state == OK
    assert asked == ([code] if code else [])


def test_too_few_workers_at_once_are_a_warning_and_no_refusal() -> None:
    few = clients(**{"lambda": Answers(get_account_settings={"AccountLimit": {"ConcurrentExecutions": 10}})})
    found = quotas.lambda_concurrency(few, 160)
    assert found.state == WARNING
    assert "runs 10 functions at once, but a round wants 160" in found.text
    assert quotas.lambda_concurrency(few, 10).state == OK


@pytest.mark.parametrize(
    ("compute", "settings", "batches", "wanted"),
    [
        ({"state_machine": "inline_map"}, {}, [50, 50], 80),
        ({"state_machine": "inline_map", "concurrency": 8}, {}, [50, 4], 12),
        ({"state_machine": "distributed_map"}, {}, [100, 50], 150),
        ({"state_machine": "parallel", "concurrency": 8}, {}, [100, 50], 150),
        ({"state_machine": "distributed_map"}, {"reserved_concurrency": 20}, [100, 50], 40),
    ],
)
def test_how_many_workers_a_round_wants(
    compute: dict[str, Any], settings: dict[str, Any], batches: list[int], wanted: int
) -> None:
    config: RunConfig = from_mapping({"peers": 2, "compute": compute}, "test")
    assert quotas.workers_at_once(config, Settings(peers=2, **settings), batches) == wanted


def test_a_broker_type_must_be_offered_with_our_version() -> None:
    def offered(*versions: str) -> Finding:
        option = {"BrokerInstanceOptions": [{"SupportedEngineVersions": list(versions)}]}
        return quotas.broker_offered(clients(mq=Answers(describe_broker_instance_options=option)), "mq.x", "eu-west-1")

    assert offered("3.13", "4.2").state == OK
    assert offered("3.13").state == FAILED
    assert "eu-west-1 has no mq.x with RabbitMQ 4.2" in offered().sentence()


def test_builds_must_be_allowed_for_the_processor() -> None:
    def builds(architecture: str, **limits: float) -> Finding:
        rows = [{"QuotaName": f"Concurrently running builds for {n.replace('_', '/')} environment", "Value": v}
                for n, v in limits.items()]  # fmt: skip
        quotas_ = Answers(list_service_quotas=[{"Quotas": rows}])
        return quotas.image_builds(clients(service_quotas=quotas_), architecture)

    assert builds("arm64", ARM_Small=1.0, ARM_Large=1.0, Linux_Small=0.0).state == OK
    assert builds("x86_64", ARM_Small=1.0, Linux_Small=0.0).state == FAILED
    assert "`peerless deploy --local-docker`" in builds("arm64", ARM_Small=0.0).remedy
    assert builds("arm64", Linux_Small=1.0).state == WARNING


def test_the_bootstrap_stack_may_be_missing_old_or_unreadable() -> None:
    def version(answer: Any) -> Finding:
        return quotas.look("bootstrap", lambda: quotas.bootstrapped(clients(ssm=Answers(get_parameter=answer)), "r"))

    assert version({"Parameter": {"Value": "30"}}).state == OK
    assert version({"Parameter": {"Value": "4"}}).state == FAILED
    missing = version(refused("ParameterNotFound"))
    assert (missing.state, missing.remedy) == (WARNING, "`peerless deploy` makes it")
    denied = version(refused("AccessDeniedException", "User is not authorized"))
    assert denied.state == WARNING
    assert denied.text.startswith("not known: AWS did not let us look for the CDK's bootstrap stack")


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (NoCredentialsError(), AccountError, "there are no AWS credentials; run `aws configure`"),
        (refused("ExpiredToken", "has expired"), AccountError, "AWS does not accept the credentials (ExpiredToken"),
        (refused("AccessDenied", "no"), AccountError, "AWS did not let us do it (AccessDenied: no); ask for that"),
        (refused("Throttling", "slow"), AwsUnavailable, "AWS was too busy to do it (Throttling: slow); try again"),
        (refused("Boom", "a\nb", 503), AwsUnavailable, "AWS was too busy to do it (Boom: a b)"),
        (refused("ValidationError", "odd"), DeployFailed, "AWS refused to do it (ValidationError: odd)"),
        (EndpointConnectionError(endpoint_url="https://x"), AwsUnavailable, "AWS cannot be reached to do it: Could"),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(raised: Exception, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as caught, told("do it"):
        raise raised
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
