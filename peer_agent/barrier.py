"""Weights in S3, and the barrier at which all peers hold the recorded ones (invariant 4)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from contract.keys import Place, Places
from contract.records import Commit, MemberRef, Result
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout, decode_weights, encode_weights
from peer_agent.contributions import Contributions
from peer_agent.update import Update

#: Objects of a round are deleted when the round so much later has passed its barrier: everyone has passed theirs then.
LAG_ROUNDS = 2


class WeightsShelf:
    """The weights objects of a run, named by their hash."""

    def __init__(self, store: ObjectStore, places: Places, layout: Layout, me: MemberRef) -> None:
        self._store, self._places, self._layout, self._me = store, places, layout, me

    def put(self, round: int, update: Update) -> int:
        """Store the current weights of `update`, from which `round` starts; returns the object's bytes."""
        blob = encode_weights(
            self._layout,
            update.flat,
            update.buffers,
            run=self._places.run,
            round=round,
            rank=self._me.rank,
            incarnation=self._me.incarnation,
        )
        return self._store.put(self._places.weights(update.weights_sha256), blob).size

    def get(self, sha256: str) -> tuple[NDArray[np.float32], Buffers]:
        """Weights by hash: flat (n,) float32 and buffers. Raises ObjectMissing, CorruptObject, WeightsMismatch."""
        return decode_weights(self._layout, self._store.get(self._places.weights(sha256)), sha256)

    def delete(self, hashes: Iterable[str], others: Iterable[Place] = ()) -> None:
        """Remove weights that nobody needs any more, and `others` with them, in one request."""
        self._store.delete([*(self._places.weights(sha256) for sha256 in hashes), *others])


class Retention:
    """Which objects of past rounds may go: all peers keep the same account, and each round's result writer deletes.

    The weights that a run started from, the best and the latest ones stay; contributions outlive the barrier of the
    next round, so that whoever is still busy with theirs finds them.
    """

    def __init__(self, me: MemberRef, shelf: WeightsShelf, contributions: Contributions, initial_weights: str) -> None:
        self._me, self._shelf, self._contributions, self._initial = me, shelf, contributions, initial_weights
        self._weights: dict[str, int] = {}  # the round whose result they were, by hash
        self._contributors: dict[int, tuple[MemberRef, ...]] = {}

    def applied(self, commit: Commit) -> None:
        """Note whose contributions a round used."""
        self._contributors[commit.round] = tuple(
            MemberRef(rank=c.rank, incarnation=c.incarnation) for c in commit.contributors
        )

    def passed(self, result: Result, best_weights: str) -> None:
        """Note a result; delete what has outlived its use where this peer wrote it."""
        if result.weights_sha256 != self._initial:
            self._weights[result.weights_sha256] = result.round
        through = result.round - LAG_ROUNDS
        weights = [sha for sha, round in self._weights.items() if round <= through and sha != best_weights]
        rounds = [round for round in self._contributors if round <= through]
        if result.writer == self._me:
            gone = [self._contributions.place(round, m) for round in rounds for m in self._contributors[round]]
            self._shelf.delete(weights, gone)
        for sha in weights:
            del self._weights[sha]
        for round in rounds:
            del self._contributors[round]
