"""Asynchronous mode as a sans-I/O state machine: every peer at its own pace, and one common end.

    JOINING --all members seen--> COMPUTING(r) --own contribution stored--> AVERAGING(r) --applied--> COMPUTING(r + 1)
            --and a predecessor held the rank--> CATCHING_UP --weights of another adopted--> COMPUTING(its round)
    AVERAGING(r) --r + 1 is due--> VALIDATING(r + 1) --> COMPUTING(r + 1)
    any --stop record found--> ADOPTING --final weights loaded--> ENDED

Each peer counts its own rounds and keeps weights of its own. It averages its new gradient with the latest frame of
every sender, as the paper's single-message queues do: a frame may be used again until a newer one comes, or until it is
more than `max_staleness` rounds behind, and is then rejected and counted. Staleness is this peer's round minus the
frame's; a frame from ahead has none. Whoever first reaches an end writes the stop record with its best weights.

Whoever is silent is left out until it is heard again, and nothing of a process is used once its successor is known. A
restarted process goes on from the newest weights that it finds. Every `average_every` rounds a peer puts the weights
that the round starts from, and once its gradient is there it steps from their average with the others' latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from contract.errors import PeerlessError, RunFailed, Superseded
from contract.records import MemberRef, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules, not_a_member, weights_misfit
from peer_agent.latest import Latest
from peer_agent.membership import FIRST_INCARNATION, Roster, ranks_named
from peer_agent.presence import Presence

#: So many living peers put their weights for one that comes back: one of them might be about to die.
HELPERS = 2
#: Looks into S3 after which a restarted peer goes on with the newest weights that it has found, be they old.
PATIENCE_LOOKS = 15
#: Looks after which it no longer waits to hear of everybody where they stand.
HEARING_LOOKS = 2


class Phase(Enum):
    """Where this peer stands."""

    JOINING = "joining"
    CATCHING_UP = "catching_up"
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
    average_every: int = 0
    """Own rounds between averages of weights; 0 for none."""
    keep_every: int = 0
    """Own rounds after which a peer puts its weights, for whoever comes back; 0 for never."""

    def averages(self, round: int) -> bool:
        """Whether the weights that `round` starts from are averaged with the others'."""
        return self.average_every > 0 and round > 0 and round % self.average_every == 0

    def keeps(self, round: int) -> bool:
        """Whether they are put all the same."""
        return self.keep_every > 0 and round > 0 and round % self.keep_every == 0


