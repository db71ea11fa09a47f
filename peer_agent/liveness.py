"""Who lives, as far as this peer can tell: who watches whom, and whose silence counts. Pure.

A heartbeat that does not come says something about its sender only while this peer could have heard it. So silence is
counted from the latest of three moments: the sender's last heartbeat, the beginning of this peer's own connection, and
the moment at which this process last woke up after it had stood still.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: Up to so many peers each hears all others; beyond that heartbeats would grow with the square of the peers.
ALL_TO_ALL = 16


def watchers(rank: int, ranks: Iterable[int]) -> tuple[int, ...]:
    """Which of `ranks` listen to the heartbeats of `rank`, in rank order.

    Everyone else up to 16 peers. Among more, the next ceil(log2 P) + 1 on the ring of ranks: as many as it takes to
    make it unlikely that all of them die with the one they watch, and each peer hears as many as hear it.
    """
    ring = sorted({*ranks, rank})
    if len(ring) <= ALL_TO_ALL:
        return tuple(other for other in ring if other != rank)
    at = ring.index(rank)
    return tuple(sorted(ring[(at + step) % len(ring)] for step in range(1, _reach(len(ring)) + 1)))


def watched(rank: int, ranks: Iterable[int]) -> tuple[int, ...]:
    """Whose heartbeats `rank` listens to, in rank order: all for whom it is one of the `watchers`."""
    ring = sorted({*ranks, rank})
    if len(ring) <= ALL_TO_ALL:
        return tuple(other for other in ring if other != rank)
    at = ring.index(rank)
    return tuple(sorted(ring[at - step] for step in range(1, _reach(len(ring)) + 1)))


def _reach(peers: int) -> int:
    return math.ceil(math.log2(peers)) + 1


@dataclass(frozen=True)
class Standing:
    """What a peer's latest heartbeat said."""

    incarnation: int
    round: int


class Liveness:
    """The silence of those whose heartbeats this peer listens to. All times are monotonic seconds."""

    def __init__(self, timeout_seconds: float, heartbeat_seconds: float = 1.0) -> None:
        """Whoever has been silent for `timeout_seconds` counts as silent; the living say so every
        `heartbeat_seconds`."""
        self._timeout = timeout_seconds
        # Whoever lives was heard a heartbeat ago, or two, when the own loop began to stand still: up to here its next
        # word may still wait to be read without its silence reaching the timeout. A shorter bound would leave out
        # nobody where the loop is as busy in every round, as it is without a barrier.
        self._doubtful = max(heartbeat_seconds, timeout_seconds - 2 * heartbeat_seconds)
        self._heard: dict[int, float] = {}
        self._standing: dict[int, Standing] = {}
        self._since: float | None = None

    def watch(self, ranks: Iterable[int], at: float) -> None:
        """Listen to exactly these from now on; one that is new has the whole timeout from `at`."""
        wanted = set(ranks)
        for rank in set(self._heard) - wanted:
            del self._heard[rank]
            self._standing.pop(rank, None)
        for rank in wanted:
            self._heard.setdefault(rank, at)

    def heard(self, rank: int, incarnation: int, round: int, at: float) -> None:
        """A heartbeat of `rank` arrived at `at`. One of an earlier incarnation than the latest known says nothing, for
        what it proves alive has been taken over; one of a rank that is not watched is noted all the same."""
        known = self._standing.get(rank)
        if known is not None and incarnation < known.incarnation:
            return
        if known is not None and incarnation == known.incarnation:
            round = max(round, known.round)  # messages of two connections may overtake each other
        self._standing[rank] = Standing(incarnation, round)
        self._heard[rank] = max(at, self._heard.get(rank, at))

    def link(self, up: bool, at: float) -> None:
        """The own connection is up, since `at`, or it is down.

        Saying again what is known changes nothing; another `at` tells of an outage in between, after which everyone
        has the whole timeout again.
        """
        if not up:
            self._since = None
        elif self._since is None or at > self._since:
            self._since = at

    def woke(self, gap: float, at: float) -> None:
        """The own loop had not come round for `gap` seconds. Where that is so long that the silence of others might be
        its own, everyone has the whole timeout again: they may have spoken to a process that stood still."""
        if gap > self._doubtful and self._since is not None:
            self._since = max(self._since, at)

    def silent(self, now: float) -> tuple[int, ...]:
        """Those watched whose silence counts, in rank order; nobody while the own connection is down."""
        since = self._since
        if since is None:
            return ()
        return tuple(rank for rank, heard in sorted(self._heard.items()) if now - max(heard, since) >= self._timeout)

    @property
    def standing(self) -> dict[int, tuple[int, int]]:
        """(incarnation, round) of each rank's latest heartbeat; a rank that has not been heard is not in it."""
        return {rank: (said.incarnation, said.round) for rank, said in sorted(self._standing.items())}
