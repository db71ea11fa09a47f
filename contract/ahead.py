"""Fetching one object ahead: what comes over a network arrives while the one before is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: Gradients up to this size are fetched while the one before is added up; larger ones would cost a model of memory.
AHEAD_BYTES = 32 * 2**20

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(fetch: Callable[[T], R], items: Sequence[T], *, ahead: bool = True) -> Iterator[tuple[T, R]]:
    """Each item with what `fetch` makes of it, in order; the next is fetched while the caller works on one.

    Two results at most are in memory, whatever the number of items; without `ahead` one, if the caller lets go of it
    before it asks for the next. Raises what `fetch` raises, at that item.
    """
    if not ahead or len(items) == 1:
        for item in items:
            yield item, fetch(item)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        upcoming = pool.submit(fetch, items[0])
        for position, item in enumerate(items):
            value = upcoming.result()
            if position + 1 < len(items):
                upcoming = pool.submit(fetch, items[position + 1])
            yield item, value
