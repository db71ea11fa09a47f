"""AWS on this machine: a MiniStack process (https://github.com/ministackorg/ministack), pinned in pyproject.toml.

S3's objects lie in files, which outlive the process (decision 0023): an answered request is on the disk, and a process
that is killed leaves each file whole or absent. Everything else, functions, state machines, IAM, is in memory alone.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from contract.errors import LocalStackError
from infra.local.mending import start_again
from infra.local.ports import LOOPBACK, free_ports
from infra.local.processes import Child, Starting, wait_until_ready

NAME = "MiniStack"
REGION = "us-east-1"
_READY_SECONDS = 60.0
_ATTEMPTS = 3
_LOCK_SECONDS, _LOCK_POLL_SECONDS = 20.0, 0.1
#: Freed memory that stays with the process. glibc gives every object of 32 MiB or more back at once, and to have its
#: pages anew takes longer than what is done with them.
_SPARE_BYTES = 512 * 2**20
#: How the file is named that holds an object's entity tag, size and checksums, after the object's own file.
_DESCRIPTION = ".meta.json"


@dataclass(frozen=True)
class MiniStack:
    """A running MiniStack."""

    child: Child
    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def again(self, child: Child, data: Path | None, starting: Starting) -> Child:
        """Start it once more in place of the dead `child`, over the objects in `data`. Raises LocalStackError."""
        if data is not None:
            mend(data)
        return start_again(child, lambda: answers(self.port), starting)


def start(folder: Path, log_path: Path, starting: Starting, data: Path | None = None) -> MiniStack:
    """Start one on a free port, its scratch files in `folder`, and S3's objects in `data`, also those of before.

    Without `data` they go with the process. Raises LocalStackError.
    """
    if importlib.util.find_spec("ministack") is None:
        raise LocalStackError("MiniStack is not installed; run `pip install 'peerless-training[local]'`")
    for attempt in range(_ATTEMPTS):
        lock = None if data is None else _lock(data, starting)
        if data is not None:
            mend(data)
        (port,) = free_ports(1)
        folder.mkdir(parents=True, exist_ok=True)
        child = Child.start(
            NAME,
            [sys.executable, "-m", "ministack"],
            env=_environment(folder, port, data),
            log_path=log_path,
            cwd=folder,
            afterwards=["rm", "-rf", str(folder)],
            successor=data is not None,
            holding=lock,
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


def _lock(data: Path, starting: Starting) -> int:
    """A file descriptor that keeps others off `data` until the last process with it has ended. Raises LocalStackError.

    A MiniStack whose owner was killed takes some seconds to follow it.
    """
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = starting.clock.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if starting.cancelled.is_set() or starting.clock.monotonic() > deadline:
                os.close(lock)
                raise LocalStackError(f"another MiniStack works on the objects in {data}") from error
        starting.clock.sleep(_LOCK_POLL_SECONDS)


def mend(data: Path) -> None:
    """Take out what a killed process left half done, before the next one reads `data`.

    It replaces an object's file first, and then the one that describes it. A description older than its object, or of
    another size, is of the version before; without one, MiniStack looks at the object itself.
    """
    for path in data.rglob("*.tmp") if data.is_dir() else ():
        path.unlink(missing_ok=True)
    for described in data.rglob(f"*{_DESCRIPTION}") if data.is_dir() else ():
        blob = described.with_name(described.name.removesuffix(_DESCRIPTION))
        if blob.is_file() and _is_outdated(described, blob):
            described.unlink()


def _is_outdated(described: Path, blob: Path) -> bool:
    try:
        told = json.loads(described.read_text(encoding="utf-8"))["size"]
    except (ValueError, KeyError, TypeError):
        return True
    found = blob.stat()
    return bool(told != found.st_size or described.stat().st_mtime_ns < found.st_mtime_ns)


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


def _environment(folder: Path, port: int, data: Path | None) -> dict[str, str]:
    """All it gets: one listener on the loopback interface, no other port, no state but S3's, no container engine."""
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
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(_SPARE_BYTES),
        # It knows only one name for all errors of a function, so it tries a user's mistake again too: do that fast.
        "SFN_WAIT_SCALE": "0.1",
        # The Lambda service queues what it cannot run at once; nothing needs to be throttled before it.
        "LAMBDA_ACCOUNT_CONCURRENCY": "0",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0" if data is None else "1",
        "STATE_DIR": str(scratch / "state"),
        "S3_DATA_DIR": str(scratch / "s3" if data is None else data),
        # It would otherwise look for containers of other MiniStacks on the user's engine and remove them.
        "DOCKER_HOST": f"unix://{scratch}/no-engine",
    }
