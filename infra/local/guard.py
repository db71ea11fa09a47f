"""Runs one command, and ends it with everything it started when whoever asked for it dies.

    python -I -S guard.py [--grace SECONDS] [--status-fd FD] [--afterwards JSON] -- COMMAND ARGUMENT...

Standard input is the lifeline: a pipe whose other end the owner holds. A byte `T` on it asks for an orderly end: the
command's process group gets SIGTERM and, `--grace` seconds later, SIGKILL; processes that went into sessions of their
own are found by their ancestry. A byte `K` skips the grace, then too. When the lifeline closes, even because the owner
was killed by SIGKILL, nobody waits for what the command might still bring home, and the grace is short. `--afterwards`
is one more command (a JSON list) that runs when all is over, to remove what is not a process, such as a container; with
`--successor yes` it does not run where the command ended by itself, because its owner may start it again over its data.

On `--status-fd` it writes one JSON line, `{"pid": N}` or `{"error": "…"}`. Its exit status is the command's, 128 + N
where signal N ended it, as shells have it.

Standard library only, and no import of our own: it starts in some 20 ms, on Linux and macOS. Where the system has
`prctl` (Linux) it also adopts orphans, and the command dies with the guard; nothing else depends on that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable

LIFELINE = 0
_POLL_SECONDS = 0.02
#: The longest grace once the owner is dead.
ORPHAN_SECONDS = 2.0
#: How long processes outside the command's group may take to follow it.
_STRAGGLER_SECONDS = 1.0
#: How long to wait for processes to disappear that were sent SIGKILL.
_KILLED_SECONDS = 5.0
_AFTERWARDS_SECONDS = 20.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Guard:
    """One command and the processes that came from it."""

    def __init__(self, command: list[str], grace_seconds: float) -> None:
        self._command = command
        self._grace = grace_seconds
        self._owner = os.getppid()
        self._status: int | None = None
        self._stop_requested = False
        self._kill_requested = False
        self._lifeline_ended = False
        self._prctl = _prctl()
        self.pid = 0

    def start(self) -> None:
        """Fork and execute. Raises OSError where the command cannot be executed."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        self._wake = wake_read
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1)
        failed_read, failed_write = os.pipe()  # closes by itself on a successful exec
        guard_pid = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_command(failed_write, guard_pid)
        os.close(failed_write)
        with os.fdopen(failed_read, "rb") as failed:
            said = failed.read()
        if said:
            os.waitpid(self.pid, 0)
            raise OSError(int(said), os.strerror(int(said)), self._command[0])

    def _become_command(self, failed_write: int, guard_pid: int) -> None:
        """The forked child's way to the command: its own session, default signals, nothing to read."""
        try:
            os.setsid()
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard_pid:
                os._exit(1)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)  # Python ignores these, and exec would pass that on
            os.dup2(os.open(os.devnull, os.O_RDONLY), LIFELINE)
            os.execvp(self._command[0], self._command)  # noqa: S606 - an argument list, never a shell
        except OSError as error:
            os.write(failed_write, str(error.errno).encode())
        os._exit(127)

    def run(self) -> int:
        """Wait for the command's or the owner's end, clear up, and give the exit status."""
        watched = [LIFELINE, self._wake]
        while not self._reap() and not self._stop_requested:
            readable, _, _ = select.select(watched, [], [], 1.0)
            self._drain(readable)
            # Whoever inherited the lifeline by a bare fork would keep it open after the owner's death.
            if os.getppid() != self._owner:
                self._stop_requested = True
        self._end()
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    @property
    def asked(self) -> bool:
        """Whether somebody wanted the end, or nobody is there any more to want anything else."""
        return self._stop_requested or os.getppid() != self._owner

    def _on_stop_signal(self, *_: object) -> None:
        self._stop_requested = True

    def _drain(self, readable: list[int]) -> None:
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if LIFELINE in readable:
            data = os.read(LIFELINE, 64)
            self._lifeline_ended |= not data
            self._stop_requested = True
            self._kill_requested |= b"K" in data

    def _reap(self) -> bool:
        """Collect what has ended; gives whether the command itself has."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self.pid:
                    self._status = status
        return self._status is not None

    def _end(self) -> None:
        """SIGTERM, the grace, SIGKILL: the group first, then whatever left it."""
        family = descendants()
        if not self._kill_requested:
            self._signal_group(signal.SIGTERM)
            self._wait(self._group_gone, self._grace)
        self._signal_group(signal.SIGKILL)
        self._wait(self._group_gone, _KILLED_SECONDS, heed_kill=False)
        for number, seconds in ((signal.SIGTERM, _STRAGGLER_SECONDS), (signal.SIGKILL, _KILLED_SECONDS)):
            strays = self._strays(family)
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if strays:
                self._wait(lambda: not self._strays(family), seconds)
        if self._status is None:  # a process that even SIGKILL does not end at once, such as one in a system call
            self._status = signal.SIGKILL

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _group_gone(self) -> bool:
        self._reap()
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # macOS says so of a group in which only zombies are left
            return self._status is not None
        return False

    def _strays(self, family: set[int]) -> set[int]:
        """Descendants that still live: those seen before, and those that came to the guard as orphans."""
        self._reap()
        table = process_table()
        return (family & {pid for pid, parent in table.items() if parent in (1, *family)}) | descendants(table)

    def _wait(self, done: Callable[[], bool], seconds: float, heed_kill: bool = True) -> None:
        """Poll until `done()` or the time is up; a `K` on the lifeline ends it early, its end soon."""
        begun = time.monotonic()
        while not done() and time.monotonic() < begun + seconds:
            # At its end it is readable for ever.
            watched = [self._wake] if self._lifeline_ended else [LIFELINE, self._wake]
            if self._lifeline_ended or os.getppid() != self._owner:
                seconds = min(seconds, ORPHAN_SECONDS)
            readable, _, _ = select.select(watched, [], [], _POLL_SECONDS)
            self._drain(readable)
            if heed_kill and self._kill_requested:
                return


def _prctl() -> Callable[[int, int], int]:
    """Linux's prctl as a function of two integers; elsewhere one that does nothing."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        if sys.platform.startswith("linux"):
            import ctypes

            prctl = ctypes.CDLL(None).prctl
            return lambda option, value: prctl(option, value, 0, 0, 0)
    return lambda option, value: -1


