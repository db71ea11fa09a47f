"""The rules of synchronous rounds: whose turn it is, and what a commit says. Pure.

Turns spread the work; they are no rights. Cheap work is done by whoever finds it undone, costly work (an upload, an
evaluation) only after a while, and then by one peer after another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contract.records import Commit, MemberRef, Stop
from contract.wire import FrameHeader
from peer_agent.admission import FrameRules, listed
from peer_agent.attendance import Attendance, Quorum
from peer_agent.exchange.topology import AllGather, Topology
from peer_agent.signals import EPOCH_LIMIT

#: Under this name a commit's extensions say into how many shards its contributions are cut.
SHARDS = "shards"
#: And under this one which members it drops because they want to go.
LEAVING = "leaving"
#: Looks into S3 without success after which the next peer does costly work in another's place.
TAKEOVER_LOOKS = 5

Members = Sequence[MemberRef]


@dataclass(frozen=True, kw_only=True)
class RoundRules:
    """What the machine knows of the run; the same for all peers but for `me`."""

    me: MemberRef
    peers: int
    """Peers that the run starts with."""
    rounds: int
    """Epoch limit in rounds; the round of this number has no contributions and only closes the run."""
    validation: Callable[[int], int | None]
    """Which validation of the run (counted from 0) a round makes, of the weights that it starts from; None for none.
    The closing round always makes one."""
    key: Callable[[int, int, int], str]
    """S3 key of the contribution of (round, rank, incarnation)."""
    frames: FrameRules
    quorum: Quorum = 1.0
    """Contributions that a round needs: a number of peers, or a share of the live members."""
    checkpoint_every: int = 0
    """Rounds from one checkpoint to the next; 0 for none."""
    topology: Topology = AllGather()  # noqa: RUF009 (frozen)
    """What a peer needs before it can apply a commit, and who makes it."""
    arithmetic: str = ""
    """What decides how this process rounds, as its claim says it."""
    read_by_workers: bool = False
    """Whether gradients are computed by processes that read every round's weights from S3."""

    def are_read(self, round: int) -> bool:
        """Whether the weights that `round` starts from are read from S3 in any case: by workers, or at the end, for
        which those that have been validated are candidates."""
        return self.read_by_workers or self.validation(round) is not None or round >= self.rounds

    def is_checkpoint(self, round: int) -> bool:
        """Whether the state from which `round` starts is kept."""
        return self.checkpoint_every > 0 and round > 0 and round % self.checkpoint_every == 0

    def leader(self, attendance: Attendance, round: int) -> MemberRef:
        """Who commits a round and records its result: in turn, but for those who are gone."""
        return attendance.turn(round + 1)

    def succession(self, attendance: Attendance, round: int) -> Iterator[MemberRef]:
        """Whose turn that is, one after the other, up to its leader."""
        return attendance.succession(round + 1)

    def validator(self, attendance: Attendance, round: int) -> MemberRef | None:
        """Who evaluates the weights that a round starts from, likewise; None where nobody does."""
        number = self.validation(round)
        return None if number is None else attendance.turn(number)

    def patience(self, members: Members, turn: MemberRef) -> int:
        """Looks after which this peer does what was for `turn` to do: 0 for itself, more for each one after it.

        Whoever is no member comes last.
        """
        ranks = [member.rank for member in members]
        if self.me.rank not in ranks:
            return TAKEOVER_LOOKS * len(ranks)
        return TAKEOVER_LOOKS * ((ranks.index(self.me.rank) - ranks.index(turn.rank)) % len(ranks))

    def draft(
        self,
        *,
        round: int,
        base: str,
        members: Members,
        headers: Iterable[FrameHeader],
        validation: tuple[float, float | None] | None,
        stop: Stop | None,
        excluded: Collection[int] = (),
        leaving: Collection[int] = (),
        shards: int = 0,
    ) -> Commit:
        """The commit record as this peer would write it; writer and nonce are added by whoever writes it.

        `members` are those of the next round; `headers` are the contributions that count, in any order; `validation` is
        loss and accuracy of the base weights; `excluded` are all ranks that the run has excluded so far; `leaving` are
        members that go because they want to; into so many `shards` the contributions are cut.
        """
        extensions: dict[str, Any] = {"stop": stop.reason} if stop is not None else {}
        if excluded:
            extensions["excluded_ranks"] = sorted(excluded)
        if leaving:
            extensions[LEAVING] = sorted(leaving)
        if shards:
            extensions[SHARDS] = shards
        in_order = sorted(headers, key=lambda header: header.rank)
        return Commit(
            run=self.frames.run,
            round=round,
            base_weights={"0": base},
            contributors=tuple(listed(header, self.key) for header in in_order),
            members=tuple(members),
            validation_loss=validation[0] if validation else None,
            validation_accuracy=validation[1] if validation else None,
            final=round >= self.rounds or stop is not None,
            extensions=extensions,
            writer=self.me,
            nonce="",
        )


def reason_to_end(commit: Commit, converged: str) -> str:
    """Why the run ends with `commit`: what was asked for comes before what the validation losses say."""
    return str(commit.extensions.get("stop", converged or EPOCH_LIMIT))


def shards_of(commit: Commit) -> int:
    """Into how many shards a commit's contributions are cut; 0 where they are whole, or where there are none."""
    return int(commit.extensions.get(SHARDS, 0)) if commit.contributors else 0


def excluded_ranks(commit: Commit) -> frozenset[int]:
    """All ranks that the run has excluded by this commit and those before it."""
    return frozenset(commit.extensions.get("excluded_ranks", ()))
