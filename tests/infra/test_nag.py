"""cdk-nag's AwsSolutions: every finding is acknowledged beside its construct, or explained by its policy's reasons."""

from __future__ import annotations

import json
from pathlib import Path

from tests.infra.deployment import Deployment

#: Written before a wildcard's text in cdk-nag's name of a finding: `AwsSolutions-IAM5[Resource::...]`.
_WILDCARDS = "AwsSolutions-IAM5["


def unexplained(deployment: Deployment) -> list[tuple[str, str]]:
    """What cdk-nag finds and nobody gave a reason for.

    Wildcards in policies carry their reasons by statement (metadata `Reasons`), because cdk-nag's names for them hold
    every reference that the resource is made of; tests/infra/test_policies.py checks those one by one.
    """
    explained = {
        deployment.path(resource)
        for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::IAM::Role")
        for where, resource, _ in deployment.of(kind)
        if all(wildcard.reason for wildcard in deployment.wildcards() if wildcard.where == where)
    }
    return [
        (rule, path) for rule, path in deployment.findings if not (rule.startswith(_WILDCARDS) and path in explained)
    ]


def test_cdk_nag_finds_nothing_that_is_not_explained(deployment: Deployment) -> None:
    assert unexplained(deployment) == []


def test_cdk_nag_did_look(deployments: dict[str, Deployment]) -> None:
    """Wildcards with a reason of ours are findings to it, so an empty list would mean that it saw nothing."""
    for deployment in deployments.values():
        assert any(rule.startswith(_WILDCARDS) for rule, _ in deployment.findings), deployment.name


def test_every_acknowledgement_says_why(deployment: Deployment) -> None:
    for name, template in deployment.templates.items():
        for id, resource in template["Resources"].items():
            for rule in resource.get("Metadata", {}).get("cdk_nag", {}).get("rules_to_suppress", ()):
                assert len(rule["reason"].split()) >= 5, f"{name}/{id}: {rule}"


def test_the_cdks_own_rules_find_nothing(deployment: Deployment) -> None:
    for path in deployment.files:
        report = Path(path).parent / "validation-report.json"
        assert json.loads(report.read_text(encoding="utf-8"))["pluginReports"] == []
