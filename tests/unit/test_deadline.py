"""How long a round waits for slow peers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.config import MembershipConfig
from peer_agent.deadline import FEWEST_ROUNDS, ROUNDS, Deadline

CONFIG = MembershipConfig(deadline_deviations=6.0, deadline_floor_seconds=2.0, deadline_ceiling_seconds=300.0)


def after(*rounds: float) -> Deadline:
    deadline = Deadline(CONFIG)
    for seconds in rounds:
        deadline.add(seconds)
    return deadline


def test_the_first_rounds_have_the_ceiling() -> None:
    assert after().seconds == 300.0
    assert after(10.0, 10.0).seconds == 300.0
    assert FEWEST_ROUNDS == 3


def test_median_and_deviations() -> None:
    assert after(10.0, 11.0, 12.0, 13.0, 14.0).seconds == 12.0 + 6.0 * 1.0


def test_floor_and_ceiling_hold() -> None:
    assert after(0.1, 0.1, 0.1).seconds == 2.0
    assert after(10.0, 100.0, 1_000.0).seconds == 300.0


def test_a_single_slow_round_moves_nothing() -> None:
    steady = [10.0 + 0.1 * (number % 3) for number in range(19)]
    assert after(*steady, 250.0).seconds == pytest.approx(after(*steady, 10.2).seconds, abs=0.61)


def test_only_the_last_rounds_count() -> None:
    assert after(*[200.0] * 50, *[5.0] * ROUNDS).seconds == 5.0


def test_a_round_that_took_less_than_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="-1"):
        after(-1.0)


def test_due_when_the_time_is_up_and_not_before_a_round() -> None:
    deadline = after(10.0, 10.0, 10.0)
    assert not deadline.due(1e9)
    deadline.start(100.0)
    assert not deadline.due(109.9)
    assert deadline.due(110.0)
    deadline.start(110.0)
    assert not deadline.due(119.9)


def test_the_clock_stands_still_while_paused() -> None:
    deadline = after(10.0, 10.0, 10.0)
    deadline.resume(0.0)
    assert not deadline.due(1e9)
    deadline.start(0.0)
    deadline.pause(4.0)
    deadline.pause(50.0)
    assert not deadline.due(1_000.0)
    assert deadline.elapsed(1_000.0) == 4.0
    deadline.resume(1_000.0)
    deadline.resume(1_003.0)
    assert not deadline.due(1_005.9)
    assert deadline.due(1_006.0)
    assert deadline.elapsed(1_006.0) == 10.0


def test_a_round_that_begins_while_paused_stays_so() -> None:
    deadline = after(10.0, 10.0, 10.0)
    deadline.pause(1.0)
    deadline.start(5.0)
    assert deadline.elapsed(100.0) == 0.0
    deadline.resume(100.0)
    assert deadline.elapsed(101.0) == 1.0


@given(st.lists(st.floats(0, 1e6), max_size=40))
def test_it_is_always_within_its_bounds(rounds: list[float]) -> None:
    assert 2.0 <= after(*rounds).seconds <= 300.0
