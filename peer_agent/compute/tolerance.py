"""How many failed batches a round bears (`compute.tolerated_failures`), and what is said beyond that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from contract.errors import GradientFailed

#: Failures that an error names one by one.
NAMED = 10
#: A share of a count may come out a little below the whole number that is meant: 0.29 * 100.
ROUNDING = 1e-9


def allowed(setting: float, items: int) -> int:
    """Of `items` at most so many may fail: a count from 1 on, or a share below; at least one item must succeed."""
    count = setting if setting >= 1 else math.floor(setting * items + ROUNDING)
    return min(int(count), items - 1)


def check(setting: float, items: int, failures: Mapping[int, str], missing: Sequence[int]) -> None:
    """Raises GradientFailed where more of `items` are missing than may be.

    `missing` are the indices of those without a usable result, `failures` sentences on them and perhaps on others, of
    which the first are best.
    """
    limit = allowed(setting, items)
    if len(missing) <= limit:
        return
    first = next(text for index, text in failures.items() if index in missing)
    if not setting:
        raise GradientFailed(first)
    named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
    raise GradientFailed(
        f"{first}; {len(missing)} of {items} batches failed ({named}), and compute.tolerated_failures = {setting} "
        f"bears {limit}"
    )
