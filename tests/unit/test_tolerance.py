"""How many of a round's batches may fail."""

from __future__ import annotations

import pytest

from contract.errors import GradientFailed
from peer_agent.compute.tolerance import allowed, check


@pytest.mark.parametrize(
    ("setting", "items", "expected"),
    [
        (0, 10, 0), (3, 10, 3), (10, 10, 9), (99, 10, 9), (5, 1, 0),
        (0.05, 10, 0), (0.05, 20, 1), (0.29, 100, 29), (0.1, 10_000, 1_000), (0.999, 10, 9), (0.999, 1, 0),
    ],
)  # fmt: skip
def test_a_count_or_a_share_but_never_all(setting: float, items: int, expected: int) -> None:
    assert allowed(setting, items) == expected


def test_an_error_names_the_first_that_is_explained_and_counts_the_rest() -> None:
    failures = {7: "no gradient for batch 7: lost", 3: "no gradient for batch 3: its worker left none"}
    check(2, 20, failures, [3, 7])
    with pytest.raises(GradientFailed, match=r"^no gradient for batch 7: lost$"):
        check(0, 20, failures, [3, 7])
    many = list(range(12))
    told = r"^no gradient for batch 7: lost; 12 of 20 batches failed \(0, 1, .*, 9, \.\.\.\), and .* = 0\.1 bears 2$"
    with pytest.raises(GradientFailed, match=told):
        check(0.1, 20, failures, many)
