"""The formula of state transitions, by hand; tests/fakes/executions.py holds it against executions."""

from __future__ import annotations

from statemachines import Mode
from statemachines.transitions import transitions


def test_a_map_enters_its_state_and_one_per_batch() -> None:
    assert transitions(Mode.INLINE_MAP, executions=1, invocations=4) == 5
    assert transitions(Mode.PARALLEL, executions=1, invocations=4) == 5
    assert transitions(Mode.INLINE_MAP, executions=3, invocations=4 + 4 + 6) == 17, "two were tried again"


def test_a_distributed_map_pays_for_each_child_it_starts() -> None:
    assert transitions(Mode.DISTRIBUTED_MAP, executions=1, invocations=4, children=4) == 9
    assert transitions(Mode.DISTRIBUTED_MAP, executions=1, invocations=6, children=4) == 11


def test_a_reducer_adds_a_choice_and_an_end_or_three_levels() -> None:
    assert transitions(Mode.INLINE_MAP, executions=1, invocations=4, reducer=True) == 7
    # Map, choice, three levels, their end; nine workers and the three reducers of their tree.
    assert transitions(Mode.INLINE_MAP, executions=1, invocations=9 + 3, reducer=True, reductions=1) == 18


def test_a_failure_that_is_caught_goes_through_more_states() -> None:
    assert transitions(Mode.INLINE_MAP, executions=1, invocations=4, caught=1) == 7
    assert transitions(Mode.PARALLEL, executions=1, invocations=4, caught=1) == 6
    assert transitions(Mode.DISTRIBUTED_MAP, executions=1, invocations=4, children=4, caught=1) == 9
