"""When an execution's end is asked for."""

from __future__ import annotations

from itertools import islice

import pytest

from peer_agent.compute.executions import AWS_POLL_SECONDS, AWS_POLL_SHARE, LOCAL_POLL_SECONDS, LOCAL_POLL_SHARE
from peer_agent.compute.pace import Pace


def asked(pace: Pace, until_seconds: float) -> list[float]:
    """When it is asked, in seconds from the start, up to the question that finds the end."""
    times, elapsed = [], 0.0
    for wait in pace.waits():
        elapsed += wait
        times.append(elapsed)
        if elapsed >= until_seconds:
            break
    return times


@pytest.mark.parametrize("seconds", [0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize(
    ("shortest", "share", "most_asked"),
    [(LOCAL_POLL_SECONDS, LOCAL_POLL_SHARE, 40), (AWS_POLL_SECONDS, AWS_POLL_SHARE, 7)],
)
def test_a_round_like_the_last_one_loses_little_and_asks_seldom(
    shortest: float, share: float, most_asked: int, seconds: float
) -> None:
    pace = Pace(shortest, share)
    pace.ended(seconds)
    pace.ended(1.05 * seconds)
    times = asked(pace, 1.02 * seconds)
    assert len(times) <= most_asked
    assert times[-1] - 1.02 * seconds <= max(shortest, 1.02 * share * seconds)


def test_the_first_round_is_asked_for_all_the_time_and_waits_grow_to_a_limit() -> None:
    waits = list(islice(Pace(0.02, 1 / 20, longest_seconds=2.0).waits(), 300))
    assert waits[0] == 0.02
    assert waits == sorted(waits)
    assert waits[-1] == 2.0


def test_the_shorter_of_the_last_two_counts() -> None:
    pace = Pace(0.02, 1 / 20)
    for seconds in (1.0, 8.0, 4.0):
        pace.ended(seconds)
    assert next(pace.waits()) == pytest.approx(3.88)
