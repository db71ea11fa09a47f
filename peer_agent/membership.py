"""Who takes part: claiming a rank, and the roster of members that a peer has seen.

A claim is fenced (DESIGN.md, invariant 6): the same identity takes its rank over at once by raising the incarnation
under `If-Match`, another one only once a commit has dropped the rank. A process cannot know that it was paused while
others took its rank, so it confirms its claim before it writes anything after a pause (`Fence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from contract.clock import Clock
from contract.errors import Superseded
from contract.keys import Places
from contract.records import Member, MemberRef
from contract.store import ObjectStore
from peer_agent.keyring import inherit

#: Under this name a claim's resources say what decides how its process rounds.
ARITHMETIC = "arithmetic"
#: Incarnation of the first process that holds a rank.
FIRST_INCARNATION = 1
_ATTEMPTS = 5


class Roster:
    """The processes that hold the ranks of a run, as far as this peer has seen their claims. Pure."""

    def __init__(self, me: MemberRef, peers: int, arithmetic: str = "") -> None:
        """`peers` ranks from 0 are expected at the start; this peer counts as seen. `arithmetic` is what its own claim
        says of that."""
        self._me = me
        self._expected = range(peers)
        self._seen: dict[int, MemberRef] = {me.rank: me}
        self._unseen = {*self._expected} - {me.rank}
        self._arithmetic = {me.rank: arithmetic}

    def see(self, member: Member) -> bool:
        """Note a claim; True when it is news. The highest incarnation of a rank holds it."""
        if member.rank == self._me.rank or self.incarnation(member.rank) >= member.incarnation:
            return False
        self._unseen.discard(member.rank)
        self._seen[member.rank] = MemberRef(rank=member.rank, incarnation=member.incarnation)
        self._arithmetic[member.rank] = str(member.resources.get(ARITHMETIC, ""))
        return True

    @property
    def mixed(self) -> bool:
        """Whether the processes seen may round differently, by what their claims say."""
        return len(set(self._arithmetic.values())) > 1

    def incarnation(self, rank: int) -> int:
        """The latest incarnation known of a rank; 0 where nobody is known to hold it."""
        return self._seen[rank].incarnation if rank in self._seen else 0

    def supersedes(self, member: Member) -> bool:
        """Whether this claim is a later one on this process's own rank."""
        return member.rank == self._me.rank and member.incarnation > self._me.incarnation

    @property
    def complete(self) -> bool:
        """Whether somebody is known to hold each expected rank."""
        return not self._unseen

    @property
    def missing(self) -> tuple[int, ...]:
        """Expected ranks that nobody is known to hold."""
        return tuple(sorted(self._unseen))

    @property
    def members(self) -> tuple[MemberRef, ...]:
        """Those seen of the expected ranks, in rank order."""
        return tuple(self._seen[rank] for rank in sorted(self._seen) if rank in self._expected)


def claim(
    store: ObjectStore,
    places: Places,
    *,
    rank: int,
    peer_id: str,
    nonce: str,
    resources: Mapping[str, Any] | None = None,
    public_keys: Mapping[str, str] | None = None,
    is_dropped: Callable[[MemberRef], bool] = lambda _: False,
    sign: Callable[[Member], Member] = lambda member: member,
) -> Member:
    """Hold `rank` for this process, and return the record that says so.

    `nonce` is unique to the process: finding it in the record means that an earlier try, whose answer was lost, had
    won. `is_dropped` says whether the run has gone on without a process; `sign` puts this process's signature on the
    record. Raises Superseded when another identity holds the rank, or others keep taking it over.
    """
    place = places.member(rank)
    mine = Member(
        run=places.run,
        rank=rank,
        peer_id=peer_id,
        incarnation=FIRST_INCARNATION,
        nonce=nonce,
        resources=dict(resources or {}),
        public_keys=dict(public_keys or {}),
    )
    mine = sign(mine)
    if store.create(place, mine.to_json()) is not None:
        return mine
    for _ in range(_ATTEMPTS):
        found = store.find(place)
        if found is None:
            continue
        held = Member.from_json(found[0])
        if held.nonce == nonce:
            return held
        if held.peer_id != peer_id and not is_dropped(MemberRef(rank=rank, incarnation=held.incarnation)):
            raise Superseded(
                f"rank {rank} of run {places.run} is held by {held.peer_id!r} (this process is {peer_id!r}); "
                "start the peer under a free rank, or under the same --peer-id"
            )
        keys = inherit(public_keys or {}, held) if public_keys else {}
        mine = sign(replace(mine, incarnation=held.incarnation + 1, public_keys=keys, signature=""))
        if store.replace(place, mine.to_json(), found[1]) is not None:
            return mine
    raise Superseded(f"rank {rank} of run {places.run} keeps being taken over by other processes of {peer_id!r}")


class Fence:
    """Keeps a process from writing anything once another one holds its rank.

    A process that was stopped and continued goes on where it stood, in the middle of a write as much as anywhere else.
    So whatever is written is preceded by `check`: when more than `seconds` have passed since the claim was last found
    to stand, it is read again. What remains is a pause between that check and the request on its way.
    """

    def __init__(self, store: ObjectStore, places: Places, mine: Member, clock: Clock, seconds: float) -> None:
        self._store, self._place, self._mine, self._clock = store, places.member(mine.rank), mine, clock
        self._seconds = seconds
        self._confirmed = clock.monotonic()

    def check(self) -> None:
        """Raises Superseded when another process has taken the rank over; StoreUnavailable, CorruptObject."""
        if self._clock.monotonic() - self._confirmed <= self._seconds:
            return
        asked = self._clock.monotonic()
        found = self._store.find(self._place)
        held = None if found is None else Member.from_json(found[0])
        if held is None or held.nonce != self._mine.nonce:
            by = "nobody" if held is None else f"{held.peer_id!r} (incarnation {held.incarnation})"
            raise Superseded(
                f"rank {self._mine.rank} was taken over while this process stood still; it is held by {by}"
            )
        self._confirmed = asked


def ranks_named(ranks: tuple[int, ...]) -> str:
    """`peer 3`, or `peers 1, 2`."""
    return f"peer{'s' if len(ranks) > 1 else ''} {', '.join(str(rank) for rank in ranks)}"
