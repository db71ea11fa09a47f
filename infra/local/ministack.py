"""AWS on this machine: a MiniStack process (https://github.com/ministackorg/ministack), pinned in pyproject.toml.

It keeps everything in memory, S3 objects too (about their own size each), and nothing of it outlives the process.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from contract.errors import LocalStackError
from infra.local.ports import LOOPBACK, free_ports
from infra.local.processes import Child, Starting, wait_until_ready

NAME = "MiniStack"
REGION = "us-east-1"
_READY_SECONDS = 60.0
_ATTEMPTS = 3


@dataclass(frozen=True)
class MiniStack:
    """A running MiniStack."""

    child: Child
    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


def start(folder: Path, log_path: Path, starting: Starting) -> MiniStack:
    """Start one on a free port, its scratch files in `folder`. Raises LocalStackError."""
    if importlib.util.find_spec("ministack") is None:
        raise LocalStackError("MiniStack is not installed; run `pip install 'peerless-training[local]'`")
    for attempt in range(_ATTEMPTS):
        (port,) = free_ports(1)
        folder.mkdir(parents=True, exist_ok=True)
        child = Child.start(
            NAME,
            [sys.executable, "-m", "ministack"],
            env=_environment(folder, port),
            log_path=log_path,
            cwd=folder,
            afterwards=["rm", "-rf", str(folder)],
        )
        try:
            wait_until_ready(child, lambda: answers(port), starting=starting, timeout_seconds=_READY_SECONDS)  # noqa: B023
        except BaseException:
            child.kill()
            if attempt == _ATTEMPTS - 1 or "already in use" not in child.log_tail():
                raise
        else:
            return MiniStack(child, port)
    raise AssertionError("unreachable")


def answers(port: int) -> bool:
    """Whether a MiniStack on `port` is ready."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/_ministack/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _environment(folder: Path, port: int) -> dict[str, str]:
    """All it gets: one listener on the loopback interface, no other port, no state, no container engine."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "GATEWAY_PORT": str(port),
        "BIND_HOST": LOOPBACK,
        "MINISTACK_REGION": REGION,
        "LOG_LEVEL": "WARNING",
        # It knows only one name for all errors of a function, so it tries a user's mistake again too: do that fast.
        "SFN_WAIT_SCALE": "0.1",
        # The Lambda service queues what it cannot run at once; nothing needs to be throttled before it.
        "LAMBDA_ACCOUNT_CONCURRENCY": "0",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
        "STATE_DIR": str(scratch / "state"),
        "S3_DATA_DIR": str(scratch / "s3"),
        # It would otherwise look for containers of other MiniStacks on the user's engine and remove them.
        "DOCKER_HOST": f"unix://{scratch}/no-engine",
    }
