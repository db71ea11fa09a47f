"""Frames between their arrival and the commit: in memory up to one model's size, beyond it on disk (invariant 12)."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from contract.wire import FrameHeader


class Spool:
    """A folder of frames, named by digest. What is in it has been checked, and exists in S3 too: it is a cache.

    The folder is a temporary one unless `folder` names another; it is removed by `close`.
    """

    def __init__(self, folder: Path | None = None, memory_bytes: int = 0) -> None:
        """Up to `memory_bytes` stay in memory."""
        self._temporary = tempfile.TemporaryDirectory(prefix="peerless-spool-", dir=folder)
        self.folder = Path(self._temporary.name)
        self._room = memory_bytes
        self._rounds: dict[str, int] = {}  # by digest
        self._memory: dict[str, bytes] = {}  # by digest, of those that found room

    def keep(self, header: FrameHeader, frame: bytes) -> None:
        """Keep a checked frame; one that is there already is left alone."""
        if header.digest in self._rounds:
            return
        if len(frame) <= self._room:
            self._memory[header.digest] = frame
            self._room -= len(frame)
        else:
            (self.folder / header.digest).write_bytes(frame)
        self._rounds[header.digest] = header.round

    def read(self, header: FrameHeader) -> bytes:
        """The frame's bytes. Raises KeyError for one that was never kept."""
        frame = self.find(header.digest)
        if frame is None:
            raise KeyError(f"no frame {header.digest} in the spool")
        return frame

    def find(self, digest: str) -> bytes | None:
        """The frame of a digest, or None."""
        if digest not in self._rounds:
            return None
        return self._memory[digest] if digest in self._memory else (self.folder / digest).read_bytes()

    def __len__(self) -> int:
        """How many frames there are, in memory or on disk."""
        return len(self._rounds)

    def is_in_memory(self, header: FrameHeader) -> bool:
        """Whether a frame is as it was checked; what lies on disk might not be."""
        return header.digest in self._memory

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
            if digest in self._memory:
                self._room += len(self._memory.pop(digest))
                continue
            (self.folder / digest).unlink(missing_ok=True)
