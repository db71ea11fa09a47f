"""The CDK command with a stand-in for npm and for the command itself: what it is called with, and how it fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from contract.errors import DeployFailed
from infra import toolkit
from infra.settings import Settings

#: Writes the package that npm would have unpacked; its command prints its arguments and some of its environment.
NPM = """
import json, os, pathlib, sys
wanted = json.loads(pathlib.Path("package-lock.json").read_text())["packages"]["node_modules/aws-cdk"]
assert sys.argv[2] == "ci" and wanted["integrity"].startswith("sha512-")
package = pathlib.Path("node_modules/aws-cdk")
(package / "bin").mkdir(parents=True)
(package / "bin/cdk").write_text(CDK)
(package / "package.json").write_text(json.dumps({"version": VERSION or wanted["version"]}))
"""
CDK = """
import json, os, pathlib, sys
file = next(word for word in sys.argv if word.startswith("settings=")).partition("=")[2]
told = {name: os.environ.get(name) for name in ("JSII_NODE", "PYTHON", "CDK_DISABLE_CLI_TELEMETRY", "AWS_REGION")}
settings = json.loads(pathlib.Path(file).read_text())
print(json.dumps({"words": sys.argv[1:], "settings": settings, "env": told}), flush=True)
print("\\033[31mlast words\\033[0m", file=sys.stderr)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for the command, and a Python in place of Node.js."""
    monkeypatch.setattr(toolkit, "command_folder", lambda: tmp_path / "cdk")
    monkeypatch.setattr(toolkit, "node", lambda: tmp_path / "runtime" / "bin" / "node")
    (tmp_path / "runtime" / "bin").mkdir(parents=True)
    (tmp_path / "runtime" / "bin" / "node").symlink_to(sys.executable)
    return tmp_path


def put_npm(home: Path, text: str, *, version: str = "") -> None:
    script = home / "runtime/lib/node_modules/npm/bin/npm-cli.js"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"CDK, VERSION = {CDK!r}, {version!r}\n{text}".replace("sys.argv[2]", "sys.argv[1]"))


def test_the_command_is_installed_once_and_run(home: Path) -> None:
    put_npm(home, NPM)
    said: list[str] = []
    settings = Settings(name="mine", peers=3)
    environ = {"PATH": os.defpath, "AWS_REGION": "eu-west-1"}
    toolkit.cdk(["deploy", "--all"], settings, environ, say=said.append)
    assert said[0].startswith(f"installing the CDK command (aws-cdk {toolkit.CDK_VERSION}")
    assert said[-1] == "last words"
    told = json.loads(said[1])
    assert told["words"][:2] == ["deploy", "--all"]
    assert {"--no-notices", "--no-version-reporting"} <= set(told["words"])
    assert str(toolkit.ROOT / "app.py") in told["words"][told["words"].index("--app") + 1]
    assert Settings.from_mapping(told["settings"]) == settings
    assert told["env"]["JSII_NODE"].endswith("bin/node")
    assert told["env"] | {"JSII_NODE": ""} == {
        "JSII_NODE": "",
        "PYTHON": sys.executable,
        "CDK_DISABLE_CLI_TELEMETRY": "true",
        "AWS_REGION": "eu-west-1",
    }
    assert not Path(told["words"][-1].partition("=")[2]).exists(), "settings and templates go with the command"
    put_npm(home, "raise SystemExit('installed a second time')")
    toolkit.cdk(["diff"], settings, environ, say=said.append)
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


def test_a_failure_is_one_sentence_of_the_commands_own(home: Path) -> None:
    put_npm(home, NPM)
    with pytest.raises(DeployFailed, match=r"^the CDK command failed: last words$"):
        toolkit.cdk(["deploy"], Settings(), {"STATUS": "1"}, say=lambda _: None)


def test_another_version_than_asked_for_is_refused(home: Path) -> None:
    put_npm(home, NPM, version="3.0.0")
    with pytest.raises(DeployFailed, match=f"aws-cdk 3.0.0 in place of {toolkit.CDK_VERSION}"):
        toolkit.install()
    assert not (home / "cdk").exists()


def test_what_npm_reports_is_told(home: Path) -> None:
    report = "npm error code EINTEGRITY\nnpm error Integrity checksum failed\nnpm error A complete log is in X"
    put_npm(home, f"import sys\nsys.exit({report!r})")
    with pytest.raises(DeployFailed, match=r"npm could not install aws-cdk .*: Integrity checksum failed$"):
        toolkit.install()
    assert [path.name for path in home.iterdir()] == ["runtime"], "nothing half installed stays"


def test_an_installation_of_another_version_is_replaced(home: Path) -> None:
    put_npm(home, NPM, version=toolkit.CDK_VERSION)
    package = home / "cdk/node_modules/aws-cdk"
    (package / "bin").mkdir(parents=True)
    (package / "bin/cdk").touch()
    (package / "package.json").write_text('{"version": "2.0.0"}')
    toolkit.install()
    assert toolkit.installed_version(home / "cdk") == toolkit.CDK_VERSION


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["✅  Storage", "❌  Peerless-x failed: no room", "Error: see above"], "Peerless-x failed: no room"),
        (["‣ Error: connect ECONNREFUSED 127.0.0.1:1", "‣ Error: again"], "Error: connect ECONNREFUSED 127.0.0.1:1"),
        (["  File x", "contract.errors.ConfigError: peers = 0", "python: Subprocess exited with error 1"],
         "peers = 0"),
        (["Template format error: odd", ""], "Template format error: odd"),
        ([], "exit status 3 without a word"),
    ],
)  # fmt: skip
def test_the_line_that_tells_most_is_chosen(lines: list[str], told: str) -> None:
    assert toolkit.failure(lines, 3) == f"the CDK command failed: {told}"


def test_the_command_of_the_virtual_environment_is_new_enough() -> None:
    assert toolkit.node().name == "node"


def test_node_of_an_older_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "_output", lambda _: "v20.19.2")
    with pytest.raises(DeployFailed, match=r"is Node.js v20.19.2, but the CDK needs 22"):
        toolkit.node()


def test_a_command_that_cannot_start_is_named() -> None:
    with pytest.raises(DeployFailed, match="/nowhere/node cannot be started"):
        toolkit.run(["/nowhere/node"], {}, lambda _: None)
