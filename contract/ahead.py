"""Fetching objects ahead: what comes over a network arrives while the ones before are worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

#: So many gradients are fetched while the ones before are added up, each a round trip to S3, as far as their bytes go:
#: large ones would cost a model of memory.
AHEAD, AHEAD_BYTES = 8, 32 * 2**20

T = TypeVar("T")
R = TypeVar("R")


def how_far_ahead(encoded_bytes: int) -> int:
    """So many gradients of this size, encoded, are fetched ahead."""
    return min(AHEAD, AHEAD_BYTES // encoded_bytes)


def fetched_ahead(fetch: Callable[[T], R], items: Sequence[T], *, ahead: int = 1) -> Iterator[tuple[T, R]]:
    """Each item with what `fetch` makes of it, in order; the next `ahead` are fetched at once while the caller works.

    `ahead` + 1 results at most are in memory, whatever the number of items; with 0 one, if the caller lets go of it
    before it asks for the next. Raises what `fetch` raises, at that item.
    """
    if not ahead or len(items) == 1:
        for item in items:
            yield item, fetch(item)
        return
    upcoming: deque[Future[R]] = deque()
    with ThreadPoolExecutor(min(ahead, len(items)), thread_name_prefix="fetch") as pool:
        try:
            upcoming.extend(pool.submit(fetch, item) for item in items[:ahead])
            for position, item in enumerate(items):
                value = upcoming.popleft().result()
                if position + ahead < len(items):
                    upcoming.append(pool.submit(fetch, items[position + ahead]))
                yield item, value
        finally:
            for future in upcoming:
                future.cancel()
