"""Every configuration is synthesised once per session, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.deployment import Deployment

CONFIGURATIONS = ("default", "full", "shared", "docker", "local")
_SECONDS = 110


@pytest.fixture(scope="session")
def deployments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deployment]:
    """Templates and findings by configuration; see tests/infra/synthesise.py."""
    folder = tmp_path_factory.mktemp("synthesis")
    script = Path(__file__).with_name("synthesise.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    assert set(findings) == set(CONFIGURATIONS)
    return {name: Deployment(folder, name, findings[name]) for name in CONFIGURATIONS}


@pytest.fixture(params=CONFIGURATIONS)
def deployment(request: pytest.FixtureRequest, deployments: dict[str, Deployment]) -> Deployment:
    """Each configuration in turn."""
    return deployments[request.param]


@pytest.fixture(params=[name for name in CONFIGURATIONS if name != "local"])
def on_aws(request: pytest.FixtureRequest, deployments: dict[str, Deployment]) -> Deployment:
    """Each configuration for AWS in turn."""
    return deployments[request.param]
