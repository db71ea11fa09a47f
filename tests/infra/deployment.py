"""What was synthesised for one configuration, and the questions that several tests ask of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.settings import Settings
from tests.infra.simulator import Account, Stacks

#: infra/policies.py, whose import would start the CDK in the tests' own process.
REASONS = "Reasons"
#: What AWS's own policies allow, as far as roles of ours use them: nothing on our buckets, functions and machines.
#: https://docs.aws.amazon.com/aws-managed-policy/latest/reference/
MANAGED: dict[str, list[dict[str, Any]]] = {
    "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole": [
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": "*",
        }
    ],
    "arn:aws:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole": [
        {
            "Effect": "Allow",
            "Action": [
                "logs:CreateLogGroup",
                "logs:CreateLogStream",
                "logs:PutLogEvents",
                "ec2:CreateNetworkInterface",
                "ec2:DescribeNetworkInterfaces",
                "ec2:DescribeSubnets",
                "ec2:DeleteNetworkInterface",
                "ec2:AssignPrivateIpAddresses",
                "ec2:UnassignPrivateIpAddresses",
            ],
            "Resource": "*",
        }
    ],
    "arn:aws:iam::aws:policy/AmazonElasticContainerRegistryPublicReadOnly": [
        {
            "Effect": "Allow",
            "Action": [
                "ecr-public:GetAuthorizationToken",
                "sts:GetServiceBearerToken",
                "ecr-public:BatchCheckLayerAvailability",
                "ecr-public:GetRepositoryPolicy",
                "ecr-public:DescribeRepositories",
                "ecr-public:DescribeRegistries",
                "ecr-public:DescribeImages",
                "ecr-public:DescribeImageTags",
                "ecr-public:GetRepositoryCatalogData",
                "ecr-public:GetRegistryCatalogData",
            ],
            "Resource": "*",
        }
    ],
}


@dataclass(frozen=True)
class Wildcard:
    """A `*` in an action or resource that a policy allows."""

    where: str
    sid: str
    text: str
    reason: str


class Deployment:
    """Templates by stack name, without the deployment's prefix; findings of cdk-nag that nobody acknowledged."""

    def __init__(self, folder: Path, name: str, findings: list[tuple[str, str]]) -> None:
        self.name = name
        self.settings = Settings.from_file(folder / f"{name}.settings.json")
        self.findings = findings
        self.templates: dict[str, dict[str, Any]] = {
            path.name.removesuffix(".template.json"): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((folder / name).glob("*.template.json"))
        }
        self.stacks = Stacks(self.templates)
        self.files = sorted((folder / name).glob("*.template.json"))

    def account(self) -> Account:
        """The simulator over these templates."""
        return Account(self.templates, MANAGED)

    def output(self, stack: str, name: str) -> str:
        """An output's value, of a stack without the prefix."""
        return str(self.stacks.output(f"{self.settings.prefix}-{stack}", name))

    def has(self, stack: str) -> bool:
        """Whether there is such a stack (without the prefix)."""
        return f"{self.settings.prefix}-{stack}" in self.templates

    def of(self, kind: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(stack/id, resource, its resolved properties) of every resource of a type."""
        return [
            (f"{stack}/{id}", dict(resource), self.stacks.resolve(resource.get("Properties", {}), stack))
            for stack, id, resource in self.stacks.resources(kind)
        ]

    def wildcards(self) -> Iterator[Wildcard]:
        """All wildcards of all identity policies, each with its reason or an empty text."""
        for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::IAM::Role"):
            for where, resource, properties in self.of(kind):
                documents = [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
                documents += [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
                for document in documents:
                    for statement in document["Statement"]:
                        yield from _wildcards(where, resource, statement)

    def path(self, resource: dict[str, Any]) -> str:
        """The construct path of a resource."""
        return str(resource.get("Metadata", {}).get("aws:cdk:path", ""))


def _wildcards(where: str, resource: dict[str, Any], statement: dict[str, Any]) -> Iterator[Wildcard]:
    if statement["Effect"] != "Allow":
        return
    metadata = resource.get("Metadata", {})
    sid = statement.get("Sid", "")
    for part in ("Action", "NotAction", "Resource", "NotResource"):
        values = statement.get(part, [])
        for text in values if isinstance(values, list) else [values]:
            if "*" in text or part.startswith("Not"):
                reason = metadata.get(REASONS, {}).get(sid, "") or _acknowledged(metadata, part, text)
                yield Wildcard(where, sid, f"{part} {text}", reason)


def _acknowledged(metadata: dict[str, Any], part: str, text: str) -> str:
    """The reason given to cdk-nag: for this very finding where the text has no reference in it, or for all."""
    for rule in metadata.get("cdk_nag", {}).get("rules_to_suppress", ()):
        if rule["id"] in ("AwsSolutions-IAM5", f"AwsSolutions-IAM5[{part}::{text}]"):
            return str(rule["reason"])
    return ""
