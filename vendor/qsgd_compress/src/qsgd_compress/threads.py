"""Work over ranges, in the caller's thread or in several."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SMALLEST_SHARE = 1 << 15  # values a thread; below it starting the thread costs more than it saves


class Threads:
    """At most `count` threads for each piece of work. Raises TypeError and ValueError for what is no count."""

    def __init__(self, count: int) -> None:
        self._count = operator.index(count)
        if self._count < 1:
            raise ValueError(f"threads must be at least 1, not {self._count}")

    def split(self, units: int, unit: int, work: Callable[[int, int], T]) -> list[T]:
        """work(first, last) over ranges of `units` of `unit` values each, in order; the earliest error is raised."""
        parts = min(self._count, units, -(-units * unit // SMALLEST_SHARE))
        if parts <= 1:
            return [work(0, units)] if units else []
        from concurrent.futures import ThreadPoolExecutor  # imported here: most callers never need it

        edges = [units * part // parts for part in range(parts + 1)]
        with ThreadPoolExecutor(parts, thread_name_prefix="qsgd") as pool:
            return list(pool.map(work, edges[:-1], edges[1:]))
