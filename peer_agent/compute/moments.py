"""What the optimizer of a peer's workers keeps (`algorithm.keep_state`): one object in S3 per round.

It is there before the round's contribution is, so a peer that dies, or a run that goes on from another, finds it; a
peer that was away for some rounds goes on with the last one that it left.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cached_property

from contract.errors import StoreUnavailable
from contract.history import History, Leg
from contract.keys import Place, Places
from contract.local_steps import LocalSteps
from contract.runspec import RunSpec
from contract.store import ObjectStore

#: Objects of so many rounds stay, and those of so many checkpoints: what a run can be taken up from.
ROUNDS, CHECKPOINTS = 3, 2


class WorkerMoments:
    """The objects of one rank."""

    def __init__(self, spec: RunSpec, rank: int, store: ObjectStore) -> None:
        self._spec, self._rank, self._store = spec, rank, store

    def place(self, steps: LocalSteps, round: int) -> LocalSteps:
        """`steps` of `round`, with where their moments come from and go to; unchanged where none are kept.

        Raises StoreUnavailable.
        """
        if not steps.keep_state:
            return steps
        return replace(steps, begins_with=self._latest(round), leaves=self._spec.places.moments(self._rank, round + 1))

    def tidy(self, steps: LocalSteps, round: int) -> None:
        """`round` has been computed: delete what no run will be taken up from any more."""
        if not steps.keep_state:
            return
        places, every = self._spec.places, self._spec.config.checkpoint.every_rounds
        with contextlib.suppress(StoreUnavailable):  # what stays costs some storage until the next round
            rounds = self._rounds(places)
            of_checkpoints = [kept for kept in rounds if every and kept % every == 0 and kept <= round]
            keep = {*range(round + 2 - ROUNDS, round + 2), *of_checkpoints[-CHECKPOINTS:]}
            self._store.delete([places.moments(self._rank, old) for old in rounds if old <= round and old not in keep])

    def _latest(self, round: int) -> Place | None:
        """The newest from which `round` can start: of this run, or of those that it goes on from."""
        for leg in self._legs:
            limit = round if leg.end is None else min(round, leg.end)
            found = [there for there in self._rounds(leg.places) if there <= limit]
            if found:
                return leg.places.moments(self._rank, found[-1])
        return None

    def _rounds(self, places: Places) -> list[int]:
        prefix = places.all_moments(self._rank)
        return sorted(places.round_of(key, prefix) for key in self._store.list(prefix.bucket, prefix.key, prefix.owner))

    @cached_property
    def _legs(self) -> tuple[Leg, ...]:
        return History(self._store, self._spec).legs
