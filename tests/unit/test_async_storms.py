"""Asynchronous state machines in bad weather: what is averaged is always fresh and of whoever holds the rank, and all
end together. tests/fakes/async_storm.py asserts it at every step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.async_storm import Storm


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_storms_of_crashes_twins_and_false_suspicion_end_with_one_set_of_weights(seed: int) -> None:
    """Some 40,000 steps; `python -m tests.fakes.async_storm` makes millions."""
    assert Storm(seed).play().steps > 0


def test_storms_average_weights_and_bring_peers_back() -> None:
    """The storms above say something: what they must not break happens in them."""
    worlds = [Storm(seed).play() for seed in range(1, 25)]
    assert sum(world.averages for world in worlds) > 1_000
    assert sum(world.weights_averaged for world in worlds) > 100
    assert sum(world.caught_up[True] for world in worlds) > 10
    assert {"stale", "incarnation"} <= set().union(*(world.rejections for world in worlds))
