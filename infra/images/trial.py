"""An image without a container engine: its build, and its processes as the image would start them.

The base image is stood in for by a clean virtual environment; everything after it is the real thing: the build context,
install.py in it, and environment and command as the Dockerfile's last stage has them. What this does not show: the
base images themselves, other processors than this machine's, and another Python than the one at hand.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import statistics
import subprocess
import sys
import threading
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.clock import SystemClock
from contract.errors import LocalStackError
from infra.images.staging import ROOT, WORKER, Image, stage
from infra.local.lambda_http import Handler, Server
from infra.settings import Settings

#: Where the Dockerfiles install to; here it is another folder.
TARGET = "/opt/peerless"
#: Processes whose imports are timed; the figures are their medians.
IMPORTS = 3
ANSWER_SECONDS = 120.0
_MEASURE = """
import re, resource
from pathlib import Path
from contract.clock import SystemClock
clock = SystemClock()
begun = clock.monotonic()
import {module}
seconds = clock.monotonic() - begun
status = Path("/proc/self/status")
if status.exists():  # getrusage's figure starts with the size of the process that this one was forked from
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, peak)
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An image's files, outside an image."""

    image: Image
    root: Path
    """What TARGET is in the image."""
    python: Path
    """The interpreter that stands for the base image's."""
    environment: Mapping[str, str]
    command: tuple[str, ...]
    """The image's ENTRYPOINT and CMD."""

    @property
    def size_bytes(self) -> int:
        """Of all files, as the image holds them in its last layer."""
        return sum(path.lstat().st_size for path in self.root.rglob("*") if not path.is_dir())

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with the image's environment and nothing else of this one."""
        return subprocess.run(
            [str(self.python), *arguments],
            env={**self.environment, **environment},
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )


@dataclass(frozen=True)
class Import:
    """What importing a module takes in a fresh process: seconds, and the largest resident set in bytes."""

    seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a function answered: its JSON, and whether it is an error's."""

    body: Any
    failed: bool


def install(image: Image, work: Path, settings: Settings, torch_index: str = "") -> Installed:
    """Build `image` in `work`, an empty folder, as its Dockerfile does. Takes a minute and gigabytes for a while.

    Raises LocalStackError with the end of what the build printed.
    """
    context, root, base = work / "context", work / "image", work / "base"
    stage(image, context, settings)
    _checked([sys.executable, "-m", "venv", str(base)], work)
    python = base / "bin/python"
    if image is WORKER:
        # AWS's base image has its runtime client; this one is the release that the local Lambda service uses.
        options = ("--disable-pip-version-check", "--no-input", "install", "--quiet")
        _checked([str(python), "-m", "pip", *options, _runtime_client()], work)
    _checked([str(python), "install.py", str(root), *image.modules], context, TORCH_INDEX=torch_index)
    environment, command = last_stage(image.dockerfile.read_text(encoding="utf-8"))
    moved = {name: value.replace(TARGET, str(root)) for name, value in environment.items()}
    kept = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(work)}
    return Installed(image=image, root=root, python=python, environment={**kept, **moved}, command=command)


def last_stage(dockerfile: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """ENV of a Dockerfile's last stage, and its ENTRYPOINT and CMD together."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    instructions = [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]
    start = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    environment: dict[str, str] = {}
    command: dict[str, list[str]] = {}
    for name, rest in instructions[start:]:
        if name == "ENV":
            environment |= dict(item.split("=", 1) for item in shlex.split(rest))
        elif name in ("ENTRYPOINT", "CMD"):
            command[name] = json.loads(rest)
    return environment, (*command.get("ENTRYPOINT", ()), *command.get("CMD", ()))


def measure_import(installed: Installed, module: str) -> Import:
    """Import `module` in fresh processes, its files already in the machine's cache. Raises LocalStackError."""
    measured = []
    for _ in range(IMPORTS):
        done = installed.run("-c", _MEASURE.format(module=module))
        if done.returncode:
            raise LocalStackError(f"{installed.image.name} image: {module} cannot be imported: {done.stderr[-2000:]}")
        seconds, resident = done.stdout.split()
        measured.append((float(seconds), int(resident)))
    return Import(statistics.median(s for s, _ in measured), int(statistics.median(r for _, r in measured)))


def invoke(installed: Installed, event: Mapping[str, Any], **environment: str) -> Answer:
    """One invocation of the worker image's function, through AWS's runtime client. Raises LocalStackError."""
    answers: queue.Queue[Answer] = queue.Queue()
    done = threading.Event()
    server = Server(_runtime_api(json.dumps(event).encode(), answers, done))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = installed.root.parent / "invocation.log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(installed.python), "-m", "awslambdaric", *installed.command],
                env={**installed.environment, **environment, "AWS_LAMBDA_RUNTIME_API": server.address},
                cwd=installed.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                return answers.get(timeout=ANSWER_SECONDS)
            except queue.Empty:
                tail = log.read_bytes()[-2000:].decode(errors="replace")
                raise LocalStackError(f"no answer within {ANSWER_SECONDS:.0f} s: {tail}") from None
            finally:
                process.kill()
                process.wait()
    finally:
        done.set()
        server.shutdown()
        server.server_close()


def _runtime_api(event: bytes, answers: queue.Queue[Answer], done: threading.Event) -> type[Handler]:
    """AWS's Runtime API with one invocation (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html)."""
    waiting: queue.Queue[bytes] = queue.Queue()
    waiting.put(event)

    class RuntimeApi(Handler):
        def do_GET(self) -> None:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                done.wait()
                self.close_connection = True
                return
            deadline = SystemClock().now() + ANSWER_SECONDS
            headers = {
                "Lambda-Runtime-Aws-Request-Id": "trial",
                "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:trial",
            }
            self.answer(200, body, headers)

        def do_POST(self) -> None:
            body = self.body()
            answers.put(Answer(json.loads(body), failed=not self.path.endswith("/response")))
            self.answer_json(202, {"status": "OK"})

    return RuntimeApi


def _runtime_client() -> str:
    """awslambdaric as pyproject.toml pins it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return next(str(line) for line in extras["local"] if line.startswith("awslambdaric"))


def _checked(command: Sequence[str], folder: Path, **environment: str) -> None:
    """Run to the end, apart from this process's own Python path. Raises LocalStackError."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalStackError(f"{' '.join(command[:3])} failed: {(done.stdout + done.stderr)[-3000:]}")
