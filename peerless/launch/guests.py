"""Those who join a local run from processes of their own: what the run and they must know of each other.

A guest holds a lock on a file in the run's folder as long as it takes part, so the run, which owns the servers, can
wait for guests to write their reports, and a guest that is killed holds nobody up.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from contract.clock import Clock
from peerless.launch.run_folder import RunFolder

_PREFIX = ".guest-"
#: So long a run that has ended waits for its guests, in seconds: they hear of the end when the peers do.
PATIENCE_SECONDS = 20.0
_POLL_SECONDS = 0.05


@contextlib.contextmanager
def takes_part(folder: RunFolder, name: str) -> Iterator[None]:
    """Be a guest of the run. Raises OSError where the folder cannot be written."""
    path = folder.path / f"{_PREFIX}{name}"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Keep others off what is read, changed and written again beside `path`."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_for_all(folder: RunFolder, clock: Clock, seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether all guests have gone in time; what dead ones left is removed."""
    until = clock.monotonic() + seconds
    while present := [path for path in folder.path.glob(f"{_PREFIX}*") if not _is_left(path)]:
        if clock.monotonic() >= until:
            return False
        clock.sleep(_POLL_SECONDS)
    return not present


def _is_left(path: Path) -> bool:
    """Whether nobody holds the file any more; then it goes."""
    try:
        with path.open("r+") as file:
            if not _free(file):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return True


def _free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
