"""Asynchronous mode as a sans-I/O state machine: every peer at its own pace, and one common end.

    JOINING --all members seen--> COMPUTING(r) --own contribution stored--> AVERAGING(r) --applied--> COMPUTING(r + 1)
                                                   AVERAGING(r) --r + 1 is due--> VALIDATING(r + 1) --> COMPUTING(r + 1)
    any --stop record found--> ADOPTING --final weights loaded--> ENDED

Each peer counts its own rounds and keeps weights of its own. It averages its new gradient with the latest frame of
every sender, as the paper's single-message queues do: a frame may be used again until a newer one comes, or until it is
more than `max_staleness` rounds behind, and is then rejected and counted. Staleness is this peer's round minus the
frame's; a frame from ahead has none. Whoever first reaches an end writes the stop record with its best weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from contract.errors import PeerlessError, RunFailed, Superseded
from contract.records import MemberRef, Stop
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.admission import FrameRules, not_a_member
from peer_agent.membership import Roster, ranks_named


class Phase(Enum):
    """Where this peer stands."""

    JOINING = "joining"
    COMPUTING = "computing"
    AVERAGING = "averaging"
    VALIDATING = "validating"
    ADOPTING = "adopting"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class AsyncRules:
    """What the machine knows of the run; the same for all peers but for `me`."""

    me: MemberRef
    peers: int
    rounds: int
    """Epoch limit in rounds."""
    max_staleness: int
    """In rounds."""
    initial_weights: str
    validates: Callable[[int], bool]
    """Whether the weights that a round starts from are validated; those after the last round always are."""
    frames: FrameRules


class AsyncMachine:
    """One peer's view of the run. `handle` is total: any event in any phase is answered, if only by nothing."""

    def __init__(self, rules: AsyncRules) -> None:
        self.rules = rules
        self.phase = Phase.JOINING
        self.round = 0
        self.base = rules.initial_weights
        self.roster = Roster(rules.me, rules.peers)
        self.stop: Stop | None = None
        self._latest: dict[int, FrameHeader] = {}  # by rank; the own one included
        self._heard: set[int] = set()  # ranks whose frames have come since the last look into S3
        self._handlers: dict[type, Callable[..., Iterator[s.Command]]] = {
            s.Started: self._started,
            s.MemberSeen: self._member_seen,
            s.FrameArrived: self._frame_arrived,
            s.ContributionHeld: self._contribution_held,
            s.Applied: self._applied,
            s.Validated: self._validated,
            s.StopFound: self._stop_found,
            s.Adopted: self._adopted,
            s.EndRequested: self._end_requested,
            s.PollDue: self._poll_due,
            s.DeadlineReached: self._deadline_reached,
        }

    def handle(self, event: s.Event) -> list[s.Command]:
        """The commands that `event` calls for, in the order in which they must be executed."""
        handler = self._handlers.get(type(event))
        if self.phase is Phase.ENDED or handler is None:  # commits and results have no meaning here
            return []
        return list(handler(event))

    @property
    def members(self) -> tuple[MemberRef, ...]:
        """Everyone whose claim is known."""
        return self.roster.members

    @property
    def contributed(self) -> bool:
        """Whether this peer waits for others: only at the start."""
        return self.phase is Phase.JOINING

    @property
    def waiting(self) -> object:
        """What this peer waits for; looks into S3 are counted from its last change. Here they are just periodic."""
        return self.phase is Phase.JOINING

    @property
    def latest(self) -> Iterable[FrameHeader]:
        """The frames that the next average may use."""
        return self._latest.values()

    def _started(self, _: s.Started) -> Iterator[s.Command]:
        if self.roster.missing:
            yield s.FindMembers(self.roster.missing)
        else:
            yield from self._compute()

    def _member_seen(self, event: s.MemberSeen) -> Iterator[s.Command]:
        if self.roster.supersedes(event.member):
            yield self._fail(Superseded(f"rank {self.rules.me.rank} was taken over by {event.member.peer_id}"))
        elif self.phase is Phase.JOINING and self.roster.see(event.member) and not self.roster.missing:
            yield from self._compute()

    def _compute(self) -> Iterator[s.Command]:
        self.phase = Phase.COMPUTING
        yield s.Compute(self.round, self.base, validate=False)

    def _frame_arrived(self, event: s.FrameArrived) -> Iterator[s.Command]:
        header = event.header
        known = self._latest.get(header.rank)
        if known is not None and known.incarnation == header.incarnation and known.round == header.round:
            return  # a message that came twice
        if reason := self._misfit(header, known):
            yield s.Reject(reason, event.sender, header.round)
        else:
            yield s.Hold(header, event.body, event.sender)

    def _misfit(self, header: FrameHeader, known: FrameHeader | None) -> str | None:
        if reason := self.rules.frames.misfit(header):
            return reason
        if self.phase is not Phase.JOINING and (reason := not_a_member(header, self.roster.members)):
            return reason
        if header.rank == self.rules.me.rank:
            return "member"
        if self._staleness(header) > self.rules.max_staleness:
            return "stale"
        if known is not None and known.round > header.round:
            return "outdated"
        return None

    def _staleness(self, header: FrameHeader) -> int:
        return max(0, self.round - header.base_round)

    def _contribution_held(self, event: s.ContributionHeld) -> Iterator[s.Command]:
        header = event.header
        self._latest[header.rank] = header
        self._heard.add(header.rank)
        if header.rank == self.rules.me.rank and header.round == self.round and self.phase is Phase.COMPUTING:
            self.phase = Phase.AVERAGING
            yield from self._drop_unusable()
            yield s.Average(self.round, tuple(self._latest[rank] for rank in sorted(self._latest)))

    def _drop_unusable(self) -> Iterator[s.Command]:
        """Frames that have aged beyond the bound, or came before their sender's claim was known and do not match it."""
        for rank, header in sorted(self._latest.items()):
            stale = "stale" if self._staleness(header) > self.rules.max_staleness else None
            if reason := stale or not_a_member(header, self.roster.members):
                del self._latest[rank]
                yield s.Reject(reason, rank, header.round)

    def _applied(self, event: s.Applied) -> Iterator[s.Command]:
        if self.phase is not Phase.AVERAGING or event.round != self.round:
            return
        self.round += 1
        self.base = event.weights_sha256
        if self.round >= self.rules.rounds or self.rules.validates(self.round):
            self.phase = Phase.VALIDATING
            yield s.Validate(self.round)
        else:
            yield from self._compute()

    def _validated(self, event: s.Validated) -> Iterator[s.Command]:
        if self.phase is not Phase.VALIDATING or event.round != self.round:
            return
        if event.stop:
            yield s.CreateStop(event.stop, self.round)
        elif self.round >= self.rules.rounds:
            yield s.CreateStop(s.EPOCH_LIMIT, self.round)
        else:
            yield from self._compute()

    def _stop_found(self, event: s.StopFound) -> Iterator[s.Command]:
        if self.stop is not None:
            return
        self.stop = event.stop
        if event.stop.weights_sha256 and event.stop.weights_sha256 != self.base:
            self.phase = Phase.ADOPTING
            yield s.Adopt(self.round, event.stop.weights_sha256)
        else:
            yield self._finish()

    def _adopted(self, event: s.Adopted) -> Iterator[s.Command]:
        if self.phase is Phase.ADOPTING:
            self.base = event.weights_sha256
            yield self._finish()

    def _end_requested(self, event: s.EndRequested) -> Iterator[s.Command]:
        if self.stop is None:
            yield s.CreateStop(event.reason, self.round)

    def _poll_due(self, _: s.PollDue) -> Iterator[s.Command]:
        if self.phase is Phase.JOINING:
            yield s.FindMembers(self.roster.missing)
        else:
            quiet = [m for m in self.roster.members if m != self.rules.me and m.rank not in self._heard]
            self._heard.clear()
            if quiet:
                yield s.FindLatest(tuple((m, self._round_of(m)) for m in quiet))
        yield s.FindStop()

    def _round_of(self, member: MemberRef) -> int:
        return self._latest[member.rank].round if member.rank in self._latest else -1

    def _deadline_reached(self, event: s.DeadlineReached) -> Iterator[s.Command]:
        if self.phase is Phase.JOINING:
            missing = ranks_named(self.roster.missing)
            yield self._fail(RunFailed(f"{missing} did not arrive within {event.seconds:g} s"))

    def _finish(self) -> s.Command:
        assert self.stop is not None
        self.phase = Phase.ENDED
        return s.Finish(self.stop.reason)

    def _fail(self, error: PeerlessError) -> s.Command:
        self.phase = Phase.ENDED
        return s.Fail(error)