def process_table() -> dict[int, int]:
    """Parent by process id, of every process that is not a zombie."""
    if not os.path.isdir("/proc/self"):
        return _process_table_of_ps()
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    state, parent = stat.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state != b"Z":
                table[int(name)] = int(parent)
    return table


def _process_table_of_ps() -> dict[int, int]:
    import subprocess

    with subprocess.Popen(["/bin/ps", "-A", "-o", "pid=,ppid=,state="], stdout=subprocess.PIPE, text=True) as ps:
        rows = [line.split() for line in ps.communicate()[0].splitlines()]
    table = {int(row[0]): int(row[1]) for row in rows if len(row) == 3 and not row[2].startswith("Z")}
    table.pop(ps.pid, None)
    return table


def descendants(table: dict[int, int] | None = None) -> set[int]:
    """Process ids of all that came from this process."""
    table = process_table() if table is None else table
    found: set[int] = set()
    generation = {os.getpid()}
    while generation:
        generation = {pid for pid, parent in table.items() if parent in generation} - found
        found |= generation
    return found


def main(arguments: list[str]) -> int:
    """Parse, start, run; see the module's text."""
    options: dict[str, str] = {}
    while arguments and arguments[0] != "--":
        options[arguments[0]] = arguments[1]
        arguments = arguments[2:]
    status_fd = int(options.get("--status-fd", "-1"))
    guard = Guard(arguments[1:], float(options.get("--grace", "5")))
    if status_fd >= 0:
        os.set_inheritable(status_fd, False)
    try:
        guard.start()
    except OSError as error:
        _report(status_fd, {"error": error.strerror})
        return 127
    _report(status_fd, {"pid": guard.pid})
    code = guard.run()
    if "--afterwards" in options and (guard.asked or options.get("--successor") != "yes"):
        run_afterwards(json.loads(options["--afterwards"]))
    return code


def run_afterwards(command: list[str]) -> None:
    """Run the last command to its end, or to the end of patience."""
    with contextlib.suppress(OSError):
        pid = os.posix_spawnp(command[0], command, os.environ)
        deadline = time.monotonic() + _AFTERWARDS_SECONDS
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)


def _report(status_fd: int, message: dict[str, object]) -> None:
    if status_fd >= 0:
        with contextlib.suppress(BrokenPipeError):
            os.write(status_fd, json.dumps(message).encode() + b"\n")
        os.close(status_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