class AsyncMachine:
    """One peer's view of the run. `handle` is total: any event in any phase is answered, if only by nothing."""

    def __init__(self, rules: AsyncRules) -> None:
        self.rules = rules
        self.phase = Phase.JOINING
        self.round = 0
        self.base = rules.initial_weights
        self.roster = Roster(rules.me, rules.peers)
        self.stop: Stop | None = None
        self.leaving = False  # nobody joins or leaves under way in this mode
        self._latest = Latest(rules.max_staleness)  # gradients; the own one included
        self._weights = Latest(rules.max_staleness)  # of others; while catching up all that were found
        self._presence = Presence()
        self._unclaimed: dict[int, s.FrameArrived] = {}  # of processes whose claims are being looked up
        self._owed: set[int] = set()  # ranks that came back and need weights
        self._put = 0  # the latest round whose weights this process has put
        self._looks = 0
        self._taking_up = False
        self._handlers: dict[type, Callable[..., Iterator[s.Command]]] = {
            s.Started: self._started,
            s.Heard: self._heard,
            s.Silent: self._silence,
            s.MemberSeen: self._member_seen,
            s.FrameArrived: self._frame_arrived,
            s.ContributionHeld: self._contribution_held,
            s.WeightsSought: self._weights_sought,
            s.HoldFailed: self._hold_failed,
            s.CaughtUp: self._caught_up,
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
    def succession(self) -> None:
        """Nobody leads in this mode."""
        return None

    @property
    def contributed(self) -> bool:
        """Whether this peer waits for others: only at the start."""
        return self.phase is Phase.JOINING

    @property
    def waiting(self) -> object:
        """What this peer waits for; looks into S3 are counted from its last change. Here they are just periodic."""
        return self.phase in (Phase.JOINING, Phase.CATCHING_UP)

    @property
    def latest(self) -> Iterable[FrameHeader]:
        """The gradients that the next average may use."""
        return self._latest

    @property
    def weights(self) -> Iterable[FrameHeader]:
        """The others' weights that the next average of weights may use."""
        return self._weights

    # ------------------------------------------------------------------------------------------- who is there

    def _started(self, _: s.Started) -> Iterator[s.Command]:
        if self.roster.missing:
            yield s.FindMembers(self.roster.missing)
        else:
            yield from self._begin()

    def _member_seen(self, event: s.MemberSeen) -> Iterator[s.Command]:
        member = event.member
        if self.roster.supersedes(member):
            yield self._fail(Superseded(f"rank {self.rules.me.rank} was taken over by {member.peer_id}"))
        elif self.roster.see(member):
            self._latest.supersede(member.rank, member.incarnation)
            self._weights.supersede(member.rank, member.incarnation)
            if self.phase is Phase.JOINING:
                if not self.roster.missing:
                    yield from self._begin()
            elif member.rank < self.rules.peers:
                yield from self._welcome(MemberRef(rank=member.rank, incarnation=member.incarnation))
            if frame := self._unclaimed.pop(member.rank, None):
                yield from self._frame_arrived(frame)

    def _heard(self, event: s.Heard) -> Iterator[s.Command]:
        if event.rank == self.rules.me.rank or event.incarnation < self.roster.incarnation(event.rank):
            return
        self._presence.hear(event)
        if event.incarnation > self.roster.incarnation(event.rank):
            yield s.FindMembers((event.rank,))
        yield from self._reconsider()

    def _silence(self, event: s.Silent) -> Iterator[s.Command]:
        self._presence.miss(event.ranks - {self.rules.me.rank})
        yield from self._reconsider()

    def _reconsider(self) -> Iterator[s.Command]:
        """Say who is left out, and who is back."""
        lost, back = self._presence.reconsider()
        self._latest.leave_out(self._presence.silent)
        self._weights.leave_out(self._presence.silent)
        if lost or back:
            returned = tuple(m for m in self.roster.members if m.rank in back and self._presence.is_heard(m))
            yield s.TellPresence(self.round, tuple(sorted(lost)), returned)
        yield from self._choose()

    @property
    def _living(self) -> tuple[MemberRef, ...]:
        """The others who are not silent."""
        return tuple(m for m in self.roster.members if m != self.rules.me and m.rank not in self._presence.silent)

    # ------------------------------------------------------------------------------------------- coming back

    def _begin(self) -> Iterator[s.Command]:
        if self.rules.me.incarnation == FIRST_INCARNATION:
            yield from self._compute()
        else:
            self.phase = Phase.CATCHING_UP
            yield s.FindWeights(None)

    def _weights_sought(self, _: s.WeightsSought) -> Iterator[s.Command]:
        if self.phase is Phase.CATCHING_UP:
            self._looks += 1
            yield from self._choose()

    def _choose(self) -> Iterator[s.Command]:
        """Go on from the newest weights, once they are new enough: half as old at most as a frame may be for whoever
        is furthest on, who does not stand still while this peer's first gradient is computed."""
        if self.phase is not Phase.CATCHING_UP or self._looks == 0 or self._taking_up:
            return
        newest = max(self._weights, key=lambda header: (header.round, -header.rank), default=None)
        living = {member.rank for member in self._living}
        heard = self._presence.rounds(living)
        known = len(heard) == len(living) or (heard and self._looks >= HEARING_LOOKS)
        needed = max(heard, default=0) - max(1, self.rules.max_staleness // 2)
        if self._looks >= PATIENCE_LOOKS or (known and needed <= (newest.round if newest else 0)):
            if newest is None:
                yield from self._compute()  # nobody has come far enough to put any
            else:
                self._taking_up = True
                yield s.TakeUp(newest)

    def _hold_failed(self, event: s.HoldFailed) -> Iterator[s.Command]:
        if self.phase is Phase.CATCHING_UP and event.header.kind is Kind.WEIGHTS:
            self._taking_up = False  # newer ones have replaced them, or they are of no use
            self._weights.leave_out([event.header.rank])
            yield from self._choose()

    def _caught_up(self, event: s.CaughtUp) -> Iterator[s.Command]:
        if self.phase is Phase.CATCHING_UP:
            self.round, self.base, self._put = event.round, event.base_weights, event.round
            self._weights = Latest(self.rules.max_staleness)  # none of them is in the spool
            yield from self._go_on()

    def _welcome(self, member: MemberRef) -> Iterator[s.Command]:
        """A process has come back: the next ones on the ring of ranks who live put their weights for it."""
        if member.rank not in self._presence.silent:  # otherwise it is told when it is heard
            yield s.TellPresence(self.round, (), (member,))
        ring = sorted((*self._living, self.rules.me), key=lambda m: (m.rank - member.rank) % self.rules.peers)
        if self.rules.me in [m for m in ring if m.rank != member.rank][:HELPERS]:
            self._owed.add(member.rank)
            if self.phase in (Phase.COMPUTING, Phase.VALIDATING):
                yield from self._put_weights()

    # ------------------------------------------------------------------------------------------------ a round

    def _go_on(self) -> Iterator[s.Command]:
        if self.round >= self.rules.rounds or self.rules.validates(self.round):
            self.phase = Phase.VALIDATING
            yield s.Validate(self.round)
        else:
            yield from self._compute()

    def _compute(self) -> Iterator[s.Command]:
        self.phase = Phase.COMPUTING
        yield from self._put_weights()
        yield s.Compute(self.round, self.base, validate=False)

    def _put_weights(self) -> Iterator[s.Command]:
        """The weights that this round starts from, where somebody needs them: for all, or for those who came back."""
        owed, self._owed = tuple(sorted(self._owed)), set()
        everyone = self.rules.averages(self.round)
        if self._put < self.round and (everyone or owed or self.rules.keeps(self.round)):
            self._put = self.round
            yield s.PutWeights(self.round, None if everyone else owed)

    def _frame_arrived(self, event: s.FrameArrived) -> Iterator[s.Command]:
        header = event.header
        known = self._weights if header.kind is Kind.WEIGHTS else self._latest
        if known is self._weights and not self.rules.average_every and self.phase is not Phase.CATCHING_UP:
            return
        if known.is_copy(header) or (header.rank in self._presence.silent and self.phase is not Phase.CATCHING_UP):
            return  # came twice; or its sender is left out, and what it has sent is found in S3 once it is heard again
        if self._is_newcomer(header):
            self._unclaimed[header.rank] = event
            yield s.FindMembers((header.rank,))
        elif reason := self._misfit(header, known):
            yield s.Reject(reason, event.sender, header.round)
        elif self.phase is Phase.CATCHING_UP and known is self._weights:
            if header.round >= known.round_of(header.rank):
                known.take(header)
            yield from self._choose()
        else:
            yield s.Hold(header, event.body, event.sender)

    def _is_newcomer(self, header: FrameHeader) -> bool:
        """Whether a frame is of a later process than the rank's known one: it has signed it, so its claim is in S3."""
        if self.phase is Phase.JOINING or header.rank == self.rules.me.rank or header.rank >= self.rules.peers:
            return False
        return header.incarnation > self.roster.incarnation(header.rank)

    def _misfit(self, header: FrameHeader, known: Latest) -> str | None:
        misfit = weights_misfit if header.kind is Kind.WEIGHTS else FrameRules.misfit
        if reason := misfit(self.rules.frames, header):
            return reason
        if self.phase is Phase.CATCHING_UP and header.kind is Kind.WEIGHTS:
            return None  # of anybody: it was signed, and a predecessor's will do
        if self.phase is not Phase.JOINING and (reason := not_a_member(header, self.roster.members)):
            return reason
        if header.rank == self.rules.me.rank:
            return "member"
        return known.misfit(header, self.round)

    def _contribution_held(self, event: s.ContributionHeld) -> Iterator[s.Command]:
        header = event.header
        if header.kind is Kind.WEIGHTS:
            self._weights.take(header)
            return
        self._latest.take(header)
        if header.rank == self.rules.me.rank and header.round == self.round and self.phase is Phase.COMPUTING:
            self.phase = Phase.AVERAGING
            yield from self._drop_unusable()
            weights = tuple(self._weights) if self.rules.averages(self.round) else ()
            yield s.Average(self.round, tuple(self._latest), weights)

    def _drop_unusable(self) -> Iterator[s.Command]:
        self._latest.leave_out(self._presence.silent)
        self._weights.leave_out(self._presence.silent)
        for frames in (self._latest, self._weights):
            for reason, header in frames.prune(self.round, self.roster.members):
                yield s.Reject(reason, header.rank, header.round)

    def _applied(self, event: s.Applied) -> Iterator[s.Command]:
        if self.phase is Phase.AVERAGING and event.round == self.round:
            self.round += 1
            self.base = event.weights_sha256
            yield from self._go_on()

    def _validated(self, event: s.Validated) -> Iterator[s.Command]:
        if self.phase is not Phase.VALIDATING or event.round != self.round:
            return
        if event.stop:
            yield s.CreateStop(event.stop, self.round)
        elif self.round >= self.rules.rounds:
            yield s.CreateStop(s.EPOCH_LIMIT, self.round)
        else:
            yield from self._compute()

    # ------------------------------------------------------------------------------------- the end, and the clock

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
        elif self.phase is Phase.CATCHING_UP:
            yield s.FindWeights(None)
        else:
            if quiet := self._latest.quiet(self._living):
                yield s.FindLatest(quiet)
            if self.rules.average_every and (quiet := self._weights.quiet(self._living)):
                yield s.FindWeights(quiet)
        yield s.FindStop()

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
