"""Makes peers by forking: `python -m tests.chaos.nursery`.

A peer spends three to four seconds of a processor on imports, torch above all: most of what a test with four
peers and a restart would cost. This process imports everything once and has no second thread, and each peer is a child
of its own: a process like any other from there on, with its own connections, seeds and signals.

Requests come as JSON lines on standard input, `{"id": …, "arguments": […], "environment": {…}, "log": "…"}`, answers go
to standard output: `{"id": …, "pid": …}` and, when one has ended, `{"id": …, "status": …}` (negative: by that signal).
When standard input closes, because the tests are over or were killed, whoever still lives is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from typing import Any, NoReturn


class Nursery:
    """The forking process."""

    def __init__(self) -> None:
        self._children: dict[int, int] = {}  # id by pid
        self._unread = b""
        self._wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the test process's affair

    def serve(self) -> None:
        """Until standard input closes."""
        while True:
            readable, _, _ = select.select([sys.stdin.fileno(), self._wake], [], [])
            if self._wake in readable:
                os.read(self._wake, 4096)
            self._collect()
            if sys.stdin.fileno() in readable:
                data = os.read(sys.stdin.fileno(), 1 << 20)
                if not data:
                    break
                *lines, self._unread = (self._unread + data).split(b"\n")
                for line in lines:
                    self._start(json.loads(line))
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _start(self, request: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_peer(request)
        self._children[pid] = request["id"]
        self._say({"id": request["id"], "pid": pid})

    def _collect(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                self._say({"id": self._children.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _say(self, answer: dict[str, int]) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")

    def _become_peer(self, request: dict[str, Any]) -> NoReturn:
        """What a new process would find: no input, a log for its output, its own environment, default signals."""
        status = 70  # something of ours went wrong; its traceback is in the log
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.environ.clear()
            os.environ.update(request["environment"])
            from tests.chaos import peer

            status = peer.main(request["arguments"])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def main() -> int:
    """Import what peers need, say so, and serve."""
    import torch._dynamo  # a process's first optimizer does: two seconds of a processor  # noqa: F401

    import tests.chaos.peer
    import tests.fakes.small_run  # the tests' model  # noqa: F401

    if threading.active_count() != 1:
        raise RuntimeError("a process with several threads must not fork")
    nursery = Nursery()
    nursery._say({"id": 0, "pid": os.getpid()})
    nursery.serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
