"""The synchronous round as a sans-I/O state machine: events in, commands out. No clock, no socket, no tensor.

    JOINING --all members seen--> COLLECTING(0)
    COLLECTING(t) --commit t found--> APPLYING(t) --applied--> BARRIER(t) --result t agrees--> COLLECTING(t + 1)
    APPLYING(t) --commit without contributions, final--> ENDED          BARRIER(t) --final, or converged--> ENDED

Round numbers count from 0. `base` is the hash of the weights that a round starts from, W_t in docs/protocol.md. The
peer that commits and records the result of a round, its leader, changes every round, and so does the one that
validates; anyone takes over what S3 still lacks after a look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from contract.errors import CorruptObject, PeerlessError, RunFailed, Superseded, WeightsMismatch
from contract.records import Commit, MemberRef, Result, Stop
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.admission import not_a_member
from peer_agent.membership import Roster, ranks_named
from peer_agent.rules import RoundRules, reason_to_end


class Phase(Enum):
    """Where this peer stands."""

    JOINING = "joining"
    COLLECTING = "collecting"
    APPLYING = "applying"
    BARRIER = "barrier"
    ENDED = "ended"


class RoundMachine:
    """One peer's view of the run. `handle` is total: any event in any phase is answered, if only by nothing."""

    def __init__(self, rules: RoundRules) -> None:
        self.rules = rules
        self.phase = Phase.JOINING
        self.round = -1  # so that frames of round 0 count as early ones until all members are known
        self.base = rules.initial_weights
        self.roster = Roster(rules.me, rules.peers)
        self.members: tuple[MemberRef, ...] = ()
        self.stop: Stop | None = None
        self._early: dict[int, FrameHeader] = {}  # by rank, of round + 1
        self._early_commit: Commit | None = None
        self._past: frozenset[str] = frozenset()  # digests of what the last commit listed
        self._clear()
        self._handlers: dict[type, Callable[..., Iterator[s.Command]]] = {
            s.Started: self._started,
            s.MemberSeen: self._member_seen,
            s.FrameArrived: self._frame_arrived,
            s.ContributionHeld: self._contribution_held,
            s.Validated: self._validated,
            s.CommitFound: self._commit_found,
            s.CommitMissing: self._commit_missing,
            s.Applied: self._applied,
            s.ResultFound: self._result_found,
            s.ResultMissing: self._result_missing,
            s.Adopted: self._adopted,
            s.StopFound: self._stop_found,
            s.EndRequested: self._end_requested,
            s.PollDue: self._poll_due,
            s.DeadlineReached: self._deadline_reached,
        }

    def handle(self, event: s.Event) -> list[s.Command]:
        """The commands that `event` calls for, in the order in which they must be executed."""
        if self.phase is Phase.ENDED:
            return []
        return list(self._handlers[type(event)](event))

    @property
    def leader(self) -> MemberRef:
        """Who commits this round and records its result, in turn."""
        return self.rules.leader(self.members, self.round)

    @property
    def validator(self) -> MemberRef | None:
        """Who evaluates the weights that this round starts from, in turn; None where nobody does."""
        return self.rules.validator(self.members, self.round)

    @property
    def contributed(self) -> bool:
        """Whether nothing of this peer's own is outstanding, so that a wait is a wait for others."""
        return self._closing or self.rules.me.rank in self._held or self.phase is not Phase.COLLECTING

    @property
    def waiting(self) -> object:
        """What this peer waits for; looks into S3 are due from its last change on."""
        return self.round, self.phase, self.contributed

    @property
    def absent(self) -> tuple[MemberRef, ...]:
        """Members whose contribution to this round has not been seen."""
        return tuple(member for member in self.members if member.rank not in self._held)

    # --------------------------------------------------------------------------------------------------- joining

    def _started(self, _: s.Started) -> Iterator[s.Command]:
        if self.roster.missing:
            yield s.FindMembers(self.roster.missing)
        else:
            yield from self._open(0, self.roster.members)

    def _member_seen(self, event: s.MemberSeen) -> Iterator[s.Command]:
        if self.roster.supersedes(event.member):
            yield self._fail(Superseded(f"rank {self.rules.me.rank} was taken over by {event.member.peer_id}"))
        elif self.phase is Phase.JOINING and self.roster.see(event.member) and not self.roster.missing:
            yield from self._open(0, self.roster.members)

    def _open(self, round: int, members: tuple[MemberRef, ...]) -> Iterator[s.Command]:
        """Start `round` with what has arrived early for it."""
        self.phase, self.round, self.members = Phase.COLLECTING, round, members
        self._clear()
        early, self._early = self._early, {}
        commit, self._early_commit = self._early_commit, None
        for header in early.values():
            if reason := self._misfit(header):
                yield s.Reject(reason, header.rank, header.round)
            else:
                self._held[header.rank] = header
        if commit is not None:
            yield from self._commit_found(s.CommitFound(commit))
        elif self.stop is not None:
            yield s.CreateCommit(self._draft())
        elif not self._closing:
            yield s.Compute(round, self.base, self.validator == self.rules.me)
        elif self.validator == self.rules.me:
            yield from self._validate()

    def _clear(self) -> None:
        self._held: dict[int, FrameHeader] = {}  # by rank, of this round
        self._commit: Commit | None = None
        self._result: Result | None = None
        self._own: s.Applied | None = None
        self._validation: tuple[float, float | None] | None = None  # loss and accuracy, in the closing round
        self._validating = False
        self._applying = False
        self._looks = 0

    @property
    def _closing(self) -> bool:
        return self.round >= self.rules.rounds

    # ------------------------------------------------------------------------------------------------ collecting

    def _frame_arrived(self, event: s.FrameArrived) -> Iterator[s.Command]:
        header = event.header
        if header.digest in self._past:
            return  # applied by its commit, which was faster than this message
        known = self._known(header)
        if known is not None:
            if known.digest != header.digest:
                yield s.Reject("conflict", event.sender, header.round)
        elif reason := self._misfit(header):
            yield s.Reject(reason, event.sender, header.round)
        elif header.round == self.round and self.phase is not Phase.COLLECTING:
            yield s.Reject("late", event.sender, header.round)
        else:
            yield s.Hold(header, event.body, event.sender)

    def _contribution_held(self, event: s.ContributionHeld) -> Iterator[s.Command]:
        header = event.header
        if header.round == self.round + 1:
            self._early[header.rank] = header
        elif header.round == self.round:
            if self.phase is Phase.APPLYING and (reason := self._unfit(header)):
                text = f"commit {self.round} lists a contribution of peer {header.rank} that does not fit: {reason}"
                yield self._fail(CorruptObject(text))
                return
            self._held[header.rank] = header
            if self.phase is Phase.APPLYING:
                yield from self._apply_when_all_held()
            elif self.phase is Phase.COLLECTING and self._complete and self.leader == self.rules.me:
                yield s.CreateCommit(self._draft())

    def _validated(self, event: s.Validated) -> Iterator[s.Command]:
        if event.round == self.round and self.phase is Phase.COLLECTING:
            self._validation = (event.loss, event.accuracy)
            yield s.CreateCommit(self._draft())

    def _validate(self) -> Iterator[s.Command]:
        if not self._validating:
            self._validating = True
            yield s.Validate(self.round)

    @property
    def _complete(self) -> bool:
        """Quorum: all members, so that results do not depend on timing."""
        return bool(self.members) and not self._closing and not self.absent

    def _misfit(self, header: FrameHeader) -> str | None:
        """Why a frame is of no use to this round or the next, or None."""
        if reason := self.rules.frames.misfit(header):
            return reason
        if header.round < self.round:
            return "stale"
        if header.round > self.round + 1:
            return "ahead"
        if header.round == self.round + 1:
            return None  # the rest is checked when that round opens and its weights and members are known
        return self._unfit(header) or not_a_member(header, self.members)

    def _unfit(self, header: FrameHeader) -> str | None:
        """Why a frame must not be applied in this round, whoever lists it, or None."""
        if reason := self.rules.frames.misfit(header):
            return reason
        return "base_weights" if header.base_weights != self.base else None

    def _known(self, header: FrameHeader) -> FrameHeader | None:
        if header.round not in (self.round, self.round + 1):
            return None
        known = (self._held if header.round == self.round else self._early).get(header.rank)
        return known if known is not None and known.incarnation == header.incarnation else None

    def _draft(self) -> Commit:
        """The commit record as this peer would write it now.

        With a stop requested and contributions missing, the round ends without any: nobody waits for a computation.
        """
        return self.rules.draft(
            round=self.round,
            base=self.base,
            members=self.members,
            headers=self._held.values() if self._complete else (),
            validation=self._validation or self._validation_of_frames(),
            stop=self.stop,
        )

    def _validation_of_frames(self) -> tuple[float, float | None] | None:
        header = self._held.get(self.validator.rank) if self.validator is not None else None
        if header is None or header.validation_loss is None:
            return None
        return header.validation_loss, header.validation_accuracy

    # -------------------------------------------------------------------------------------------------- applying

    def _commit_found(self, event: s.CommitFound) -> Iterator[s.Command]:
        commit = event.commit
        if commit.round == self.round + 1:
            self._early_commit = commit
        if commit.round != self.round or self.phase is not Phase.COLLECTING:
            return
        if commit.base_weights.get("0") != self.base:
            text = f"commit {commit.round} starts from weights {commit.base_weights}, this peer from {self.base}"
            yield self._fail(WeightsMismatch(text))
            return
        if self.rules.me not in commit.members:
            text = f"commit {commit.round} does not count this process as a member: the run went on without it"
            yield self._fail(Superseded(text))
            return
        self.phase, self._commit = Phase.APPLYING, commit
        for contributor in commit.contributors:
            held = self._held.get(contributor.rank)
            if held is None or held.digest != contributor.digest:
                self._held.pop(contributor.rank, None)
                yield s.Fetch(commit.round, contributor)
        yield from self._apply_when_all_held()

    def _apply_when_all_held(self) -> Iterator[s.Command]:
        assert self._commit is not None
        listed = sorted(self._commit.contributors, key=lambda contributor: contributor.rank)
        headers = tuple(self._held[c.rank] for c in listed if c.rank in self._held)
        if len(headers) == len(listed) and not self._applying:
            self._applying = True
            yield s.Apply(self._commit, headers)

    def _applied(self, event: s.Applied) -> Iterator[s.Command]:
        if event.round != self.round or self.phase is not Phase.APPLYING or self._commit is None:
            return
        self.phase, self._own, self._looks = Phase.BARRIER, event, 0
        if not self._commit.contributors:
            yield self._finish(reason_to_end(self._commit, event.stop))
        elif self._result is not None:
            yield from self._compare(self._result)
        elif self.leader == self.rules.me:
            yield s.WriteResult(self.round, event.weights_sha256)

    # --------------------------------------------------------------------------------------------------- barrier

    def _result_found(self, event: s.ResultFound) -> Iterator[s.Command]:
        result = event.result
        if result.round != self.round or self._result is not None:
            return
        self._result = result
        if self.phase is Phase.COLLECTING:
            yield s.FindCommit(self.round)  # its message is late or lost, but the record exists
        elif self.phase is Phase.BARRIER:
            yield from self._compare(result)

    def _compare(self, result: Result) -> Iterator[s.Command]:
        assert self._own is not None
        if result.weights_sha256 == self._own.weights_sha256:
            yield from self._pass(result.weights_sha256)
        else:
            yield s.Adopt(self.round, result.weights_sha256)

    def _adopted(self, event: s.Adopted) -> Iterator[s.Command]:
        if event.round == self.round and self.phase is Phase.BARRIER:
            yield from self._pass(event.weights_sha256)

    def _pass(self, weights: str) -> Iterator[s.Command]:
        """Everyone holds the recorded weights: on to the next round, or the end."""
        assert self._commit is not None
        assert self._own is not None
        assert self._result is not None
        self.base = weights
        self._past = frozenset(contributor.digest for contributor in self._commit.contributors)
        passed = s.Passed(self.round, self._result)
        if self._commit.final or self._own.stop:
            yield passed
            yield self._finish(reason_to_end(self._commit, self._own.stop))
        else:
            yield from self._open(self.round + 1, self._commit.members)
            yield passed  # cleaning up needs no hurry: the next computation is under way

    # ------------------------------------------------------------------------------------- stops, looks, deadlines

    def _end_requested(self, event: s.EndRequested) -> Iterator[s.Command]:
        if self.stop is None:
            yield s.CreateStop(event.reason, max(self.round, 0))

    def _stop_found(self, event: s.StopFound) -> Iterator[s.Command]:
        if self.stop is not None:
            return
        self.stop = event.stop
        if self.phase is Phase.JOINING:
            yield self._finish(event.stop.reason)
        elif self.phase is Phase.COLLECTING:
            yield s.CreateCommit(self._draft())

    def _poll_due(self, _: s.PollDue) -> Iterator[s.Command]:
        self._looks += 1
        if self.phase is Phase.JOINING:
            yield s.FindMembers(self.roster.missing)
            yield s.FindStop()
        elif self.phase is Phase.COLLECTING:
            yield s.FindStop()
            if self.contributed:  # before that, no commit can exist but one that closes the run
                yield s.FindCommit(self.round)
        elif self.phase is Phase.BARRIER:
            yield s.FindResult(self.round)

    def _commit_missing(self, event: s.CommitMissing) -> Iterator[s.Command]:
        if event.round != self.round or self.phase is not Phase.COLLECTING:
            return
        if self._complete or self._validation is not None:
            yield s.CreateCommit(self._draft())
        elif not self._closing:
            yield s.FindContributions(self.round, self.absent)
        elif self.validator is not None and self._looks >= self._patience(self.validator):
            yield from self._validate()

    def _result_missing(self, event: s.ResultMissing) -> Iterator[s.Command]:
        waiting = event.round == self.round and self.phase is Phase.BARRIER and self._result is None
        if waiting and self._own is not None and self._looks >= self._patience(self.leader):
            yield s.WriteResult(self.round, self._own.weights_sha256)

    def _patience(self, turn: MemberRef) -> int:
        """Looks before costly work of `turn`'s is done here; none where it may be the one that failed."""
        return self.rules.patience(self.members, turn) if self.stop is None else 0

    def _deadline_reached(self, event: s.DeadlineReached) -> Iterator[s.Command]:
        seconds = f"{event.seconds:g} s"
        if self.phase is Phase.JOINING:
            text = f"{ranks_named(self.roster.missing)} did not arrive within {seconds}"
        elif self.phase is Phase.COLLECTING and self.absent and not self._closing:
            missing = ranks_named(tuple(member.rank for member in self.absent))
            text = f"round {self.round}: nothing from {missing} for {seconds}"
        elif self.phase is Phase.COLLECTING:
            turn = self.validator if self._closing and self.validator is not None else self.leader
            text = f"round {self.round}: no commit record for {seconds}; its turn was rank {turn.rank}'s"
        else:
            text = f"round {self.round}: no result record for {seconds}; its turn was rank {self.leader.rank}'s"
        yield self._fail(RunFailed(text))

    def _finish(self, reason: str) -> s.Command:
        self.phase = Phase.ENDED
        return s.Finish(reason)

    def _fail(self, error: PeerlessError) -> s.Command:
        self.phase = Phase.ENDED
        return s.Fail(error)
