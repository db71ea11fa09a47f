"""What goes into the protocol's state machines (events) and what comes out (commands): frozen dataclasses, no I/O.

The runner turns messages, records found in S3, finished computations and timers into events, and executes commands. A
machine never waits, never reads a clock, and never touches a socket, so that every interleaving can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contract.errors import PeerlessError
from contract.records import Commit, Contributor, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader

#: Why a run ends when nothing ends it earlier.
EPOCH_LIMIT = "epoch_limit"
#: Why it ends when a peer's bill has reached its limit.
MAX_USD = "max_usd"
#: Why it ends for one that joined after the start and has gone before the end.
LEFT = "left"

# ---------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Started:
    """This peer holds its rank and its inbox is open."""


@dataclass(frozen=True)
class CaughtUp:
    """This peer holds the weights that `round` starts from: the run's first ones, or those of a run under way."""

    round: int
    base_weights: str
    members: tuple[MemberRef, ...] | None
    """Members of `round`; None at the start of a run, where all that claim their ranks are."""
    past: frozenset[str] = frozenset()
    """Digests of what the commit before lists."""
    excluded: frozenset[int] = frozenset()
    """Ranks that commits have excluded."""
    ended: str = ""
    """Why the run is over already; empty while it goes on."""
    recorded: str = ""
    """Hash of the weights that are recorded for `round`, where this peer's arithmetic has led to others and those do
    not lie in S3; empty otherwise."""


@dataclass(frozen=True)
class Heard:
    """A heartbeat: the process that holds this rank lives, and works on `round`."""

    rank: int
    incarnation: int
    round: int
    leaving: bool = False


@dataclass(frozen=True)
class Silent:
    """All ranks whose heartbeats have stopped, as often as that changes."""

    ranks: frozenset[int]


@dataclass(frozen=True)
class Guilty:
    """This peer can prove that these ranks send what no honest peer does."""

    ranks: frozenset[int]


@dataclass(frozen=True)
class MemberSeen:
    """A member record, from a greeting or from S3."""

    member: Member


@dataclass(frozen=True)
class FrameArrived:
    """A frame, decoded and with its digest checked; or only its header, with an empty `body` (claim check)."""

    header: FrameHeader
    body: bytes
    sender: int | None


@dataclass(frozen=True)
class ContributionHeld:
    """A contribution's bytes lie in this peer's spool with their digest checked, and exist in S3; own ones included."""

    header: FrameHeader


@dataclass(frozen=True)
class HoldFailed:
    """A frame that should have been kept turned out to be missing or corrupt, and was counted."""

    header: FrameHeader


@dataclass(frozen=True)
class ContributionsSought:
    """S3 has been asked for these ranks' contributions to `round`; FrameArrived has told of each that exists."""

    round: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class WeightsSought:
    """Asynchronous mode: S3 has been asked for others' weights; FrameArrived has told of each that was wanted."""


@dataclass(frozen=True)
class Validated:
    """This peer has evaluated the weights of `round`; `stop` is a reason to end (asynchronous mode), or empty."""

    round: int
    loss: float
    accuracy: float | None
    stop: str = ""


@dataclass(frozen=True)
class CommitFound:
    """A commit record, created by this peer, announced, or found in S3."""

    commit: Commit


@dataclass(frozen=True)
class CommitMissing:
    """S3 holds no commit record for `round` yet."""

    round: int


@dataclass(frozen=True)
class ShardsSeen:
    """Averages of these shards of `round` lie in S3; this peer's own included."""

    round: int
    shards: frozenset[int]


@dataclass(frozen=True)
class AllReduced:
    """Somebody says that all averages of `round` lie in S3."""

    round: int


@dataclass(frozen=True)
class Applied:
    """The contributions of `round` are applied; `stop` is what the commit records say about ending, or empty.

    `excluded` are the ranks that the commit excludes with evidence that holds.
    """

    round: int
    weights_sha256: str
    stop: str = ""
    excluded: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ResultFound:
    """A result record, created by this peer, announced, or found in S3."""

    result: Result


@dataclass(frozen=True)
class ResultMissing:
    """S3 holds no result record for `round` yet."""

    round: int


