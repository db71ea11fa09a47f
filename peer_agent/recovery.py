"""Catching up with a run under way: from the latest checkpoint, or the first weights, by applying every commit since.

A process that starts anew, joins late, or takes a rank over gets by this to the very weights, optimizer and scheduler
that the others hold, because commits say what was applied and contributions outlive the checkpoint before them. The
round that has a commit but no result yet is left to the state machine, as if its commit had just been found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from contract.errors import ObjectMissing
from contract.records import Commit, Result
from contract.runspec import RunSpec
from peer_agent import signals as s
from peer_agent.records import Records
from peer_agent.rules import excluded_ranks, reason_to_end

#: Checkpoints replace each other while a slow process still reads the contributions since an earlier one.
_ATTEMPTS = 3


class Weights(Protocol):
    """What is brought up to date."""

    @property
    def base(self) -> str:
        """Hash of the weights as they are."""

    def restore(self) -> int:
        """Load the latest checkpoint, or the run's first weights; gives the round that starts from them."""

    def replay(self, commit: Commit, result: Result) -> str:
        """Apply what a commit lists; gives what its validation loss says about ending, or an empty text.

        Raises ObjectMissing for a contribution that is no longer there.
        """


class Recovery:
    """Brings one peer to where its run stands."""

    def __init__(self, spec: RunSpec, records: Records, weights: Weights) -> None:
        self._spec, self._records, self._weights = spec, records, weights

    def catch_up(self) -> tuple[s.CaughtUp, int]:
        """Where the run stands, and how many rounds were applied to get there. Raises ObjectMissing."""
        for attempt in range(_ATTEMPTS):
            first = self._weights.restore()
            try:
                return self._replay(first)
            except ObjectMissing:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _replay(self, first: int) -> tuple[s.CaughtUp, int]:
        last = None if first == self._spec.first_round else self._records.commit(first - 1)
        round, ended = first, ""
        for commit, result in self._since(first):
            stop = self._weights.replay(commit, result)
            last, round = commit, commit.round + 1
            if commit.final or stop:
                ended = reason_to_end(commit, stop)
                break
        if last is None:
            return s.CaughtUp(round, self._weights.base, None), 0
        past = frozenset(contributor.digest for contributor in last.contributors)
        caught_up = s.CaughtUp(round, self._weights.base, last.members, past, excluded_ranks(last), ended)
        return caught_up, round - first

    def _since(self, round: int) -> Iterable[tuple[Commit, Result]]:
        """Commits from `round` on with their results, as long as both exist."""
        while True:
            commit = self._records.commit(round)
            result = None if commit is None else self._records.result(round)
            if commit is None or result is None:
                return
            yield commit, result
            round += 1
