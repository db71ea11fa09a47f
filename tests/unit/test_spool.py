"""Frames between their arrival and the commit: what stays in memory, and what goes to disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer_agent.spool import Spool
from tests.fakes.round_events import header


def test_memory_up_to_a_limit_then_the_disk_and_room_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, memory_bytes=100)
    frames = {rank: bytes([rank]) * 40 for rank in range(4)}
    for rank, frame in frames.items():
        spool.keep(header(rank, rank), frame)
    assert [spool.is_in_memory(header(rank, rank)) for rank in range(4)] == [True, True, False, False]
    assert len(list(spool.folder.iterdir())) == 2
    assert [spool.read(header(rank, rank)) for rank in range(4)] == list(frames.values())
    spool.forget_through(0)
    spool.keep(header(5, 5), b"x" * 60)
    assert spool.is_in_memory(header(5, 5)), "the first one's room"
    assert spool.find(header(0, 0).digest) is None
    with pytest.raises(KeyError, match="no frame"):
        spool.read(header(0, 0))
    spool.close()
    assert list(tmp_path.iterdir()) == []