@dataclass(frozen=True)
class Adopted:
    """Recorded weights have replaced this peer's own."""

    round: int
    weights_sha256: str


@dataclass(frozen=True)
class Wanted:
    """Somebody's arithmetic has led to other weights than the recorded ones, which it looks for in S3."""

    weights_sha256: str


@dataclass(frozen=True)
class StopFound:
    """The run's stop record, created by this peer, announced, or found in S3."""

    stop: Stop


@dataclass(frozen=True)
class EndRequested:
    """Someone asked this process to end in order."""

    reason: str


@dataclass(frozen=True)
class LeaveRequested:
    """Someone asked this process to leave; the others go on."""


@dataclass(frozen=True)
class PollDue:
    """Nothing has answered a wait for `poll_seconds`: time to look in S3."""


@dataclass(frozen=True)
class RoundDeadline:
    """`round` has lasted longer than recent rounds make likely."""

    round: int


@dataclass(frozen=True)
class DeadlineReached:
    """Nothing at all has arrived for so long."""

    seconds: float


Event = (
    Started
    | CaughtUp
    | Heard
    | Silent
    | Guilty
    | MemberSeen
    | FrameArrived
    | ContributionHeld
    | HoldFailed
    | ContributionsSought
    | WeightsSought
    | Validated
    | CommitFound
    | CommitMissing
    | ShardsSeen
    | AllReduced
    | Applied
    | ResultFound
    | ResultMissing
    | Adopted
    | Wanted
    | StopFound
    | EndRequested
    | LeaveRequested
    | PollDue
    | RoundDeadline
    | DeadlineReached
)

# -------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class CatchUp:
    """Bring this peer's weights and everything that goes with them to where the run stands; answered by CaughtUp."""


@dataclass(frozen=True)
class WriteCheckpoint:
    """Store this peer's own state from which `round` starts, and the common one where that is for it to do. Not
    answered."""

    round: int
    common: bool


