"""Who is expected in a round, for whom nobody waits any longer, and who takes part in the next one. Pure.

A member is *silent* when its heartbeats have stopped, and *given up* when it lives but delivers nothing for too long.
Neither is waited for, and the commit drops both. Whoever is no member but alive and caught up is taken in by the next
commit. What one peer sees of this may differ from what another sees: the commit record decides (invariant 2).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

from contract.records import MemberRef
from peer_agent.membership import Roster

#: Contributions that a round needs: a number of peers, or a share of the live members.
Quorum = int | float


class Attendance:
    """One peer's view of who is there."""

    def __init__(self, roster: Roster, quorum: Quorum) -> None:
        self._roster, self._quorum = roster, quorum
        self.members: tuple[MemberRef, ...] = ()
        """Members of this round, in rank order."""
        self.silent: frozenset[int] = frozenset()
        """Ranks whose heartbeats have stopped."""
        self.excluded: frozenset[int] = frozenset()
        """Ranks that a commit has excluded for good."""
        self.guilty: frozenset[int] = frozenset()
        """Ranks that this peer would have excluded, with evidence."""
        self._leaving: dict[int, int] = {}  # by rank: the incarnation that wants to go
        self._standing: dict[int, tuple[int, int]] = {}  # by rank: incarnation and round of its latest heartbeat
        self._seats: dict[int, MemberRef] = {}
        self._given_up: frozenset[int] = frozenset()
        self._sought: frozenset[int] = frozenset()

    def open(self, members: Iterable[MemberRef]) -> None:
        """A round begins with these members."""
        self.members = tuple(members)
        self._seats = {member.rank: member for member in self.members}
        self._given_up = self._sought = frozenset()

    def heard(self, rank: int, incarnation: int, round: int, leaving: bool = False) -> None:
        """A heartbeat says where a process stands, and whether it wants to go."""
        if leaving:
            self._leaving[rank] = incarnation
        known = self._standing.get(rank)
        if known is None or known <= (incarnation, round):
            self._standing[rank] = (incarnation, round)

    def seat(self, rank: int) -> MemberRef | None:
        """The member entry of a rank, or None."""
        return self._seats.get(rank)

    def unseated(self, rank: int, incarnation: int) -> str | None:
        """Why a process has no say in this round, or None: `member` for a rank without a seat, `incarnation` for a
        process that another one has replaced.

        A process of a later incarnation stands in for its rank's member entry, once its claim is known.
        """
        if self.seat(rank) is None:
            return "member"
        return None if incarnation == self._latest(rank) else "incarnation"

    def absent(self, held: Collection[int]) -> tuple[MemberRef, ...]:
        """Members whose contribution is not among the `held` ranks."""
        return tuple(member for member in self.members if member.rank not in held)

    def holders(self, members: Iterable[MemberRef]) -> tuple[MemberRef, ...]:
        """The processes that hold the seats of these members by now, whose contributions are those that count."""
        return tuple(MemberRef(rank=member.rank, incarnation=self._latest(member.rank)) for member in members)

    def awaited(self, held: Collection[int]) -> tuple[MemberRef, ...]:
        """Of the absent ones those who are alive, as far as one knows."""
        return tuple(member for member in self.absent(held) if not self._gone(member.rank))

    def unsought(self, held: Collection[int]) -> tuple[MemberRef, ...]:
        """Of the absent ones those who are gone, and whose contribution has not been looked for in S3 since."""
        gone = (member for member in self.absent(held) if self._gone(member.rank))
        return tuple(member for member in gone if member.rank not in self._sought)

    def sought(self, ranks: Iterable[int]) -> None:
        """These ranks' contributions were looked for in S3."""
        self._sought |= {rank for rank in ranks if self._gone(rank)}

    def give_up(self, held: Collection[int]) -> None:
        """Nobody waits any longer in this round for whoever lives and delivers nothing."""
        self._given_up |= {member.rank for member in self.awaited(held)}

    def needed(self, held: Collection[int]) -> int:
        """Contributions that this round needs, as far as one knows who lives."""
        if isinstance(self._quorum, int):
            return self._quorum
        live = len(self.members) - sum(self._gone(member.rank) for member in self.absent(held))
        return max(1, math.ceil(self._quorum * live - 1e-9))

    def suffices(self, held: Collection[int], late: bool) -> bool:
        """Whether a commit may be made with these contributions; `late`: the round's deadline has passed."""
        present = sum(member.rank in held for member in self.members)
        return present >= self.needed(held) and not self.unsought(held) and (late or not self.awaited(held))

    def turn(self, first: int) -> MemberRef:
        """Whose turn it is, where it is that of the member at `first` (modulo their number): the next one who lives."""
        *_, holder = self.succession(first)
        return self.members[first % len(self.members)] if self._gone(holder.rank) else holder

    def succession(self, first: int) -> Iterator[MemberRef]:
        """From the member at `first` on (modulo their number) up to the one who lives; all where nobody does."""
        count = len(self.members)
        for step in range(count):
            member = self.members[(first + step) % count]
            yield member
            if not self._gone(member.rank):
                return

    def next_members(self, round: int, held: Collection[int]) -> tuple[MemberRef, ...]:
        """Members of the round after `round`, as this peer would write them into the commit.

        With a number of peers as quorum as many keep their seats, gone or wishing to go: a run with fewer could never
        commit again, not even to take somebody in. So does the last one of all who wish to go.
        """
        out = self.excluded | self.guilty
        stay = {m.rank for m in self.members if m.rank not in self.silent and m.rank not in self._given_up - set(held)}
        caught_up = {r for r, (_, at) in self._standing.items() if at >= round and r not in self.silent}
        newcomers = {
            r for r in caught_up if self.seat(r) is None and self._standing[r][0] == self._roster.incarnation(r)
        }
        ranks = {r for r in (stay | newcomers) - out if self._leaving.get(r) != self._latest(r)}
        needed = self._quorum if isinstance(self._quorum, int) else 1
        if isinstance(self._quorum, int) or self.leaving:
            # Those who are there before those who are gone.
            rest = sorted((m.rank for m in self.members if m.rank not in ranks | out), key=lambda r: (r not in stay, r))
            ranks |= set(rest[: max(0, needed - len(ranks))])
        return tuple(MemberRef(rank=rank, incarnation=self._latest(rank)) for rank in sorted(ranks))

    @property
    def leaving(self) -> frozenset[int]:
        """Members that want to go."""
        return frozenset(r for r, inc in self._leaving.items() if self.seat(r) and inc == self._latest(r))

    def _latest(self, rank: int) -> int:
        seat = self.seat(rank)
        return max(seat.incarnation if seat else 0, self._roster.incarnation(rank))

    def _gone(self, rank: int) -> bool:
        return rank in self.silent or rank in self._given_up or rank in self.guilty
