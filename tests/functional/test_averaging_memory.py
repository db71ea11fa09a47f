"""A peer that averages its workers' gradients holds the mean and one of them, whatever their number."""

from __future__ import annotations

import pytest

from benchmarks.averaging import models_of_memory

#: 40 MB: above what is fetched ahead.
ELEMENTS = 10_000_000


@pytest.mark.parametrize("count", [2, 8])
def test_memory_does_not_grow_with_the_number_of_gradients(count: int) -> None:
    """Two model sizes, and less than half of one for what adding up and reading take on the way."""
    assert 1.5 < models_of_memory(ELEMENTS, count) < 2.5