@dataclass(frozen=True)
class FindMembers:
    """Look for these ranks' member records; answered by MemberSeen for each that exists."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Compute:
    """Compute, store and announce the own contribution at `base_weights`; answered by ContributionHeld."""

    round: int
    base_weights: str
    validate: bool
    """Evaluate the base weights too; loss and accuracy travel in the frame."""


@dataclass(frozen=True)
class Validate:
    """Evaluate the current weights, which are those that `round` starts from; answered by Validated."""

    round: int


@dataclass(frozen=True)
class Hold:
    """Put a frame into the spool, or fetch it from S3 when `body` is empty; answered by ContributionHeld, or by
    HoldFailed."""

    header: FrameHeader
    body: bytes
    sender: int | None


@dataclass(frozen=True)
class Reject:
    """Count a frame that does not fit, and forget it; answered by Guilty where that makes evidence enough."""

    reason: str
    sender: int | None
    round: int
    header: FrameHeader | None = field(default=None, compare=False)
    other: FrameHeader | None = field(default=None, compare=False)
    """The frame that is held in its place."""


@dataclass(frozen=True)
class FindContributions:
    """Look for these members' contributions to `round`; answered by FrameArrived for each that exists, and by
    ContributionsSought at the end."""

    round: int
    members: tuple[MemberRef, ...]


@dataclass(frozen=True)
class TellWaiting:
    """Say that this round cannot go on yet, and for whom it waits. Not answered."""

    round: int
    ranks: tuple[int, ...]
    needed: int


@dataclass(frozen=True)
class FindLatest:
    """Asynchronous mode: look for later contributions than those known; answered by FrameArrived for each."""

    known: tuple[tuple[MemberRef, int], ...]
    """Members, each with the round of its latest known contribution, or -1."""


@dataclass(frozen=True)
class PutWeights:
    """Asynchronous mode: put the own weights, from which `round` starts, and announce them. Not answered."""

    round: int
    to: tuple[int, ...] | None
    """Ranks that hear of it; None for everyone."""


@dataclass(frozen=True)
class FindWeights:
    """Asynchronous mode: look for weights that peers have put; answered by FrameArrived for each, and by WeightsSought
    at the end."""

    known: tuple[tuple[MemberRef, int], ...] | None
    """Members whose later weights are wanted, each with the round of those known, or -1; None wants the newest of each
    rank, whoever has put them."""


@dataclass(frozen=True)
class TakeUp:
    """Asynchronous mode: go on from these weights and their round; answered by CaughtUp, or by HoldFailed where they
    are gone or of no use."""

    header: FrameHeader


@dataclass(frozen=True)
class TellPresence:
    """Asynchronous mode: say who is left out from now on, and who is back. Not answered."""

    round: int
    left: tuple[int, ...]
    back: tuple[MemberRef, ...]


@dataclass(frozen=True)
class Fetch:
    """Fetch a contribution that a commit lists, by key and digest; answered by ContributionHeld."""

    round: int
    contributor: Contributor


@dataclass(frozen=True)
class CreateCommit:
    """Create the commit record (the writer adds its nonce) and announce it; answered by CommitFound, whoever won."""

    draft: Commit


@dataclass(frozen=True)
class FindCommit:
    """Look for a commit record; answered by CommitFound or CommitMissing."""

    round: int


@dataclass(frozen=True)
class MakeShard:
    """Average one shard of what a commit lists, create it in S3 and tell the commit's writer; answered by
    ShardsSeen."""

    commit: Commit
    shard: int


@dataclass(frozen=True)
class FindShards:
    """Look which of so many averages of `round` lie in S3; answered by ShardsSeen."""

    round: int
    shards: int


@dataclass(frozen=True)
class AnnounceReduced:
    """Tell everyone that all averages of `round` lie in S3. Not answered."""

    round: int


@dataclass(frozen=True)
class Apply:
    """Feed a commit to convergence and apply its contributions in rank order, as far as they fit; answered by Applied.

    What a commit lists and nobody can apply counts for nothing, for everyone alike.
    """

    commit: Commit
    headers: tuple[FrameHeader, ...]


@dataclass(frozen=True)
class Average:
    """Asynchronous mode: average these frames in rank order and step; answered by Applied."""

    round: int
    headers: tuple[FrameHeader, ...]
    weights: tuple[FrameHeader, ...] = ()
    """Where there are any: average the own weights with these first."""


@dataclass(frozen=True)
class WriteResult:
    """Create the result record and announce it; answered by ResultFound, whoever won."""

    round: int
    weights_sha256: str
    store: bool
    """Put the new weights before: somebody will read them."""


@dataclass(frozen=True)
class FindResult:
    """Look for a result record; answered by ResultFound or ResultMissing."""

    round: int


@dataclass(frozen=True)
class Passed:
    """The barrier of `round` is behind this peer: its weights are the recorded ones. Not answered."""

    round: int
    result: Result


@dataclass(frozen=True)
class Adopt:
    """Replace the own weights by recorded ones; answered by Adopted. Where those do not lie in S3, whoever holds them
    is asked for them, and nothing is answered."""

    round: int
    weights_sha256: str


@dataclass(frozen=True)
class FindWanted:
    """Look whether anybody wants the weights that this round starts from; answered by Wanted where that is so."""

    weights_sha256: str


@dataclass(frozen=True)
class Share:
    """Put the weights that `round` starts from, which are this peer's. Not answered."""

    round: int


@dataclass(frozen=True)
class CreateStop:
    """Create the stop record and announce it; answered by StopFound, whoever won."""

    reason: str
    round: int


@dataclass(frozen=True)
class FindStop:
    """Look for the stop record; answered by StopFound if there is one."""


@dataclass(frozen=True)
class Finish:
    """The run is over for this peer, in order."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """The run is over for this peer, and why."""

    error: PeerlessError


Command = (
    CatchUp
    | WriteCheckpoint
    | FindMembers
    | Compute
    | Validate
    | Hold
    | Reject
    | FindContributions
    | TellWaiting
    | FindLatest
    | PutWeights
    | FindWeights
    | TakeUp
    | TellPresence
    | Fetch
    | CreateCommit
    | FindCommit
    | MakeShard
    | FindShards
    | AnnounceReduced
    | Apply
    | Average
    | WriteResult
    | FindResult
    | Passed
    | Adopt
    | FindWanted
    | Share
    | CreateStop
    | FindStop
    | Finish
    | Fail
)
