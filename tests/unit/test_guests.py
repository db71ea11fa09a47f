"""A run and those who join it from processes of their own: who waits for whom."""

from __future__ import annotations

import fcntl
from pathlib import Path

from peerless.launch.guests import takes_part, wait_for_all
from peerless.launch.run_folder import RunFolder
from tests.fakes.clock import FakeClock


def test_a_run_without_guests_waits_for_nobody(tmp_path: Path) -> None:
    clock = FakeClock()
    assert wait_for_all(RunFolder(tmp_path), clock)
    assert clock.monotonic() == FakeClock().monotonic()


def test_a_guest_is_waited_for_and_no_longer_than_it_takes_part(tmp_path: Path) -> None:
    folder, clock = RunFolder(tmp_path), FakeClock()
    with takes_part(folder, "a"), takes_part(folder, "b"):
        assert not wait_for_all(folder, clock, 20.0)
        assert 20.0 <= clock.monotonic() - FakeClock().monotonic() < 21.0
    assert list(tmp_path.iterdir()) == []
    assert wait_for_all(folder, clock)


def test_what_a_dead_guest_left_holds_nobody_up_and_goes(tmp_path: Path) -> None:
    (tmp_path / ".guest-dead").touch()
    with (tmp_path / ".guest-alive").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not wait_for_all(RunFolder(tmp_path), FakeClock(), 1.0)
        assert [path.name for path in tmp_path.iterdir()] == [".guest-alive"]
    assert wait_for_all(RunFolder(tmp_path), FakeClock(), 1.0)
    assert list(tmp_path.iterdir()) == []
