"""Whom this process believes: it signs what it writes, checks what others wrote, and keeps account of their conduct.

What a signature proves and what it does not is in docs/decisions/0021.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from contract.errors import CorruptObject
from contract.records import Commit, Member
from contract.signing import Signed, SigningKey, verify_frame
from contract.wire import Frame, FrameHeader
from peer_agent.admission import FrameRules
from peer_agent.conduct import EXCLUDED, Conduct, accused, proven_ranks, spoiled
from peer_agent.keyring import FrameSigner, Keyring, LookUp

#: Ranks that a run can have (contract/config.py), those that join later included.
MAX_PEERS = 1_000


class Trust:
    """One process's key, the keys of others, and what those have done."""

    def __init__(
        self,
        key: SigningKey,
        member: Member,
        frames: FrameRules,
        rejections: int,
        find: Callable[[int], Member | None],
    ) -> None:
        """`member` is the own claim; `find` reads a rank's member record from S3."""
        self.key, self.signer = key, FrameSigner(key)
        self.keyring = Keyring(member.run, MAX_PEERS)
        self.keyring.learn(member.rank, member)
        self.conduct = Conduct(self.keyring, frames, rejections)
        self._frames, self._rejections, self._find = frames, rejections, find

    def seek(self, rank: int) -> Member | None:
        """A rank's claim as S3 holds it, its keys learnt; None where there is none that can be believed."""
        found = self._find(rank)
        reason = self.keyring.learn(rank, found)
        if reason is not None:
            self.conduct.reject(reason, rank)
            return None
        return found

    def greeted(self, greeting: Member) -> Member | str:
        """The claim of whoever greets, or why its greeting is none.

        A greeting is a reason to look: what counts is the claim in S3, which is read first, because a newer process's
        key is known from it alone.
        """
        found = self.seek(greeting.rank)
        if found is None:
            return "missing"
        verdict = self._check(greeting)
        reason = "unknown_key" if isinstance(verdict, LookUp) else verdict
        if reason is None and greeting.incarnation == found.incarnation and greeting != found:
            reason = "conflict"
        return reason or found

    def doubt(self, what: Signed | FrameHeader) -> str | None:
        """Why a record or a frame's header is not by the process whose name it bears, or None. May ask S3 for a key."""
        verdict = self._check(what)
        if isinstance(verdict, LookUp):
            self.seek(verdict.rank)
            verdict = self._check(what)
        return "unknown_key" if isinstance(verdict, LookUp) else verdict

    def vouch(self, record: Signed) -> None:
        """Raises CorruptObject for a record from S3 that is not by the process whose name it bears."""
        if reason := self.doubt(record):
            raise CorruptObject(f"the {record.NAME} in S3 was not written by who it says: {reason}")

    def is_of_anyone(self, header: FrameHeader) -> bool:
        """Whether any process of the run has signed this header: an average bears nobody's name."""
        return any(verify_frame(header, public) for public in self.keyring.all())

    def guilty(self, excluded: Collection[int]) -> frozenset[int]:
        """Ranks against which this peer holds evidence enough; `excluded` are those that the run has excluded."""
        return frozenset(exclusion.rank for exclusion in self.conduct.due(_all_but(excluded)))

    def accuse(self, excluded: Collection[int]) -> dict[str, Any]:
        """What a commit record says about those, as its extension."""
        due = self.conduct.due(_all_but(excluded))
        return {EXCLUDED: [exclusion.to_dict() for exclusion in due]} if due else {}

    def proven(
        self, commit: Commit, read: Callable[[FrameHeader], bytes | None], use: Callable[[Frame], object]
    ) -> frozenset[int]:
        """Ranks that a commit excludes with evidence that holds. `read` gives the object that a header names in S3, or
        None; `use` raises for content that cannot be used."""
        for member in accused(commit.extensions):
            if isinstance(self.keyring.lacks(member), LookUp):
                self.seek(member.rank)
        return proven_ranks(
            commit.extensions,
            self.keyring,
            self._frames,
            self._rejections,
            lambda header: spoiled(read(header), header, self._frames, use),
        )

    def _check(self, what: Signed | FrameHeader) -> LookUp | str | None:
        return self.keyring.check_frame(what) if isinstance(what, FrameHeader) else self.keyring.check(what)


def _all_but(excluded: Collection[int]) -> range | frozenset[int]:
    return frozenset(range(MAX_PEERS)) - frozenset(excluded)
