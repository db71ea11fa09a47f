"""The peers' processes of a local run: who lives, who died and is started again, who has failed for good.

A peer that ends by a signal, or because of what befell it alone, has died: it is started again under its rank and
identity, after a pause that doubles. One that ends with status 1 or 2 has said why, and the next one would end the same
way: the run fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from contract.clock import Clock
from contract.config import MembershipConfig
from contract.errors import EXIT_ALONE, EXIT_SUPERSEDED
from infra.local.processes import Child, ending

#: The pause before a first restart, and the longest, in seconds.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
#: A failure of the peer's own, a mistake of the user's.
_SAID_WHY = (1, 2)
#: How a peer ends that is asked to before it has joined the run.
_ENDED_EARLY = (130, 143)


class Crew:
    """The processes by rank. `start` makes one for a rank; `told` hears (rank, how it died, number of the restart)."""

    def __init__(
        self,
        start: Callable[[int], Child],
        ranks: Iterable[int],
        membership: MembershipConfig,
        clock: Clock,
        told: Callable[[int, str, int], None] = lambda *_: None,
        guests: Collection[int] = (),
    ) -> None:
        """Starts all peers at once. Raises LocalStackError.

        `guests` are those of the ranks that would leave the run when asked to end: they end with the others.
        """
        self._guests = frozenset(guests)
        self._start, self._membership, self._clock, self._told = start, membership, clock, told
        self._children = {rank: start(rank) for rank in ranks}
        self._statuses: dict[int, int | None] = dict.fromkeys(self._children)  # as the last look found them
        self.restarts: Counter[int] = Counter()
        """How often each rank was started again."""
        self._due: dict[int, float] = {}  # when a dead rank is started again
        self._lost: dict[int, str] = {}  # ranks that stay dead, and how they died
        self._alone: dict[int, str] = {}  # what befell a peer that is no reason for others to end
        self._said: list[str] = []  # what peers told of their own failure
        self._failed: list[str] = []  # how peers ended that failed, whether they told or not
        self._ending = False

    @property
    def needed(self) -> int:
        """Peers without whom no round can come to an end. A quorum that is a share counts the living alone."""
        quorum = self._membership.quorum
        return quorum if isinstance(quorum, int) else 1

    @property
    def failed(self) -> bool:
        """Whether the run cannot end well any more."""
        return bool(self._said or self._failed) or len(self._children) - len(self._lost) < self.needed

    @property
    def over(self) -> bool:
        """Whether nobody ran at the last look, and nobody will."""
        return not self._due and None not in self._statuses.values()

    def saw(self, event: dict[str, Any]) -> None:
        """An event of a peer's."""
        if event["event"] != "failed" or event["rank"] not in self._children:
            return  # of whoever joined from elsewhere another one takes care
        if event.get("alone") or event["rank"] in self._guests:
            self._alone[event["rank"]] = event["error"]
        else:
            self._said.append(f"peer {event['rank']}: {event['error']}")

    def look(self) -> None:
        """Note who has ended, and start those again whose time has come. Raises LocalStackError."""
        self._statuses = {rank: child.poll() for rank, child in self._children.items()}
        if self._ending and all(rank in self._guests for rank in self._running()):
            self._terminate(self._guests)
        for rank, status in self._statuses.items():
            if not status or rank in self._due or rank in self._lost:
                continue
            if status in _SAID_WHY:
                self._lost[rank] = told = self._sentence(rank)
                if rank not in self._guests:
                    self._failed.append(told)
            elif self._ending or not self._may_start(rank):
                if not (self._ending and status in _ENDED_EARLY):
                    self._lost[rank] = self._sentence(rank)
            else:
                pause = min(PAUSE_SECONDS * 2 ** self.restarts[rank], LONGEST_PAUSE_SECONDS)
                self._due[rank] = self._clock.monotonic() + pause
        for rank in [rank for rank, due in self._due.items() if due <= self._clock.monotonic()]:
            self._start_again(rank)

    def end(self) -> None:
        """Ask all to end in order; nobody is started again."""
        self._ending = True
        for rank in self._due:
            self._lost[rank] = self._sentence(rank)
        self._due.clear()
        self._terminate(self._children.keys() - self._guests)

    def kill(self) -> None:
        """End all at once."""
        for rank in self._running():
            self._children[rank].kill()

    def sentence(self) -> str | None:
        """The first failure that was told; else, below the quorum, how the first peer died that stays dead."""
        for told in (*self._said, *self._failed):
            return told
        return next(iter(self._lost.values())) if self.failed else None

    def _start_again(self, rank: int) -> None:
        del self._due[rank]
        if self._finished():  # meanwhile: the others have ended together
            self._lost[rank] = self._sentence(rank)
            return
        died = self._how_it_died(rank)
        self.restarts[rank] += 1
        self._children[rank], self._statuses[rank] = self._start(rank), None
        self._told(rank, died, self.restarts[rank])

    def _may_start(self, rank: int) -> bool:
        used_up = self.restarts[rank] >= self._membership.restarts
        return not (used_up or self._finished() or self._statuses[rank] == EXIT_SUPERSEDED)

    def _how_it_died(self, rank: int) -> str:
        status, told = self._statuses[rank] or 0, self._alone.pop(rank, None)
        return f"failed ({told})" if told is not None and status in (EXIT_ALONE, EXIT_SUPERSEDED) else ending(status)

    def _finished(self) -> bool:
        """Whether a peer has ended well: then the run has, and a late one would come in vain."""
        return 0 in self._statuses.values()

    def _running(self) -> list[int]:
        return [rank for rank in self._children if self._statuses[rank] is None]

    def _terminate(self, ranks: Collection[int]) -> None:
        for rank in self._running():
            if rank in ranks:
                self._children[rank].terminate()

    def _sentence(self, rank: int) -> str:
        if rank in self._alone:
            return f"peer {rank}: {self._alone[rank]}"
        said = self._children[rank].log_tail()
        told = f"peer {rank} {ending(self._statuses[rank] or 0)}"
        return told + (f"; its log ends with: {said}" if said else "; its log is empty")
