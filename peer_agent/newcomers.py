"""Ranks that join a run under way: what this peer knows of them.

Nobody can tell a peer of a rank whose messages it does not listen to yet. So every peer looks in S3, from time to time,
for the record of the next rank (contract/joining.py), and for the claim of one whose record it knows. A rank that the
run did not begin with and that has no such record is nobody's to hold.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.joining import find_joined
from contract.records import Member
from contract.runspec import RunSpec
from contract.store import ObjectStore

#: Why a claim is rejected whose rank has no record.
UNJOINED = "unjoined"


class Newcomers:
    """One peer's view of the ranks that a run did not begin with. `spec` holds those that the peer itself needs."""

    def __init__(self, spec: RunSpec, rank: int, store: ObjectStore, admit: Callable[[int], None]) -> None:
        """`admit` makes a rank's messages and heartbeats heard; `rank` is the own one."""
        self._places, self._peers, self._rank = spec.places, spec.config.peers, rank
        self._store, self._admit = store, admit
        self.samples: dict[int, int] = {rank: spec.samples[rank] for rank in range(self._peers, len(spec.samples))}
        """Training samples by rank, of all that are known to have joined; others may hold this very table."""
        self.admitted: set[int] = set()
        """Ranks whose messages are heard; others may hold this very set."""

    def may_hold(self, rank: int) -> bool:
        """Whether somebody may hold this rank; S3 is asked where that is not known yet. Raises StoreUnavailable."""
        if rank < self._peers or rank in self.samples:
            return True
        record = find_joined(self._store, self._places, rank)
        if record is not None:
            self.samples[rank] = record.samples
        return record is not None

    def admit(self, member: Member) -> None:
        """Listen to whoever holds a rank that joined after the start; does no harm twice."""
        if member.rank >= self._peers and member.rank != self._rank and member.rank not in self.admitted:
            self._admit(member.rank)
            self.admitted.add(member.rank)

    def look(self) -> tuple[int, ...]:
        """Ask S3 whether one more rank has joined; gives those whose claims this peer has not seen."""
        self.may_hold(max((*self.samples, self._peers - 1)) + 1)
        return tuple(sorted(self.samples.keys() - self.admitted - {self._rank}))
