"""The process that owns local servers which outlive the command that started them.

    python -m infra.local.supervisor FOLDER        (started by `peerless local up`, ended by SIGTERM)

It forks at once and lives on as nobody's child. On standard output it writes JSON lines, `{"note": …}` and at last
`{"ready": true}` or `{"kind": …, "error": …}`; on standard input it expects `keep` after that, and stops when the
launcher dies before.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from contract.clock import SystemClock
from contract.errors import LocalStackError, PeerlessError
from infra.local import detached
from infra.local.cloud import LocalCloud

_LOOK_SECONDS = 0.5


def main(folder: Path) -> int:
    """Own the servers of `folder` until SIGTERM or SIGINT."""
    if os.fork():
        return 0
    os.setsid()
    # No exception out of a signal: one between a lock's acquisition and its block leaves the lock held for ever, and
    # threads start under such locks. A simple queue's put is the one way out of a handler that takes no such lock.
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    stop = threading.Event()
    _after(signals.get, stop)
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as answers:
        try:
            with detached.hold_lock(folder, SystemClock()) as mine:
                if not mine:
                    raise LocalStackError(f"the local servers of {folder} are already running")
                _own(folder, answers, stop)
        except PeerlessError as error:
            detached.report(answers, {"kind": type(error).__name__, "error": str(error)})
            return 1
    return 0


def _own(folder: Path, answers: IO[bytes], stop: threading.Event) -> None:
    _after(_launcher_gone, stop)
    try:
        with LocalCloud.start(
            folder, log=lambda text: detached.report(answers, {"note": text}), cancelled=stop
        ) as cloud:
            written = cloud.state()
            written.write(folder)
            detached.report(answers, {"ready": True})
            _let_go_of(sys.stdout)
            told: set[str] = set()
            while not stop.wait(_LOOK_SECONDS):
                for failure in cloud.mend(_log):
                    if failure not in told:
                        told.add(failure)
                        _log(failure)
                if (state := cloud.state()) != written:  # so that runs notice, and make anew what is gone
                    state.write(folder)
                    written = state
    finally:
        (folder / detached.STATE).unlink(missing_ok=True)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _after(wait: Callable[[], object], stop: threading.Event) -> None:
    """Set `stop` once `wait` gives something true."""

    def watch() -> None:
        if wait():
            stop.set()

    threading.Thread(target=watch, daemon=True).start()


def _launcher_gone() -> bool:
    """Wait for what the launcher says; whether it went without having said that the servers stay."""
    kept = sys.stdin.buffer.readline() == detached.KEEP
    _let_go_of(sys.stdin)
    return not kept


def _let_go_of(stream: IO[str]) -> None:
    """Point a standard stream at nothing, so that whoever reads the other end sees its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
