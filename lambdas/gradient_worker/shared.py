"""Files that the worker processes of one machine share, so that many starting at once fetch an object once.

The local Lambda service gives its workers a folder; on Lambda a mounted file system can be one, and otherwise there is
none: each sandbox fetches for itself, and S3's client spreads out what is throttled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

#: Files kept; peers in asynchronous mode hold different weights and share workers.
KEPT = 4
_PARTIAL, _LOCK = ".partial", ".lock"


class SharedFiles:
    """Objects by name in a folder. Whoever finds one missing fetches it, and the others wait for that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, fetch: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The object's bytes, and whether `fetch` gave them. Raises what `fetch` raises.

        A folder that is gone or full costs the sharing and nothing else. The bytes are whoever's wrote the file: check
        them, and `forget` what is wrong.
        """
        path = self._path(name)
        with self._locked(path):
            with contextlib.suppress(OSError):
                return path.read_bytes(), False
            blob = fetch()
            with contextlib.suppress(OSError):
                self._write(path, blob)
            return blob, True

    def forget(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        # The name's hash, because what a name holds might lead out of the folder.
        return self._folder / hashlib.sha256(name.encode()).hexdigest()

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """One process at a time; the lock goes with its process, however that ends."""
        try:
            file = path.with_name(f"{path.name[:1]}{_LOCK}").open("a")
        except OSError:
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, path: Path, blob: bytes) -> None:
        """In place of the oldest file, where there are enough: to write over it is a tenth of the work of a new one.

        Whoever is reading that one at this moment finds bytes that are not what it looks for, and fetches them.
        """
        partial = path.with_suffix(_PARTIAL)  # nobody else writes it: this process holds the lock
        kept = [path for path in self._folder.iterdir() if path.suffix not in (_PARTIAL, _LOCK)]
        oldest = sorted(kept, key=lambda path: path.stat().st_mtime_ns)[: max(0, len(kept) + 1 - KEPT)]
        try:
            partial.touch()
            for spare in oldest:
                spare.replace(partial)
            with partial.open("r+b") as file:
                file.write(blob)
                file.truncate()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
