"""What was added to a file that another process writes, line by line."""

from __future__ import annotations

from pathlib import Path


class Tail:
    """Whole lines only: one that is half written waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[bytes]:
        """The lines that have come since the last call, each with its line feed. Raises OSError."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines(keepends=True)
