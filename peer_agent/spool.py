"""Frames on disk between their arrival and the commit, so that memory holds only their headers (invariant 12)."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from contract.wire import FrameHeader


class Spool:
    """A folder of frames, named by digest. What is in it has been checked, and exists in S3 too: it is a cache.

    The folder is a temporary one unless `folder` names another; it is removed by `close`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="peerless-spool-", dir=folder)
        self.folder = Path(self._temporary.name)
        self._rounds: dict[str, int] = {}  # by digest

    def keep(self, header: FrameHeader, frame: bytes) -> None:
        """Write a checked frame; one that is there already is left alone."""
        if header.digest not in self._rounds:
            (self.folder / header.digest).write_bytes(frame)
            self._rounds[header.digest] = header.round

    def read(self, header: FrameHeader) -> bytes:
        """The frame's bytes. Raises KeyError for one that was never kept."""
        if header.digest not in self._rounds:
            raise KeyError(f"no frame {header.digest} in the spool")
        return (self.folder / header.digest).read_bytes()

    def find(self, digest: str) -> bytes | None:
        """The frame of a digest, or None."""
        return (self.folder / digest).read_bytes() if digest in self._rounds else None

    def forget_through(self, round: int) -> None:
        """Drop the frames of `round` and before."""
        self._drop([digest for digest, kept in self._rounds.items() if kept <= round])

    def forget(self, digests: Collection[str]) -> None:
        """Drop these frames; one that is not there counts as dropped."""
        self._drop([digest for digest in digests if digest in self._rounds])

    def retain(self, digests: Collection[str]) -> None:
        """Drop all frames but these."""
        self._drop([digest for digest in self._rounds if digest not in digests])

    def close(self) -> None:
        """Remove the folder."""
        self._temporary.cleanup()

    def _drop(self, digests: Collection[str]) -> None:
        for digest in digests:
            del self._rounds[digest]
            (self.folder / digest).unlink(missing_ok=True)
