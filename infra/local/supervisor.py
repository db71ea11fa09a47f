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
from pathlib import Path
from typing import IO

from contract.clock import SystemClock
from contract.errors import LocalStackError, PeerlessError
from infra.local import detached
from infra.local.cloud import LocalCloud

_LOOK_SECONDS = 1.0


def main(folder: Path) -> int:
    """Own the servers of `folder` until SIGTERM or SIGINT."""
    if os.fork():
        return 0
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as answers:
        try:
            with detached.hold_lock(folder, SystemClock()) as mine:
                if not mine:
                    raise LocalStackError(f"the local servers of {folder} are already running")
                _own(folder, answers)
        except PeerlessError as error:
            detached.report(answers, {"kind": type(error).__name__, "error": str(error)})
            return 1
        except KeyboardInterrupt:
            text = "the local servers were stopped while they were starting"  # nobody listens any more once they ran
            detached.report(answers, {"kind": LocalStackError.__name__, "error": text})
    return 0


def _own(folder: Path, answers: IO[bytes]) -> None:
    threading.Thread(target=_stop_with_launcher, daemon=True).start()
    try:
        with LocalCloud.start(folder, log=lambda text: detached.report(answers, {"note": text})) as cloud:
            cloud.state().write(folder)
            detached.report(answers, {"ready": True})
            _let_go_of(sys.stdout)
            told: set[str] = set()
            while True:
                threading.Event().wait(_LOOK_SECONDS)
                for failure in cloud.failures():
                    if failure not in told:
                        told.add(failure)
                        print(failure, file=sys.stderr, flush=True)
    finally:
        (folder / detached.STATE).unlink(missing_ok=True)


def _stop_with_launcher() -> None:
    """End this process in order when the launcher goes without having said that the servers stay."""
    kept = sys.stdin.buffer.readline() == detached.KEEP
    _let_go_of(sys.stdin)
    if not kept:
        os.kill(os.getpid(), signal.SIGTERM)


def _let_go_of(stream: IO[str]) -> None:
    """Point a standard stream at nothing, so that whoever reads the other end sees its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
