"""Who takes part: claiming a rank, and the roster of members that a peer has seen.

A claim is fenced (DESIGN.md, invariant 6): the same identity takes its rank over at once by raising the incarnation
under `If-Match`; another identity's claim stands, because in this version no commit ever drops a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from contract.errors import Superseded
from contract.keys import Places
from contract.records import Member, MemberRef
from contract.store import ObjectStore

#: Incarnation of the first process that holds a rank.
FIRST_INCARNATION = 1
_ATTEMPTS = 5


class Roster:
    """The members of a starting run, as far as this peer has seen their claims. Pure."""

    def __init__(self, me: MemberRef, peers: int) -> None:
        """`peers` ranks from 0 are expected; this peer counts as seen."""
        self._me = me
        self._expected = range(peers)
        self._seen: dict[int, MemberRef] = {me.rank: me}

    def see(self, member: Member) -> bool:
        """Note a claim; True when it is news. The highest incarnation of a rank holds it."""
        known = self._seen.get(member.rank)
        if member.rank not in self._expected or member.rank == self._me.rank:
            return False
        if known is not None and known.incarnation >= member.incarnation:
            return False
        self._seen[member.rank] = MemberRef(rank=member.rank, incarnation=member.incarnation)
        return True

    def supersedes(self, member: Member) -> bool:
        """Whether this claim is a later one on this process's own rank."""
        return member.rank == self._me.rank and member.incarnation > self._me.incarnation

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks nobody is known to hold."""
        return tuple(rank for rank in self._expected if rank not in self._seen)

    @property
    def members(self) -> tuple[MemberRef, ...]:
        """Those seen, in rank order."""
        return tuple(self._seen[rank] for rank in sorted(self._seen))


def claim(
    store: ObjectStore,
    places: Places,
    *,
    rank: int,
    peer_id: str,
    nonce: str,
    resources: Mapping[str, Any] | None = None,
) -> Member:
    """Hold `rank` for this process, and return the record that says so.

    `nonce` is unique to the process: finding it in the record means that an earlier try, whose answer was lost, had
    won. Raises Superseded when another identity holds the rank, or others keep taking it over.
    """
    place = places.member(rank)
    mine = Member(
        run=places.run,
        rank=rank,
        peer_id=peer_id,
        incarnation=FIRST_INCARNATION,
        nonce=nonce,
        resources=dict(resources or {}),
    )
    if store.create(place, mine.to_json()) is not None:
        return mine
    for _ in range(_ATTEMPTS):
        found = store.find(place)
        if found is None:
            continue
        held = Member.from_json(found[0])
        if held.nonce == nonce:
            return held
        if held.peer_id != peer_id:
            raise Superseded(
                f"rank {rank} of run {places.run} is held by {held.peer_id!r} (this process is {peer_id!r}); "
                "start the peer under a free rank, or under the same --peer-id"
            )
        mine = replace(mine, incarnation=held.incarnation + 1)
        if store.replace(place, mine.to_json(), found[1]) is not None:
            return mine
    raise Superseded(f"rank {rank} of run {places.run} keeps being taken over by other processes of {peer_id!r}")


def ranks_named(ranks: tuple[int, ...]) -> str:
    """`peer 3`, or `peers 1, 2`."""
    return f"peer{'s' if len(ranks) > 1 else ''} {', '.join(str(rank) for rank in ranks)}"
