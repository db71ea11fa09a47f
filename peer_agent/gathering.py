"""The contributions to one round, as headers: what is held, what is on its way, and what has come early for the next.

Pure. What is kept has been read whole and matches its digest; what cannot count is turned away with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.attendance import Attendance
from peer_agent.membership import Roster


class Gathering:
    """One peer's contributions of the round at hand."""

    def __init__(self, frames: FrameRules, roster: Roster, attendance: Attendance) -> None:
        self._frames, self._roster, self._attendance = frames, roster, attendance
        self._round = -1
        self._base = ""
        self._past: frozenset[str] = frozenset()
        self._early: dict[int, FrameHeader] = {}  # by rank, of the next round
        self._unknown: dict[int, s.FrameArrived] = {}  # by rank: of a process whose claim is being looked for
        self.held: dict[int, FrameHeader] = {}
        """By rank, of this round."""
        self.pending: set[int] = set()
        """Ranks whose contributions to this round are on their way."""

    def expect(self, round: int, past: Iterable[str]) -> None:
        """The run begins with `round` for this peer: until it opens, its frames count as early ones."""
        self._round, self._past = round - 1, frozenset(past)

    def open(self, round: int, base: str) -> list[s.Command]:
        """`round` begins, from weights of the hash `base`, with what has come early for it; rejects what does not fit.

        What the last round held is past.
        """
        self._past = frozenset(header.digest for header in self.held.values()) or self._past
        self._round, self._base = round, base
        self.held, self.pending = {}, set()
        early, self._early = self._early, {}
        rejected: list[s.Command] = []
        for header in early.values():
            if reason := self._misfit(header):
                rejected.append(s.Reject(reason, header.rank, header.round, header))
            else:
                self.held[header.rank] = header
        return rejected

    def arrived(self, event: s.FrameArrived, collecting: bool) -> list[s.Command]:
        """What to do with a frame; `collecting` while the round has no commit yet."""
        header = event.header
        if header.digest in self._past:
            return []  # applied by its commit, which was faster than this message
        known = self._known(header)
        if known is not None:
            same = known.digest == header.digest
            return [] if same else [s.Reject("conflict", event.sender, header.round, header, known)]
        if reason := self._misfit(header):
            return [s.Reject(reason, event.sender, header.round, header)]
        if header.incarnation > self._roster.incarnation(header.rank):
            self._unknown[header.rank] = event
            return [s.FindMembers((header.rank,))]
        if header.round == self._round:
            if not collecting:
                return [s.Reject("late", event.sender, header.round, header)]
            self.pending.add(header.rank)
        return [s.Hold(header, event.body, event.sender)]

    def claimed(self, rank: int) -> s.FrameArrived | None:
        """A frame that waited for its sender's claim to be known."""
        return self._unknown.pop(rank, None)

    def keep(self, header: FrameHeader) -> list[s.Command]:
        """A contribution to this round or the next is held. One that set out before its round opened, and does not fit
        it, is rejected."""
        if header.round == self._round + 1:
            self._early[header.rank] = header
        elif header.round == self._round:
            self.pending.discard(header.rank)
            if reason := self.unfit(header):
                return [s.Reject(reason, header.rank, header.round, header)]
            self.held[header.rank] = header
        return []

    def give_up(self, header: FrameHeader) -> None:
        """A contribution that was on its way does not come."""
        if header.round == self._round:
            self.pending.discard(header.rank)

    def drop(self, ranks: Iterable[int]) -> None:
        """What these have sent does not count, whatever is held of it."""
        for rank in ranks:
            self.held.pop(rank, None)
            self._early.pop(rank, None)
            self.pending.discard(rank)

    def unfit(self, header: FrameHeader) -> str | None:
        """Why a frame must not be applied in this round, whoever lists it, or None."""
        if reason := self._frames.misfit(header):
            return reason
        return "base_weights" if header.base_weights != self._base else None

    def _misfit(self, header: FrameHeader) -> str | None:
        """Why a frame is of no use to this round or the next, or None."""
        if reason := self._frames.misfit(header):
            return reason
        if header.round < self._round:
            return "stale"
        if header.round > self._round + 1:
            return "ahead"
        if header.round == self._round + 1:
            return None  # the rest is checked when that round opens and its weights and members are known
        if reason := self.unfit(header):
            return reason
        if self._attendance.seat(header.rank) and header.incarnation > self._roster.incarnation(header.rank):
            return None  # of a process that may have taken the rank over; its claim decides
        if header.rank in self._attendance.guilty:
            return "excluded"
        return self._attendance.unseated(header.rank, header.incarnation)

    def _known(self, header: FrameHeader) -> FrameHeader | None:
        if header.round not in (self._round, self._round + 1):
            return None
        known = (self.held if header.round == self._round else self._early).get(header.rank)
        return known if known is not None and known.incarnation == header.incarnation else None
