"""Catching up with a run under way: from the latest checkpoint, or the first weights, by applying every commit since.

A process that starts anew, joins late, or takes a rank over gets by this to the very weights, optimizer and scheduler
that the others hold, because commits say what was applied and contributions outlive the checkpoint before them. A run
that goes on from another one starts likewise, through that one's commits. The round that has a commit but no result
yet is left to the state machine, as if its commit had just been found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from contract.errors import CorruptObject, ObjectMissing
from contract.history import History, Start, Step, residual_survives
from contract.records import Commit, Result
from contract.runspec import RunSpec
from contract.signing import Signed
from contract.store import ObjectStore
from peer_agent import signals as s
from peer_agent.rules import excluded_ranks, reason_to_end

#: Checkpoints replace each other while a slow process still reads the contributions since an earlier one.
_ATTEMPTS = 3


class Replica(Protocol):
    """What is brought up to date: weights, and everything that goes with them."""

    @property
    def base(self) -> str:
        """Hash of the weights as they are."""

    def restore(self, start: Start, residual: bool) -> None:
        """Load a state; `residual`: this peer's own part of it still holds. Raises ObjectMissing, CorruptObject."""

    def replay(self, step: Step, commit: Commit, result: Result) -> str:
        """Apply what a commit lists; gives what its validation loss says about ending, or an empty text.

        Raises ObjectMissing for a contribution that is no longer there.
        """


class Recovery:
    """Brings one peer to where its run stands."""

    def __init__(
        self, spec: RunSpec, rank: int, store: ObjectStore, replica: Replica, vouch: Callable[[Signed], None]
    ) -> None:
        """`vouch` raises CorruptObject for a record of this run that is not its writer's; keys of earlier runs are
        nobody's any more."""
        self._spec, self._rank, self._store, self._replica, self._vouch = spec, rank, store, replica, vouch

    def catch_up(self) -> tuple[s.CaughtUp, int]:
        """Where the run stands, and how many rounds were applied to get there. Raises ObjectMissing, CorruptObject."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._from(History(self._store, self._spec).start())
            except ObjectMissing:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _from(self, start: Start) -> tuple[s.CaughtUp, int]:
        if start.checkpoint is not None and start.checkpoint.run == self._spec.run:
            self._vouch(start.checkpoint)
        found = [(step, *self._read(step)) for step in (*start.inherited, *start.own)]
        due = [(step, commit, result) for step, commit, result in found if result is not None]
        if len(due) < len(start.inherited):
            raise CorruptObject(f"run {start.places.run} lacks a result, so nothing can go on from it")
        self._replica.restore(start, residual_survives(self._rank, [commit for _, commit, _ in due]))
        last = self._before(start)
        round, ended, recorded = start.round, "", start.weights_sha256
        for step, commit, result in due:
            stop = self._replica.replay(step, commit, result)
            recorded = result.weights_sha256
            last, round = (commit if step.places.run == self._spec.run else None), commit.round + 1
            if last is not None and (commit.final or stop):
                ended = reason_to_end(commit, stop)
                break
        base = self._replica.base
        astray = "" if recorded == base else recorded
        if last is None:
            return s.CaughtUp(round, base, None, recorded=astray), len(due)
        past = frozenset(contributor.digest for contributor in last.contributors)
        caught_up = s.CaughtUp(round, base, last.members, past, excluded_ranks(last), ended, astray)
        return caught_up, round - start.round

    def _before(self, start: Start) -> Commit | None:
        """The commit that led to the state from which this peer starts; None where that is this run's first."""
        if start.places.run != self._spec.run or start.round == self._spec.first_round:
            return None
        return self._read(Step(places=start.places, round=start.round - 1))[0]

    def _read(self, step: Step) -> tuple[Commit, Result | None]:
        commit = Commit.from_json(self._store.get(step.places.commit(step.round)))
        found = self._store.find(step.places.result(step.round))
        result = None if found is None else Result.from_json(found[0])
        for record in (commit, result):
            if record is not None and (record.run, record.round) != (step.places.run, step.round):
                raise CorruptObject(f"{step.places.commit(step.round)} is not the record of round {step.round}")
            if record is not None and record.run == self._spec.run:
                self._vouch(record)
        return commit, result
