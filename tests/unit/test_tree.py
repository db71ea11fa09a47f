"""The tree over a round's gradients: for any count, and when it is worth its levels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.reduce_tasks import groups
from contract.tree import FAN_IN, MOST_LEVELS, ever_reduces, reducers, reduces, tree
from statemachines.reduce import LEVELS

MB = 2**20


@dataclass(frozen=True)
class Item:
    index: int
    samples: int


def test_a_definition_has_a_state_per_level() -> None:
    assert LEVELS == MOST_LEVELS


@given(st.integers(2, 10_000))
def test_every_gradient_is_in_one_group_of_neighbours(count: int) -> None:
    levels = tree(count)
    below = count
    for sizes in levels:
        assert sum(sizes) == below
        assert max(sizes) - min(sizes) <= 1
        below = len(sizes)
    assert below == 1
    assert len(levels) <= MOST_LEVELS
    assert reducers(count) == sum(len(sizes) for sizes in levels)


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, []),
        (2, [1]),
        (8, [1]),
        (9, [2, 1]),
        (64, [8, 1]),
        (65, [9, 2, 1]),
        (512, [64, 8, 1]),
        (10_000, [455, 21, 1]),
    ],
)
def test_the_tree_by_hand(count: int, groups: list[int]) -> None:
    assert [len(sizes) for sizes in tree(count)] == groups
    assert max((max(sizes) for sizes in tree(count)), default=0) <= (FAN_IN if count <= FAN_IN**3 else 22)


@given(st.lists(st.integers(1, 99), min_size=2, max_size=700))
def test_groups_name_what_they_add_up(samples: list[int]) -> None:
    items = [Item(1_000 - position, count) for position, count in enumerate(samples)]
    first, *others = groups(items, lambda index: index % 3)
    named = [tuple(item) for group in first for item in group.items]
    assert named == [(item.index, item.samples, item.index % 3) for item in items]
    below = first
    for level in others:
        assert [n for group in level for n in range(group.first, group.first + group.count)] == [
            group.number for group in below
        ]
        for group in level:
            parts = below[group.first : group.first + group.count]
            assert group.samples == sum(part.samples for part in parts)
        below = level
    assert below[0].samples == sum(samples)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (2, 468_264, False),  # the demo: two batches of a CNN of 117,066 parameters
        (40, 468_264, False),
        (8, 500 * MB, False),  # a reducer alone reads what the peer would have read
        (64, 100 * MB, True),
        (40, 100 * MB, True),
        (16, 100 * MB, False),
        (64, 2 * MB, False),
        (1_000, 468_264, True),
        (10_000, 10_000, False),
    ],
)
def test_auto_goes_by_size_and_count(count: int, size: int, expected: bool) -> None:
    assert reduces("auto", count, size, size) is expected
    assert reduces("never", count, size, size) is False
    assert reduces("always", count, size, size) is True


def test_one_gradient_is_never_added_up() -> None:
    assert not any(reduces(setting, 1, 10**12, 10**12) for setting in ("auto", "never", "always"))


def test_smaller_gradients_make_the_peers_own_way_shorter() -> None:
    """Half precision halves what the peer reads; the means that travel in the tree stay float32."""
    assert reduces("auto", 24, 100 * MB, 100 * MB)
    assert not reduces("auto", 24, 50 * MB, 100 * MB)


def test_whether_any_round_of_a_run_reduces() -> None:
    assert ever_reduces("auto", 64, 100 * MB, 100 * MB)
    assert not ever_reduces("auto", 2, 468_264, 468_264)
    assert ever_reduces("always", 2, 1, 1)
    assert not ever_reduces("always", 1, 1, 1)
