"""Local servers that stay up on their own: who owns them, where they listen, how they end.

A supervisor process (`supervisor.py`) owns the servers of one folder. As long as it lives it holds a lock on `lock`,
which makes the process id in that file trustworthy. When the servers answer it writes `state.json`, readable by its
user alone because the broker's password is in it. Everything here is asked from outside, by `peerless local
up|down|status` and by runs that use the servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from contract import errors
from contract.clock import Clock
from contract.errors import LocalStackError

ROOT = Path(__file__).resolve().parents[2]
STATE, LOCK, SUPERVISOR_LOG = "state.json", "lock", "supervisor.log"
#: What `up` answers to the supervisor's readiness; without it the supervisor stops again.
KEEP = b"keep\n"
_STOP_SECONDS = 45.0
_LOCK_SECONDS = 2.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where the servers of one local cloud listen."""

    aws_url: str
    broker_url: str = field(repr=False)
    broker_address: str
    broker_origin: str
    lambda_url: str
    broker_accounts: bool = False
    """Whether every rank has an account of its own on the broker."""


@dataclass(frozen=True, kw_only=True)
class State:
    """`state.json`."""

    endpoints: Endpoints
    pids: Mapping[str, int]
    """Process id by server."""
    version: int = 1

    def write(self, folder: Path, name: str = STATE) -> None:
        """In one step, readable by this user alone."""
        partial = folder / f".{name}.{os.getpid()}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        partial.replace(folder / name)

    @classmethod
    def read(cls, folder: Path, name: str = STATE) -> State | None:
        """None where no supervisor, or run, has got so far. Raises LocalStackError for what is not such a file."""
        path = folder / name
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "endpoints": Endpoints(**values["endpoints"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise LocalStackError(f"{path} does not say where servers listen; remove it") from error


@contextlib.contextmanager
def hold_lock(folder: Path, clock: Clock) -> Iterator[bool]:
    """Be the folder's supervisor; gives False where another one is."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = clock.monotonic() + _LOCK_SECONDS
    with (folder / LOCK).open("a") as file:
        while not _lock(file):  # whoever asks `is_running` holds it for a moment
            if clock.monotonic() > deadline:
                yield False
                return
            clock.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def is_running(folder: Path) -> bool:
    """Whether a supervisor lives for this folder."""
    try:
        with (folder / LOCK).open("r+") as file:
            return not _lock(file)
    except (FileNotFoundError, NotADirectoryError):
        return False


def supervisor_pid(folder: Path) -> int | None:
    """Process id of the folder's supervisor; None where none lives."""
    while is_running(folder):
        told = (folder / LOCK).read_text()
        if told:
            return int(told)
    return None


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def launch_supervisor(folder: Path, environ: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Start the folder's supervisor and return once its servers answer.

    Raises what the supervisor met, or LocalStackError; a KeyboardInterrupt meanwhile stops everything again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / SUPERVISOR_LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.local.supervisor", str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=with_root(environ),
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as keep, process.stdout as said:
        process.wait()  # it forks at once, so as not to stay anybody's child
        for line in said:
            message = json.loads(line)
            if "note" in message:
                note(message["note"])
            elif "ready" in message:
                keep.write(KEEP)
                keep.flush()
                return
            else:
                raise getattr(errors, message["kind"], LocalStackError)(message["error"])
    raise LocalStackError(f"the supervisor of the local servers ended without a word ({logs / SUPERVISOR_LOG})")


def stop_supervisor(folder: Path, clock: Clock) -> None:
    """End the folder's supervisor and its servers, in order; fine where none runs. Raises LocalStackError."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = supervisor_pid(folder)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = clock.monotonic() + _STOP_SECONDS
        while is_running(folder) and clock.monotonic() < deadline:
            clock.sleep(_POLL_SECONDS)
        if not is_running(folder):
            (folder / STATE).unlink(missing_ok=True)
            return
    raise LocalStackError(f"the supervisor of the local servers in {folder} does not end")


def with_root(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` in which our own packages can be imported, installed or not."""
    given = environ.get("PYTHONPATH", "")
    return {**environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{given}" if given else str(ROOT)}


def report(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """One line from the supervisor to whoever launched it; nobody may be listening any more."""
    with contextlib.suppress(BrokenPipeError):
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()
