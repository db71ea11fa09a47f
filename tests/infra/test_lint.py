"""cfn-lint, which knows every resource's schema and limits, on every template."""

from __future__ import annotations

import warnings

from tests.infra.deployment import Deployment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies, at import
    from cfnlint.api import ManualArgs, lint


def errors(text: str) -> list[str]:
    """Errors alone: CDK's own `DependsOn` beside a reference is a warning, and there is one on every role."""
    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    return [f"{match.rule.id} {match.message}" for match in found if match.rule.severity == "error"]


def test_cfn_lint_finds_no_errors(deployment: Deployment) -> None:
    assert {path.name: found for path in deployment.files if (found := errors(path.read_text()))} == {}


def test_cfn_lint_does_find_errors() -> None:
    wrong = '{"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketNam": "x"}}}}'
    assert any("BucketNam" in found for found in errors(wrong))
