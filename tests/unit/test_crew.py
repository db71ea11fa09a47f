"""Which peers are started again, which are given up, and when that fails the run."""

from __future__ import annotations

import pytest

from contract.errors import EXIT_ALONE, EXIT_SUPERSEDED
from peerless.launch.crew import LONGEST_PAUSE_SECONDS, PAUSE_SECONDS, Crew
from tests.fakes.clock import FakeClock
from tests.fakes.crew import FakeChild, crew_of


def settle(crew: Crew, clock: FakeClock, seconds: float = 60.0) -> None:
    """Look as often as `follow` does."""
    for _ in range(int(10 * seconds)):
        crew.look()
        if crew.over:
            return
        clock.sleep(0.1)


@pytest.mark.parametrize("status", [137, 139, 143, -9, 3])
def test_one_that_died_is_started_again_and_the_run_goes_on(status: int) -> None:
    clock, told = FakeClock(), list[tuple[int, str, int]]()
    lives = [[FakeChild([None])], [FakeChild([None, status]), FakeChild([None])]]
    crew = crew_of(lives, clock=clock, told=lambda *what: told.append(what))
    settle(crew, clock, 5)
    died = {137: "was killed by signal 9", 139: "was killed by signal 11", 143: "was killed by signal 15"}
    assert told == [(1, {**died, -9: "was killed by signal 9"}.get(status, "ended with status 3"), 1)]
    assert dict(crew.restarts) == {1: 1}
    assert not crew.failed
    assert crew.sentence() is None


@pytest.mark.parametrize("status", [1, 2])
def test_one_that_said_why_is_not_and_fails_the_run(status: int) -> None:
    clock = FakeClock()
    crew = crew_of([[FakeChild([None])], [FakeChild([status], "too hot"), FakeChild([None])]], clock=clock)
    crew.look()
    assert crew.failed
    assert crew.sentence() == f"peer 1 ended with status {status}; its log ends with: too hot"
    crew.saw({"event": "failed", "rank": 1, "error": "batch 3: too hot"})
    assert crew.sentence() == "peer 1: batch 3: too hot"
    assert dict(crew.restarts) == {}


def test_the_pause_before_a_restart_doubles_up_to_a_limit() -> None:
    clock, times = FakeClock(), list[float]()
    deaths = [[FakeChild([None])], [FakeChild([137]) for _ in range(8)]]
    crew = crew_of(deaths, clock=clock, told=lambda *_: times.append(clock.monotonic()))
    settle(crew, clock)
    pauses = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    expected = [min(PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(7)]
    assert pauses == pytest.approx(expected, abs=0.25)


def test_one_that_keeps_dying_is_given_up_and_the_others_go_on() -> None:
    clock = FakeClock()
    crew = crew_of([[FakeChild([None])], [FakeChild([137]) for _ in range(4)]], clock=clock)
    settle(crew, clock)
    assert dict(crew.restarts) == {1: 3}
    assert (crew.failed, crew.over) == (False, False)


@pytest.mark.parametrize(("quorum", "failed"), [(1.0, False), (0.5, False), (1, False), (2, True), (3, True)])
def test_below_the_quorum_the_run_fails_by_the_first_death(quorum: float, failed: bool) -> None:
    clock = FakeClock()
    lives = [[FakeChild([None])], [FakeChild([137], "out of memory")], [FakeChild([None, 139])]]
    crew = crew_of(lives, clock=clock, quorum=quorum)
    crew.look()
    crew.look()
    assert crew.failed == failed
    assert crew.sentence() == ("peer 1 was killed by signal 9; its log ends with: out of memory" if failed else None)


def test_when_all_are_dead_the_run_fails() -> None:
    clock = FakeClock()
    crew = crew_of([[FakeChild([None, 137])], [FakeChild([137])]], clock=clock)
    settle(crew, clock)
    assert crew.over
    assert crew.sentence() == "peer 1 was killed by signal 9; its log is empty"


def test_nobody_is_started_again_while_the_run_ends_or_once_it_has() -> None:
    clock = FakeClock()
    crew = crew_of([[FakeChild([None])], [FakeChild([137]), FakeChild([None])]], clock=clock)
    crew.look()
    crew.end()
    settle(crew, clock)
    assert crew.over
    assert (dict(crew.restarts), crew.sentence()) == ({}, None)

    ended = crew_of([[FakeChild([None, None, None, 0])], [FakeChild([137]), FakeChild([None])]], clock=clock)
    settle(ended, clock)
    assert ended.over
    assert (dict(ended.restarts), ended.sentence()) == ({}, None)


def test_all_are_asked_to_end_and_all_can_be_killed() -> None:
    clock, stubborn = FakeClock(), FakeChild([None])
    stubborn.terminate = lambda: None  # type: ignore[method-assign]
    lives = [[stubborn], [FakeChild([None])]]
    crew = crew_of(lives, clock=clock)
    crew.end()
    crew.look()
    assert not crew.over
    assert lives[1][0].terminated
    crew.kill()
    assert stubborn.killed
    crew.look()
    assert crew.over


def test_what_befell_a_peer_alone_is_no_reason_for_others_to_end() -> None:
    clock, told = FakeClock(), list[str]()
    lives = [[FakeChild([None])], [FakeChild([None, EXIT_ALONE]), FakeChild([None, EXIT_SUPERSEDED])]]
    crew = crew_of(lives, clock=clock, restarts=3, told=lambda rank, died, attempt: told.append(died))
    crew.saw({"event": "failed", "rank": 1, "error": "S3 at s3:443 does not answer", "alone": True})
    settle(crew, clock, 20)
    assert told == ["failed (S3 at s3:443 does not answer)"]
    assert (crew.failed, crew.sentence(), dict(crew.restarts)) == (False, None, {1: 1})


def test_what_befalls_a_guest_does_not_fail_the_run() -> None:
    clock = FakeClock()
    crew = crew_of([[FakeChild([None])], [FakeChild([1], "its data are damaged")]], clock=clock, guests=[1])
    crew.saw({"event": "failed", "rank": 1, "error": "batch 3 is damaged"})
    crew.look()
    assert not crew.failed
    assert crew.sentence() is None
    crew.saw({"event": "failed", "rank": 7, "error": "of somebody who joined from elsewhere"})
    assert not crew.failed


def test_guests_are_not_asked_to_leave_before_the_others_have_ended() -> None:
    clock, peer, guest = FakeClock(), FakeChild([None]), FakeChild([None])
    crew = crew_of([[peer], [guest]], clock=clock, guests=[1])
    crew.look()
    crew.end()
    assert (peer.terminated, guest.terminated) == (True, False)
    crew.look()
    assert guest.terminated, "the other has ended, so the guest would wait in vain"
