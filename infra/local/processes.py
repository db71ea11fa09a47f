"""Processes that cannot outlive the one that started them.

Every `Child` runs under `guard.py`, in a session of its own: Ctrl-C in a terminal reaches the launcher alone, which
decides the order of stopping, and the launcher's death, even by SIGKILL, ends its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract.clock import Clock, SystemClock
from contract.errors import LocalStackError, UserError
from infra.local import guard

GRACE_SECONDS = 5.0
#: Time for the guard itself: to start the command, and to notice that all is over.
_GUARD_SECONDS = 15.0
_TAIL_BYTES = 4096
_TAIL_CHARACTERS = 300


@dataclass(frozen=True)
class Starting:
    """What starting a server needs: a clock, someone to tell, and a way to be called off."""

    clock: Clock = field(default_factory=SystemClock)
    note: Callable[[str], None] = lambda _: None
    """Gets one line for the user before something slow."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by whoever no longer wants the server; waiting ends with LocalStackError."""

    def check(self) -> None:
        """Raises LocalStackError once cancelled."""
        if self.cancelled.is_set():
            raise LocalStackError("starting the local servers was interrupted")


def check_platform(platform: str = sys.platform) -> None:
    """Raises UserError with one sentence where the local servers cannot run."""
    if platform in ("linux", "darwin"):
        return
    if platform in ("win32", "cygwin"):
        raise UserError("Peerless runs on Windows through WSL2: run `wsl --install`, then this command inside Linux")
    raise UserError(f"Peerless runs on Linux, macOS and Windows (through WSL2), not on {platform}")


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What it takes to start a child, now and again."""

    name: str
    words: tuple[str, ...]
    env: Mapping[str, str] | None = field(repr=False)
    log_path: Path
    cwd: Path | None
    grace_seconds: float
    afterwards: tuple[str, ...] | None
    successor: bool
    holding: int | None

    def options(self) -> list[str]:
        """The guard's."""
        options = ["--grace", str(self.grace_seconds)]
        if self.afterwards is not None:
            options += ["--afterwards", json.dumps(list(self.afterwards))]
        return [*options, "--successor", "yes"] if self.successor else options


