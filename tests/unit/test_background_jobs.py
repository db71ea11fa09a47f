"""Jobs beside the loop, and frames on disk."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from contract.wire import FrameHeader, Kind
from peer_agent.background import Threads
from peer_agent.spool import Spool


def test_outcomes_come_to_the_thread_that_asks_with_what_is_to_follow() -> None:
    jobs = Threads(torch_threads=1)
    assert not jobs.busy
    assert jobs.finished(0.0) == []
    gate = threading.Event()
    jobs.start(lambda: gate.wait(60), "then")  # type: ignore[arg-type]
    assert jobs.busy
    assert jobs.finished(0.0) == []
    gate.set()
    (outcome,) = jobs.finished(60.0)
    assert (outcome.value, outcome.error, outcome.then) == (True, None, "then")
    assert not jobs.busy


def test_an_error_is_handed_over_and_threads_are_pinned() -> None:
    jobs = Threads(torch_threads=1)
    jobs.start(lambda: 1 // 0, print)
    (outcome,) = jobs.finished(60.0)
    assert isinstance(outcome.error, ZeroDivisionError)
    jobs.start(torch.get_num_threads, print)
    (outcome,) = jobs.finished(60.0)
    assert outcome.value == 1


def header(digest: str, round: int) -> FrameHeader:
    return FrameHeader(
        kind=Kind.UPDATE, run="run", round=round, base_round=round, base_weights="0" * 64, rank=0, incarnation=1,
        samples=1, codec="none", seed=0, elements=1, digest=digest,
    )  # fmt: skip


def test_the_spool_keeps_frames_on_disk_until_they_are_forgotten(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first, second, third = header("a" * 64, 0), header("b" * 64, 1), header("c" * 64, 2)
    for frame in (first, second, third):
        spool.keep(frame, frame.digest.encode())
    spool.keep(first, b"ignored: it is there already")
    assert spool.read(first) == b"a" * 64
    assert len(list(tmp_path.rglob("?" * 64))) == 3
    spool.forget_through(0)
    with pytest.raises(KeyError):
        spool.read(first)
    spool.retain({third.digest})
    assert [path.name for path in tmp_path.rglob("?" * 64)] == [third.digest]
    spool.close()
    assert list(tmp_path.iterdir()) == []
