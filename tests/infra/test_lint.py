"""cfn-lint, which knows every resource's schema and limits, on every template."""

from __future__ import annotations

import warnings

import pytest

from tests.infra.deployment import Deployment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies, at import
    from cfnlint.api import ManualArgs, lint


def errors(text: str) -> list[str]:
    """Errors alone: CDK's own `DependsOn` beside a reference is a warning, and there is one on every role."""
    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    return [f"{match.rule.id} {match.message}" for match in found if match.rule.severity == "error"]


#: Templates that differ in more than names and numbers, by configuration; of groups of peers the smallest. Each takes
#: a second, and more with each peer.
LINTED = {
    "default": ("Storage", "Network"),
    "full": ("Broker", "Images", "Network", "Peers1", "Watch", "Workers1"),
    "shared": ("Workers0",),
    "docker": ("Images", "Peers0"),
    "local": ("Workers0",),
}


def test_every_kind_of_stack_is_linted(deployments: dict[str, Deployment]) -> None:
    linted = {name.rstrip("01") for names in LINTED.values() for name in names}
    for deployment in deployments.values():
        stacks = {name.removeprefix(f"{deployment.settings.prefix}-") for name in deployment.templates}
        assert {name.rstrip("01") for name in stacks} <= linted


@pytest.mark.parametrize(("name", "stack"), [(name, stack) for name, stacks in LINTED.items() for stack in stacks])
def test_cfn_lint_finds_no_errors(deployments: dict[str, Deployment], name: str, stack: str) -> None:
    deployment = deployments[name]
    (path,) = [path for path in deployment.files if path.name == f"{deployment.settings.prefix}-{stack}.template.json"]
    assert errors(path.read_text(encoding="utf-8")) == []


def test_cfn_lint_does_find_errors() -> None:
    wrong = '{"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketNam": "x"}}}}'
    assert any("BucketNam" in found for found in errors(wrong))
