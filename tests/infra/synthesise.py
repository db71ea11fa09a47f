"""Synthesises each configuration of the tests once, with cdk-nag: `python synthesise.py FOLDER`.

A process of its own, so that aws_cdk and the Node.js behind it end with it. FOLDER gets one folder of templates per
configuration and `findings.json`: what cdk-nag finds and nobody acknowledged, by configuration.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from infra.settings import Settings  # noqa: E402
from infra.toolkit import node  # noqa: E402


def configurations(folder: Path) -> dict[str, Settings]:
    """What is synthesised: the defaults, everything that can be switched on, one worker for all, and the local part."""
    code = folder / "code"
    code.mkdir()
    (code / "own_model.py").write_text("ANSWER = 42\n")
    return {
        "default": Settings(),
        "full": Settings(
            name="full",
            peers=11,
            network="private",
            broker_instance_type="mq.m7g.large",
            broker_cluster=True,
            reserved_concurrency=20,
            snap_start=True,
            express=True,
            concurrency=8,
            tolerated_failures=0.05,
            threads=2,
            monthly_budget_usd=100.0,
            alarm_email="owner@example.com",
            data_days=7,
            log_days=14,
            code_dir=str(code),
            code_requirements=("einops==0.8.0",),
            code_digest="ab" * 32,
        ),
        "shared": Settings(name="shared", peers=12, shared_worker=True, broker=False),
        "docker": Settings(
            name="docker",
            peers=3,
            architecture="x86_64",
            instance_type="t3.medium",
            torch_index="https://packages.example.com/torch/cpu",
            broker=False,
            local_docker=True,
            reduce=False,
        ),
        "local": Settings(name="local", peers=4, local=True, lambda_url="http://127.0.0.1:9"),
    }


def main(folder: Path) -> None:
    """Write templates and findings."""
    os.environ.setdefault("JSII_NODE", str(node()))
    from aws_cdk import App
    from cdk_nag import AwsSolutionsChecks

    from infra.app import build

    flags = json.loads((ROOT / "cdk.json").read_text(encoding="utf-8"))["context"]
    findings: dict[str, list[tuple[str, str]]] = {}
    settings = configurations(folder)
    for name, made in settings.items():
        (folder / f"{name}.settings.json").write_text(made.to_json(), encoding="utf-8")
        context = {**flags, "aws:cdk:enable-path-metadata": True}
        app = App(context=context, outdir=str(folder / name), analytics_reporting=False)
        checks = AwsSolutionsChecks(app, write_suppressions_to_cloud_formation=True)
        build(app, made)
        app.synth()
        report = checks.validate_scope(app)
        findings[name] = sorted(
            (violation.rule_name, str(resource.construct_path))
            for violation in report.violations
            for resource in violation.violating_resources
        )
    (folder / "findings.json").write_text(json.dumps(findings), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
