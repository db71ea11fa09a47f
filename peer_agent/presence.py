"""Who is there in asynchronous mode, by what heartbeats say; who falls silent is left out until it is heard. Pure."""

from __future__ import annotations

from collections.abc import Collection

from contract.records import MemberRef
from peer_agent.signals import Heard


class Presence:
    """Of the others, as one peer hears them."""

    def __init__(self) -> None:
        self.silent: frozenset[int] = frozenset()
        """Ranks that are left out: they fell silent and have not been heard since."""
        self._unheard: frozenset[int] = frozenset()  # silent as it seems now, when they may just have more time again
        self._alive: set[int] = set()  # heard since they were last left out
        self._standing: dict[int, Heard] = {}  # by rank, the latest heartbeat

    def hear(self, beat: Heard) -> None:
        """A rank's latest heartbeat."""
        self._standing[beat.rank] = beat
        self._alive.add(beat.rank)

    def miss(self, ranks: frozenset[int]) -> None:
        """From these ranks, and no others, nothing has come for too long."""
        self._unheard = ranks

    def reconsider(self) -> tuple[frozenset[int], frozenset[int]]:
        """Who is left out from now on, and who no longer: a link that was down gives the dead, too, all their time, so
        that only a heartbeat brings a rank back."""
        silent = self._unheard | (self.silent - self._alive)
        lost, back = silent - self.silent, self.silent - silent
        self.silent = silent
        self._alive -= lost
        return lost, back

    def is_heard(self, member: MemberRef) -> bool:
        """Whether the heartbeats are of this very process, and of no successor."""
        return member.rank in self._standing and self._standing[member.rank].incarnation == member.incarnation

    def rounds(self, ranks: Collection[int]) -> list[int]:
        """Where those of `ranks` stand who have been heard at all."""
        return [beat.round for rank, beat in self._standing.items() if rank in ranks]
