"""cfn-lint, which knows every resource's schema and limits, on every template."""

from __future__ import annotations

import warnings
from pathlib import Path

from infra import outputs
from tests.infra.deployment import Deployment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies, at import
    from cfnlint.api import ManualArgs, lint


def errors(text: str) -> list[str]:
    """Errors alone: CDK's own `DependsOn` beside a reference is a warning, and there is one on every role."""
    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    return [f"{match.rule.id} {match.message}" for match in found if match.rule.severity == "error"]


def linted(deployment: Deployment) -> list[Path]:
    """Templates that differ in more than numbers: of groups of peers the last, which is the smallest, and of the
    deployment with one worker for all the one stack that this changes."""
    settings, last = deployment.settings, len(deployment.settings.groups) - 1
    if settings.shared_worker:
        wanted = {f"{settings.prefix}-{outputs.WORKERS}0"}
    elif settings.local_docker:
        wanted = {f"{settings.prefix}-{name}" for name in (outputs.IMAGES, f"{outputs.PEERS}0", f"{outputs.WORKERS}0")}
    else:
        repeated = {f"{settings.prefix}-{name}{k}" for name in (outputs.PEERS, outputs.WORKERS) for k in range(last)}
        wanted = set(deployment.templates) - repeated
    return [path for path in deployment.files if path.name.removesuffix(".template.json") in wanted]


def test_cfn_lint_finds_no_errors(deployment: Deployment) -> None:
    paths = linted(deployment)
    assert paths
    assert {path.name: found for path in paths if (found := errors(path.read_text()))} == {}


def test_cfn_lint_does_find_errors() -> None:
    wrong = '{"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketNam": "x"}}}}'
    assert any("BucketNam" in found for found in errors(wrong))