class Child:
    """One process with its log file, and a guard that ends it when this process dies.

    `pid` is the command's own process id, and the id of its process group.
    """

    def __init__(self, order: _Order, process: subprocess.Popen[bytes], pid: int) -> None:
        self.name = order.name
        self.pid = pid
        self.log_path = order.log_path
        self._order = order
        self._guard = process
        self._handed_over = False

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path,
        cwd: Path | None = None,
        grace_seconds: float = GRACE_SECONDS,
        afterwards: Sequence[str] | None = None,
        successor: bool = False,
        holding: int | None = None,
    ) -> Child:
        """Start `command` with output going to the end of `log_path`; returns once it is executed.

        `env` is the whole environment (None: this process's). `grace_seconds` is the time from SIGTERM to SIGKILL.
        `afterwards` is a command that removes what the process leaves elsewhere; with `successor` an end that nobody
        asked for leaves that to `again`, or to `stop`. `holding` is a file descriptor, such as one with a lock, that is
        open in the process, and here until `stop` or `kill`. Raises LocalStackError.
        """
        return cls._start(
            _Order(
                name=name,
                words=tuple(os.fspath(word) for word in command),
                env=None if env is None else dict(env),
                log_path=log_path,
                cwd=cwd,
                grace_seconds=grace_seconds,
                afterwards=None if afterwards is None else tuple(afterwards),
                successor=successor,
                holding=holding,
            )
        )

    @classmethod
    def _start(cls, order: _Order) -> Child:
        status_read, status_write = os.pipe()
        order.log_path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(status_read, "rb") as status, order.log_path.open("ab") as log:
            try:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        guard.__file__,
                        "--status-fd",
                        str(status_write),
                        *order.options(),
                        "--",
                        *order.words,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=order.env,
                    cwd=order.cwd,
                    pass_fds=(status_write,) if order.holding is None else (status_write, order.holding),
                    start_new_session=True,
                )
            except OSError as error:
                raise LocalStackError(f"{order.name} cannot be started: {error.strerror}") from error
            finally:
                os.close(status_write)
            with selectors.DefaultSelector() as selector:
                selector.register(status, selectors.EVENT_READ)
                answer = json.loads(status.readline() or b"{}") if selector.select(_GUARD_SECONDS) else {}
        child = cls(order, process, answer.get("pid", 0))
        if "pid" not in answer:
            child.kill()
            told = answer.get("error", "no answer")
            raise LocalStackError(f"{order.name} cannot be started: {order.words[0]}: {told}")
        return child

    def again(self) -> Child:
        """The same command once more, over what this one left; it must have ended. Raises LocalStackError."""
        self._settle(_GUARD_SECONDS, clear=False)
        self._handed_over = True
        return self._start(self._order)

    @property
    def guard_pid(self) -> int:
        """Process id of the guard."""
        return self._guard.pid

    def poll(self) -> int | None:
        """Exit status, 128 + N after signal N; None while it runs."""
        return self._guard.poll()

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its end; gives the exit status, or None when the time is up first."""
        try:
            return self._guard.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask it to end in order, and return at once; the guard sees to it that it does."""
        self._say(b"T")

    def stop(self) -> int:
        """End it in order: SIGTERM, after the grace SIGKILL; gives the exit status. Repeating it does nothing."""
        self.terminate()
        return self._settle(self._order.grace_seconds + _GUARD_SECONDS)

    def kill(self) -> int:
        """End it and its group at once."""
        self._say(b"K")
        self._close_lifeline()
        return self._settle(_GUARD_SECONDS)

    def _say(self, word: bytes) -> None:
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(word)
                self._guard.stdin.flush()

    def _close_lifeline(self) -> None:
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()

    def _settle(self, seconds: float, clear: bool = True) -> int:
        code = self.wait(seconds)
        if code is None:
            self._guard.kill()
            code = self._guard.wait()
        self._close_lifeline()
        if code < 0 and self.pid:  # the guard itself was killed, so its work falls to us
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        if clear and not self._handed_over:
            self._clear()
        return code

    def _clear(self) -> None:
        """What an end that nobody asked for has left undone; once is enough."""
        self._handed_over = True
        if self._order.successor and self._order.afterwards:
            guard.run_afterwards(list(self._order.afterwards))
        if self._order.holding is not None:
            os.close(self._order.holding)

    def log_tail(self) -> str:
        """The last lines of its log on one line, at most 300 characters."""
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-4:])[-_TAIL_CHARACTERS:]

    def check(self, doing: str = "running") -> None:
        """Raises LocalStackError with the end of the log when it has ended although nobody asked it to."""
        code = self.poll()
        if code is not None:
            said = self.log_tail()
            last = f"its log ends with: {said}" if said else "its log is empty"
            raise LocalStackError(f"{self.name} ended with status {code} while {doing}; {last} ({self.log_path})")


def ending(status: int) -> str:
    """`was killed by signal 9`, or `ended with status 1`, of an exit status as `poll` gives it."""
    number = -status if status < 0 else status - 128  # negative where the guard itself was killed
    return f"was killed by signal {number}" if number > 0 else f"ended with status {status}"


def wait_until_ready(
    child: Child, ready: Callable[[], bool], *, starting: Starting, timeout_seconds: float, poll_seconds: float = 0.05
) -> None:
    """Return once `ready()` is true. Raises LocalStackError when the child ends first, or the time is up."""
    deadline = starting.clock.monotonic() + timeout_seconds
    while not ready():
        child.check("starting")
        starting.check()
        if starting.clock.monotonic() > deadline:
            raise LocalStackError(
                f"{child.name} did not answer within {timeout_seconds:g} s; "
                f"its log ends with: {child.log_tail()} ({child.log_path})"
            )
        starting.clock.sleep(poll_seconds)


def run_command(
    name: str,
    command: Sequence[str | os.PathLike[str]],
    *,
    log_path: Path,
    starting: Starting,
    timeout_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Run a command to its end under a guard; gives exit status and what it printed, which also goes to `log_path`.

    Status 127 means that there is no such command, 124 that the time was up. Raises LocalStackError when cancelled.
    """
    if shutil.which(os.fspath(command[0]), path=(env or os.environ).get("PATH")) is None:
        return 127, ""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = log_path.stat().st_size if log_path.exists() else 0
    child = Child.start(name, command, env=env, log_path=log_path, cwd=cwd, grace_seconds=1.0)
    deadline = starting.clock.monotonic() + timeout_seconds
    try:
        while (code := child.wait(0.1)) is None:
            starting.check()
            if starting.clock.monotonic() > deadline:
                code = 124
                break
    finally:
        child.kill()
    with log_path.open("rb") as log:
        log.seek(before)
        return code, log.read().decode("utf-8", "replace")
