"""The synchronous round as a sans-I/O state machine: events in, commands out. No clock, no socket, no tensor.

    JOINING --all members seen, or a run under way caught up with--> COLLECTING(t)
    COLLECTING(t) --commit t found--> APPLYING(t) --applied--> BARRIER(t) --result t agrees--> COLLECTING(t + 1)
    COLLECTING(t) --commit t found, contributions in shards--> REDUCING(t) --every shard averaged--> APPLYING(t)
    APPLYING(t) --commit without contributions, final--> ENDED          BARRIER(t) --final, or converged--> ENDED

Round numbers count from 0. `base` is the hash of the weights that a round starts from, W_t in docs/protocol.md. The
peer that commits and records the result of a round, its leader, changes every round, and so does the one that
validates; anyone takes over what S3 still lacks after a look. Who is a member of a round says the commit before it. A
process that is none *observes*: it computes nothing, applies every commit, and is ready when one takes it in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from contract.errors import PeerlessError, RunFailed, Superseded, WeightsMismatch
from contract.records import Commit, MemberRef, Result, Stop
from peer_agent import signals as s
from peer_agent.attendance import Attendance
from peer_agent.gathering import Gathering
from peer_agent.membership import Roster, ranks_named
from peer_agent.outcome import Outcome, Phase
from peer_agent.rules import TAKEOVER_LOOKS, RoundRules, reason_to_end, shards_of


class RoundMachine:
    """One peer's view of the run. `handle` is total: any event in any phase is answered, if only by nothing."""

    def __init__(self, rules: RoundRules) -> None:
        self.rules = rules
        self._phase = Phase.JOINING  # or COLLECTING for all of a round, or ENDED
        self.round = -1  # the round before the first one, until all members are known: its frames count as early ones
        self.base = ""
        self.roster = Roster(rules.me, rules.peers, rules.arithmetic)
        self.attendance = Attendance(self.roster, rules.quorum)
        self.gathering = Gathering(rules.frames, self.roster, self.attendance)
        self.stop: Stop | None = None
        self.leaving = False
        """Whether this process takes no further part than it must until a commit drops it."""
        self._early_commit: Commit | None = None
        self._astray: s.CaughtUp | None = None  # caught up, and with other weights than the recorded ones
        self._differing = False  # somebody's arithmetic has led to other weights than this one's
        self._clear()
        self._handlers: dict[type, Callable[..., Iterator[s.Command]]] = {
            s.Started: self._started,
            s.CaughtUp: self._caught_up,
            s.MemberSeen: self._member_seen,
            s.Heard: self._heard,
            s.Silent: self._silent,
            s.Guilty: self._guilty,
            s.FrameArrived: self._frame_arrived,
            s.ContributionHeld: self._contribution_held,
            s.HoldFailed: self._hold_failed,
            s.ContributionsSought: self._contributions_sought,
            s.Validated: self._validated,
            s.CommitFound: self._commit_found,
            s.CommitMissing: self._commit_missing,
            s.ShardsSeen: self._shards_seen,
            s.AllReduced: self._all_reduced,
            s.Applied: self._applied,
            s.ResultFound: self._result_found,
            s.ResultMissing: self._result_missing,
            s.Adopted: self._adopted,
            s.Wanted: self._wanted,
            s.StopFound: self._stop_found,
            s.EndRequested: self._end_requested,
            s.LeaveRequested: self._leave_requested,
            s.PollDue: self._poll_due,
            s.RoundDeadline: self._round_deadline,
            s.DeadlineReached: self._deadline_reached,
        }

    def handle(self, event: s.Event) -> list[s.Command]:
        """The commands that `event` calls for, in the order in which they must be executed."""
        if self.phase is Phase.ENDED:
            return []
        return list(self._handlers[type(event)](event))

    @property
    def phase(self) -> Phase:
        """Where this peer stands."""
        return self._outcome.phase if self._phase is Phase.COLLECTING else self._phase

    @property
    def members(self) -> tuple[MemberRef, ...]:
        """Members of this round, in rank order."""
        return self.attendance.members

    @property
    def leader(self) -> MemberRef:
        """Who commits this round and records its result, in turn."""
        return self.rules.leader(self.attendance, self.round)

    @property
    def succession(self) -> tuple[int, ...]:
        """Ranks whose turn it is to lead this round, up to the first that is there; empty while nobody takes part."""
        return tuple(member.rank for member in self.rules.succession(self.attendance, self.round))

    @property
    def validator(self) -> MemberRef | None:
        """Who evaluates the weights that this round starts from, in turn; None where nobody does."""
        return self.rules.validator(self.attendance, self.round)

    @property
    def seated(self) -> bool:
        """Whether this process takes part in the round; otherwise it observes."""
        return self.attendance.seat(self.rules.me.rank) is not None

    @property
    def contributed(self) -> bool:
        """Whether nothing of this peer's own is outstanding, so that a wait is a wait for others."""
        own = self.rules.me.rank in self.gathering.held or not self.seated
        return self._closing or own or self.phase is not Phase.COLLECTING

    @property
    def waiting(self) -> object:
        """What this peer waits for; looks into S3 are due from its last change on."""
        return self.round, self.phase, self.contributed

    # --------------------------------------------------------------------------------------------------- joining

    def _started(self, _: s.Started) -> Iterator[s.Command]:
        yield s.CatchUp()

    def _caught_up(self, event: s.CaughtUp) -> Iterator[s.Command]:
        self._astray = event if event.recorded else None
        if event.recorded:
            self._phase, self.round, self.base, self._differing = Phase.JOINING, event.round - 1, "", True
            yield s.Adopt(self.round, event.recorded)
            return
        self.base = event.base_weights
        self.gathering.expect(event.round, event.past)
        self.attendance.excluded = event.excluded
        if event.ended:
            self.round = event.round - 1
            yield self._finish(event.ended)
            return
        if event.members is not None:
            others = {*range(self.rules.peers), *(m.rank for m in event.members)} - {self.rules.me.rank}
            yield s.FindMembers(tuple(sorted(others)))
            yield s.FindCommit(event.round)
            yield from self._open(event.round, event.members)
            return
        self.round = event.round - 1
        if self.roster.missing:
            yield s.FindMembers(self.roster.missing)
        else:
            yield from self._open(event.round, self.roster.members)

    def _member_seen(self, event: s.MemberSeen) -> Iterator[s.Command]:
        member = event.member
        if self.roster.supersedes(member):
            yield self._fail(Superseded(f"rank {self.rules.me.rank} was taken over by {member.peer_id}"))
        elif self.roster.see(member):
            if self.phase is Phase.JOINING and self.base and self.roster.complete:
                yield from self._open(self.round + 1, self.roster.members)
            if frame := self.gathering.claimed(member.rank):
                yield from self._frame_arrived(frame)

    def _heard(self, event: s.Heard) -> Iterator[s.Command]:
        self.attendance.heard(event.rank, event.incarnation, event.round, event.leaving)
        if event.rank != self.rules.me.rank and event.incarnation > self.roster.incarnation(event.rank):
            yield s.FindMembers((event.rank,))

    def _silent(self, event: s.Silent) -> Iterator[s.Command]:
        self.attendance.silent = event.ranks - {self.rules.me.rank}
        yield from self._reconsider()

    def _guilty(self, event: s.Guilty) -> Iterator[s.Command]:
        self.attendance.guilty = event.ranks
        if self.phase is Phase.COLLECTING:
            self.gathering.drop(event.ranks)
        yield from self._reconsider()

    def _open(self, round: int, members: tuple[MemberRef, ...]) -> Iterator[s.Command]:
        """Start `round` with what has arrived early for it."""
        self._phase, self.round = Phase.COLLECTING, round
        self.attendance.open(members)
        self._clear()
        if self.leaving and not self.seated:
            yield self._finish(s.LEFT)
            return
        if unseen := tuple(m.rank for m in members if m.incarnation > self.roster.incarnation(m.rank)):
            yield s.FindMembers(unseen)
        yield from self.gathering.open(round, self.base)
        commit, self._early_commit = self._early_commit, None
        if commit is not None:
            yield from self._commit_found(s.CommitFound(commit))
        elif self.stop is not None:
            yield from self._close()
        elif not self._closing:
            if self.seated:
                yield s.Compute(round, self.base, self.validator == self._seat)
                if self.rules.is_checkpoint(round):
                    yield s.WriteCheckpoint(round, common=self.leader == self._seat)
            yield from self._reconsider()
        elif self.validator == self._seat:
            yield from self._validate()

    def _clear(self) -> None:
        self._outcome = Outcome(self.rules, self.attendance, self.gathering)
        self._validation: tuple[float, float | None] | None = None  # loss and accuracy, in the closing round
        self._validating = False
        self._late = False  # the round's deadline has passed
        self._shared = False  # the weights that this round starts from have been put for somebody

    @property
    def _closing(self) -> bool:
        return self.round >= self.rules.rounds

    @property
    def _seat(self) -> MemberRef | None:
        return self.attendance.seat(self.rules.me.rank)

    # ------------------------------------------------------------------------------------------------ collecting

    def _frame_arrived(self, event: s.FrameArrived) -> Iterator[s.Command]:
        yield from self.gathering.arrived(event, self.phase is Phase.COLLECTING)

    def _contribution_held(self, event: s.ContributionHeld) -> Iterator[s.Command]:
        header = event.header
        if header.round != self.round or self.phase is Phase.COLLECTING:
            yield from self.gathering.keep(header)
            yield from self._commit_in_turn()
        elif self.phase is Phase.APPLYING:
            yield from self._outcome.held(header)

    def _hold_failed(self, event: s.HoldFailed) -> Iterator[s.Command]:
        self.gathering.give_up(event.header)
        yield from self._commit_in_turn()

    def _contributions_sought(self, event: s.ContributionsSought) -> Iterator[s.Command]:
        if event.round == self.round:
            self.attendance.sought(event.ranks)
            yield from self._commit_in_turn()

    def _reconsider(self) -> Iterator[s.Command]:
        """Who is there has changed: what fell to somebody who is gone may now be for this peer to do."""
        if self.phase is Phase.COLLECTING and not self._closing:
            unsought = self.attendance.unsought(self.gathering.held)
            if unsought:
                yield s.FindContributions(self.round, self.attendance.holders(unsought))
            else:
                yield from self._commit_in_turn()
        elif self.phase is Phase.COLLECTING and self.validator == self._seat:
            yield from self._validate()
        elif self.phase is Phase.REDUCING:
            yield from self._outcome.reduce()
        elif self.phase is Phase.BARRIER and self._outcome.result is None and self.leader == self._seat:
            yield from self._write_result()

    @property
    def _sufficient(self) -> bool:
        """Whether this peer knows enough to commit the round."""
        return (
            not self._closing
            and not self.gathering.pending
            and self.attendance.suffices(self.gathering.held, self._late)
        )

    @property
    def _gathers(self) -> bool:
        """Whether this peer looks for others' contributions. Those that are announced to the leader alone are for the
        next one only when it seems to do nothing: sought by everyone, they would be as many requests for each peer as
        there are peers."""
        leader = self.leader
        told = self.rules.topology.recipient("frame", leader=leader.rank, writer=leader.rank)
        return told is None or self._outcome.looks >= self._patience(leader)

    def _commit_in_turn(self) -> Iterator[s.Command]:
        # The turn first: it costs little, and most peers most of the time have none.
        if self.phase is Phase.COLLECTING and self.leader == self._seat and self._sufficient:
            yield s.CreateCommit(self._draft())

    def _close(self) -> Iterator[s.Command]:
        """End the run with this round. Nobody waits for a computation."""
        if self.seated:
            yield s.CreateCommit(self._draft())

    def _validated(self, event: s.Validated) -> Iterator[s.Command]:
        if event.round == self.round and self.phase is Phase.COLLECTING:
            self._validation = (event.loss, event.accuracy)
            yield s.CreateCommit(self._draft())

    def _validate(self) -> Iterator[s.Command]:
        if not self._validating:
            self._validating = True
            yield s.Validate(self.round)

    def _draft(self) -> Commit:
        """The commit record as this peer would write it now.

        With a stop requested and contributions missing, the round ends without any.
        """
        return self.rules.draft(
            round=self.round,
            base=self.base,
            members=self.attendance.next_members(self.round, self.gathering.held),
            headers=self.gathering.held.values() if self._sufficient else (),
            validation=self._validation or self._validation_of_frames(),
            stop=self.stop,
            excluded=self.attendance.excluded | self.attendance.guilty,
            leaving=self.attendance.leaving,
            shards=self.rules.topology.shards([member.rank for member in self.members]),
        )

    def _validation_of_frames(self) -> tuple[float, float | None] | None:
        """What the validator found, or whoever took its turn when it seemed to be gone."""
        validator, held = self.validator, self.gathering.held
        if validator is None:
            return None
        for rank in sorted(held, key=lambda rank: (rank != validator.rank, rank)):
            header = held[rank]
            if header.validation_loss is not None:
                return header.validation_loss, header.validation_accuracy
        return None

    # -------------------------------------------------------------------------------------------------- applying

    def _commit_found(self, event: s.CommitFound) -> Iterator[s.Command]:
        commit = event.commit
        if self.phase is Phase.JOINING:
            yield s.CatchUp()  # the run has begun: whoever is missing here has been seen by others
            return
        if commit.round == self.round + 1:
            self._early_commit = commit
        if commit.round != self.round or self.phase is not Phase.COLLECTING:
            return
        if error := self._refusal(commit):
            yield self._fail(error)
            return
        yield from self._outcome.begin(commit)

    def _shards_seen(self, event: s.ShardsSeen) -> Iterator[s.Command]:
        if event.round == self.round:
            yield from self._outcome.averages_seen(event.shards)

    def _all_reduced(self, event: s.AllReduced) -> Iterator[s.Command]:
        if event.round == self.round:
            yield from self._outcome.all_reduced()

    def _refusal(self, commit: Commit) -> PeerlessError | None:
        """Why this process cannot go on with a commit, or None."""
        me = self.rules.me
        if commit.base_weights.get("0") != self.base:
            return WeightsMismatch(
                f"commit {commit.round} starts from weights {commit.base_weights}, this peer from {self.base}"
            )
        if any(member.rank == me.rank and member.incarnation > me.incarnation for member in commit.members):
            return Superseded(f"commit {commit.round} counts another process as rank {me.rank}")
        return None

    def _applied(self, event: s.Applied) -> Iterator[s.Command]:
        commit = self._outcome.commit
        if event.round != self.round or self.phase is not Phase.APPLYING or commit is None:
            return
        self._outcome.applied(event)
        self.attendance.excluded |= event.excluded
        if self.rules.me.rank in event.excluded:
            text = f"commit {self.round} excludes rank {self.rules.me.rank}: what it signed could not be used"
            yield self._fail(Superseded(text))
        elif not commit.contributors:
            yield self._finish(reason_to_end(commit, event.stop))
        elif self._outcome.result is not None:
            yield from self._compare(self._outcome.result)
        elif self.leader == self._seat:
            yield from self._write_result()

    # --------------------------------------------------------------------------------------------------- barrier

    def _write_result(self) -> Iterator[s.Command]:
        assert self._outcome.own is not None
        read = self._outcome.ends or self.rules.are_read(self.round + 1)
        store = read or self._differing or self.roster.mixed
        yield s.WriteResult(self.round, self._outcome.own.weights_sha256, store)

    def _result_found(self, event: s.ResultFound) -> Iterator[s.Command]:
        result = event.result
        if result.round != self.round or self._outcome.result is not None:
            return
        self._outcome.result = result
        if self.phase is Phase.COLLECTING:
            yield s.FindCommit(self.round)  # its message is late or lost, but the record exists
        elif self.phase is Phase.REDUCING:
            yield from self._outcome.reduce()
        elif self.phase is Phase.BARRIER:
            yield from self._compare(result)

    def _compare(self, result: Result) -> Iterator[s.Command]:
        if self._outcome.agrees:
            yield from self._pass(result)
        else:
            self._differing = True
            yield s.Adopt(self.round, result.weights_sha256)

    def _adopted(self, event: s.Adopted) -> Iterator[s.Command]:
        result = self._outcome.result
        if event.round == self.round and self.phase is Phase.BARRIER and result is not None:
            yield from self._pass(result)
        elif self._astray is not None and self._astray.recorded == event.weights_sha256:
            yield from self._caught_up(replace(self._astray, base_weights=event.weights_sha256, recorded=""))

    @property
    def sought(self) -> str:
        """Hash of the recorded weights that this peer cannot go on without; empty where it holds them."""
        if self._astray is not None:
            return self._astray.recorded
        result = self._outcome.result if self.phase is Phase.BARRIER else None
        return result.weights_sha256 if result is not None else ""

    def _wanted(self, event: s.Wanted) -> Iterator[s.Command]:
        """Results of machines that round alike need no weights beside them; here are some that do not."""
        self._differing = True
        if event.weights_sha256 != self.base or self.phase is not Phase.COLLECTING or self._shared:
            return
        if self._outcome.looks >= self._patience(self.rules.leader(self.attendance, self.round - 1)):
            self._shared = True
            yield s.Share(self.round)

    def _pass(self, result: Result) -> Iterator[s.Command]:
        """Everyone holds the recorded weights: on to the next round, or the end."""
        commit, own = self._outcome.commit, self._outcome.own
        assert commit is not None
        assert own is not None
        self.base = result.weights_sha256
        passed = s.Passed(self.round, result)
        if self._outcome.ends:
            yield passed
            yield self._finish(reason_to_end(commit, own.stop))
        else:
            yield from self._open(self.round + 1, commit.members)
            yield passed  # cleaning up needs no hurry: the next computation is under way

    # ------------------------------------------------------------------------------------- stops, looks, deadlines

    def _end_requested(self, event: s.EndRequested) -> Iterator[s.Command]:
        if self.stop is None:
            yield s.CreateStop(event.reason, max(self.round, 0))

    def _leave_requested(self, _: s.LeaveRequested) -> Iterator[s.Command]:
        """Others may count on this process until a commit says that they do not."""
        self.leaving = True
        self.attendance.heard(self.rules.me.rank, self.rules.me.incarnation, self.round, leaving=True)
        if self.phase is Phase.JOINING or not self.seated:
            yield self._finish(s.LEFT)

    def _stop_found(self, event: s.StopFound) -> Iterator[s.Command]:
        if self.stop is not None:
            return
        self.stop = event.stop
        if self.phase is Phase.JOINING:
            yield s.FindCommit(self.round + 1)  # the others may have begun
        elif self.phase is Phase.COLLECTING:
            yield from self._close()

    def _poll_due(self, _: s.PollDue) -> Iterator[s.Command]:
        self._outcome.looks += 1
        if self._astray is not None:
            yield s.CatchUp()  # by now there may be later weights, put for whoever rounds otherwise
        elif self.phase is Phase.JOINING:
            yield s.FindMembers(self.roster.missing)
            yield s.FindStop()
        elif self.phase is Phase.COLLECTING:
            yield s.FindStop()
            yield s.FindCommit(self.round)
            if not (self._shared or self.rules.are_read(self.round)):
                yield s.FindWanted(self.base)
        elif self.phase is Phase.REDUCING and self._outcome.commit is not None:
            yield s.FindShards(self.round, shards_of(self._outcome.commit))
            yield s.FindResult(self.round)
        elif self.phase is Phase.BARRIER and self._outcome.result is not None:
            yield s.Adopt(self.round, self._outcome.result.weights_sha256)
            if self._outcome.looks % TAKEOVER_LOOKS == 0 and self.phase is Phase.BARRIER:
                yield s.CatchUp()  # the others may have gone on
        elif self.phase is Phase.BARRIER:
            yield s.FindResult(self.round)

    def _commit_missing(self, event: s.CommitMissing) -> Iterator[s.Command]:
        if self.phase is Phase.JOINING and self.stop is not None and self._astray is None:
            yield self._finish(self.stop.reason)
        if event.round != self.round or self.phase is not Phase.COLLECTING:
            return
        if self._closing and self.seated:
            if self._validation is not None:
                yield s.CreateCommit(self._draft())
            elif self.validator is not None and self._outcome.looks >= self._patience(self.validator):
                yield from self._validate()
        elif self._sufficient and self.seated:
            yield s.CreateCommit(self._draft())
        elif (
            self._outcome.looks and not self._closing and self._gathers
        ):  # right after catching up only the commit is sought
            absent = self.attendance.absent(self.gathering.held)
            yield s.FindContributions(self.round, self.attendance.holders(absent))

    def _result_missing(self, event: s.ResultMissing) -> Iterator[s.Command]:
        waiting = event.round == self.round and self.phase is Phase.BARRIER and self._outcome.result is None
        if waiting and self._outcome.own is not None and self._outcome.looks >= self._patience(self.leader):
            yield from self._write_result()

    def _patience(self, turn: MemberRef) -> int:
        """Looks before costly work of `turn`'s is done here; none where it may be the one that failed."""
        return self.rules.patience(self.members, turn) if self.stop is None else 0

    def _round_deadline(self, event: s.RoundDeadline) -> Iterator[s.Command]:
        if event.round == self.round and self.phase is Phase.COLLECTING and not self._closing:
            self._late = True
            yield from self._commit_in_turn()
            yield from self._tell_waiting()

    def _deadline_reached(self, event: s.DeadlineReached) -> Iterator[s.Command]:
        """Whoever lives and delivers nothing is given up; a round below its quorum goes on waiting, and says so."""
        if sought := self.sought:
            text = f"the weights {sought} are recorded, and nobody who holds them has put them within"
            yield self._fail(RunFailed(f"{text} {event.seconds:g} s; resume the run from its last checkpoint"))
        elif self.phase is Phase.JOINING:
            text = f"{ranks_named(self.roster.missing)} did not arrive within {event.seconds:g} s"
            yield self._fail(RunFailed(text))
        elif self.phase is Phase.COLLECTING and not self._closing:
            if self.contributed:
                self.attendance.give_up(self.gathering.held)
            yield from self._reconsider()
            yield from self._tell_waiting()
        elif self.phase is Phase.COLLECTING and self.seated:
            yield from self._validate()
        elif self.phase is Phase.BARRIER and self._outcome.result is None:
            yield from self._write_result()

    def _tell_waiting(self) -> Iterator[s.Command]:
        if not self._sufficient:
            absent = tuple(member.rank for member in self.attendance.absent(self.gathering.held))
            yield s.TellWaiting(self.round, absent, self.attendance.needed(self.gathering.held))

    def _finish(self, reason: str) -> s.Command:
        self._phase = Phase.ENDED
        return s.Finish(reason)

    def _fail(self, error: PeerlessError) -> s.Command:
        self._phase = Phase.ENDED
        return s.Fail(error)
