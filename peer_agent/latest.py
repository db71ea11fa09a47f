"""The latest frame of each sender in asynchronous mode: what an average may use, and until when. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from contract.records import MemberRef
from contract.wire import FrameHeader
from peer_agent.admission import not_a_member


def staleness(header: FrameHeader, round: int) -> int:
    """How many rounds a frame is behind `round`; 0 for one from ahead."""
    return max(0, round - header.base_round)


class Latest:
    """One frame per rank, of its latest process: gradients, or weights."""

    def __init__(self, max_staleness: int) -> None:
        """`max_staleness` in rounds."""
        self._max_staleness = max_staleness
        self._frames: dict[int, FrameHeader] = {}
        self._heard: set[int] = set()  # ranks of which one has come since `quiet` was last asked

    def __iter__(self) -> Iterator[FrameHeader]:
        return iter([self._frames[rank] for rank in sorted(self._frames)])

    def of(self, rank: int) -> FrameHeader | None:
        """A rank's frame, or None."""
        return self._frames.get(rank)

    def round_of(self, rank: int) -> int:
        """The round of a rank's frame; -1 where there is none."""
        return self._frames[rank].round if rank in self._frames else -1

    def take(self, header: FrameHeader) -> None:
        """This is its sender's latest."""
        self._frames[header.rank] = header
        self._heard.add(header.rank)

    def supersede(self, rank: int, incarnation: int) -> None:
        """A process of this incarnation holds the rank now: nothing of an earlier one is used any more."""
        known = self._frames.get(rank)
        if known is not None and known.incarnation < incarnation:
            del self._frames[rank]

    def leave_out(self, ranks: Iterable[int]) -> None:
        """These are gone: what they have left is used no more."""
        for rank in ranks:
            self._frames.pop(rank, None)

    def is_copy(self, header: FrameHeader) -> bool:
        """Whether a frame is the one that is there, once more."""
        known = self._frames.get(header.rank)
        return known is not None and (known.incarnation, known.round) == (header.incarnation, header.round)

    def misfit(self, header: FrameHeader, round: int) -> str | None:
        """Why a frame of a known member is of no use in `round`, or None."""
        if staleness(header, round) > self._max_staleness:
            return "stale"
        known = self._frames.get(header.rank)
        if known is not None and known.incarnation == header.incarnation and known.round > header.round:
            return "outdated"
        return None

    def prune(self, round: int, members: Collection[MemberRef]) -> Iterator[tuple[str, FrameHeader]]:
        """Forget what has aged beyond the bound, and what came before its sender's claim was known and does not match
        it; the reason of each."""
        for rank, header in sorted(self._frames.items()):
            stale = "stale" if staleness(header, round) > self._max_staleness else None
            if reason := stale or not_a_member(header, members):
                del self._frames[rank]
                yield reason, header

    def quiet(self, members: Iterable[MemberRef]) -> tuple[tuple[MemberRef, int], ...]:
        """Those of `members` from whom nothing has come since the last call, each with the round of its frame."""
        found = tuple((member, self.round_of(member.rank)) for member in members if member.rank not in self._heard)
        self._heard.clear()
        return found
