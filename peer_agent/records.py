"""The records of a run in S3: conditional writes, and what their unclear answers mean.

Every record is created once. Whoever finds one in the way reads it back: the own nonce means that an earlier try had
won although its answer was lost; any other nonce means that someone else was first, whose record is then the one that
counts. (409 and lost answers are tried again with the same bytes inside the store.)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from contract.errors import CorruptObject, ObjectMissing
from contract.keys import Place, Places
from contract.records import Commit, Member, MemberRef, PeerReport, Result, Stop, Wanted
from contract.store import ObjectStore

R = TypeVar("R", Commit, Result, Stop)
Read = TypeVar("Read", Commit, Result, Stop, Member)


def new_nonce() -> str:
    """128 random bits in hexadecimal: what tells two writers of otherwise equal records apart."""
    return secrets.token_hex(16)


class Records:
    """Reads and writes one run's records for one peer. Everything may raise StoreUnavailable and CorruptObject."""

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        me: MemberRef,
        nonce: Callable[[], str] = new_nonce,
        fence: Callable[[], None] = lambda: None,
        sign: Callable[[Any], Any] = lambda record: record,
        vouch: Callable[[Any], None] = lambda record: None,
    ) -> None:
        """`fence` raises Superseded where this process must write nothing any more; `sign` completes a record that has
        everything but its signature, and `vouch` raises CorruptObject for one that is not its writer's."""
        self._store, self._places, self._me, self._nonce, self._fence = store, places, me, nonce, fence
        self._sign, self._vouch = sign, vouch

    def create_commit(self, draft: Commit) -> tuple[Commit, bool]:
        """Write a commit under this peer's name; the record that counts, and whether it is this one."""
        return self._create(self._places.commit(draft.round), draft)

    def create_result(self, round: int, weights_sha256: str) -> tuple[Result, bool]:
        """Record the weights after `round`, which lie in S3 already where anybody will read them; likewise."""
        weights = self._places.weights(weights_sha256)
        result = Result(
            run=self._places.run,
            round=round,
            weights_sha256=weights_sha256,
            bucket=weights.bucket,
            key=weights.key,
            writer=self._me,
            nonce="",
        )
        return self._create(self._places.result(round), result)

    def create_stop(
        self, reason: str, round: int, weights_sha256: str = "", validation_loss: float | None = None
    ) -> tuple[Stop, bool]:
        """Record that the run ends, with the final weights where this peer names them; likewise."""
        stop = Stop(
            run=self._places.run,
            reason=reason,
            round=round,
            weights_sha256=weights_sha256,
            validation_loss=validation_loss,
            writer=self._me,
            nonce="",
        )
        return self._create(self._places.stop(), stop)

    def want(self, round: int, weights_sha256: str) -> Wanted:
        """Leave word in S3 that this peer needs the weights that `round` starts from, which nobody has put."""
        wanted: Wanted = self._sign(
            Wanted(run=self._places.run, round=round, weights_sha256=weights_sha256, writer=self._me)
        )
        self._fence()
        self._store.create(self._places.wanted(weights_sha256), wanted.to_json())
        return wanted

    def is_wanted(self, weights_sha256: str) -> bool:
        """Whether anybody has left such word."""
        return self._store.head(self._places.wanted(weights_sha256)) is not None

    def commit(self, round: int) -> Commit | None:
        """The commit record of `round`, or None."""
        return self._find(self._places.commit(round), Commit)

    def result(self, round: int) -> Result | None:
        """The result record of `round`, or None."""
        return self._find(self._places.result(round), Result)

    def stop(self) -> Stop | None:
        """The stop record, or None."""
        return self._find(self._places.stop(), Stop)

    def latest_commit(self) -> Commit | None:
        """The commit record of the highest round, or None."""
        prefix = self._places.commits()
        rounds = [
            self._places.round_of(key, prefix) for key in self._store.list(prefix.bucket, prefix.key, prefix.owner)
        ]
        return self.commit(max(rounds)) if rounds else None

    def member(self, rank: int) -> Member | None:
        """The claim on `rank`, or None."""
        return self._find(self._places.member(rank), Member)

    def put_report(self, report: PeerReport) -> None:
        """Leave this peer's report for the user's side; a restarted peer's replaces the earlier one."""
        self._store.put(self._places.report(report.rank), report.to_json())

    def _create(self, place: Place, record: R) -> tuple[R, bool]:
        mine: R = self._sign(replace(record, writer=self._me, nonce=self._nonce()))
        self._fence()
        if self._store.create(place, mine.to_json()) is not None:
            return mine, True
        there = self._find(place, type(record))
        if there is None:
            raise ObjectMissing(f"{place} exists, says S3, and then does not; records are never deleted")
        return there, there.nonce == mine.nonce

    def _find(self, place: Place, cls: type[Read]) -> Read | None:
        found = self._store.find(place)
        if found is None:
            return None
        record = cls.from_json(found[0])
        if record.run != self._places.run:
            raise CorruptObject(f"{place} holds a {cls.NAME} of run {record.run!r}")
        if not isinstance(record, Member):  # whose keys are learnt from it
            self._vouch(record)
        return record
