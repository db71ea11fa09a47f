"""Weights in S3, and the barrier at which all peers hold the recorded ones (invariant 4)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from contract.errors import ObjectMissing
from contract.history import read_checkpoint
from contract.keys import Place, Places
from contract.records import Checkpoint, Commit, MemberRef, Result
from contract.store import ObjectStore
from contract.tensors import Buffers, Layout, decode_weights, encode_weights
from peer_agent.update import Update

#: Objects of a round are deleted when the round so much later has passed its barrier: everyone has passed theirs then.
LAG_ROUNDS = 2
#: The one to start from, and the one before it.
KEPT_CHECKPOINTS = 2


class WeightsShelf:
    """The weights objects of a run, named by their hash."""

    def __init__(self, store: ObjectStore, places: Places, layout: Layout, me: MemberRef) -> None:
        self.store, self.places = store, places
        self._layout, self._me = layout, me

    def put(self, round: int, update: Update) -> int:
        """Store the current weights of `update`, from which `round` starts, unless somebody has; returns the bytes that
        this took."""
        blob = encode_weights(
            self._layout,
            update.flat,
            update.buffers,
            run=self.places.run,
            round=round,
            rank=self._me.rank,
            incarnation=self._me.incarnation,
            sha256=update.weights_sha256,
        )
        stored = self.store.create(self.places.weights(update.weights_sha256), blob)
        return 0 if stored is None else stored.size

    def ensure(self, round: int, update: Update) -> int:
        """Have the current weights of `update` in S3; returns the bytes that this took."""
        if self.store.head(self.places.weights(update.weights_sha256)) is not None:
            return 0
        return self.put(round, update)

    def get(self, sha256: str, places: Places | None = None) -> tuple[NDArray[np.float32], Buffers]:
        """Weights by hash, of this run or that of `places`: flat (n,) float32 and buffers. Raises ObjectMissing,
        CorruptObject, WeightsMismatch."""
        return decode_weights(self._layout, self.store.get((places or self.places).weights(sha256)), sha256)

    def bring(self, sha256: str, earlier: Iterable[Places]) -> None:
        """Have weights in this run that an `earlier` one made: the best so far, which this run may hand over.

        Raises ObjectMissing where no run has them.
        """
        if self.store.head(self.places.weights(sha256)) is not None:
            return
        for places in earlier:
            found = self.store.find(places.weights(sha256))
            if found is not None:
                decode_weights(self._layout, found[0], sha256)
                self.store.put(self.places.weights(sha256), found[0])
                return
        raise ObjectMissing(f"{self.places.weights(sha256)} does not exist, and no earlier run has these weights")

    def delete(self, hashes: Iterable[str], others: Iterable[Place] = ()) -> None:
        """Remove weights that nobody needs any more, and `others` with them, in one request."""
        self.store.delete([*(self.places.weights(sha256) for sha256 in hashes), *others])


class Retention:
    """Which objects of past rounds may go. All peers keep the same account, and a round's result writer deletes.

    With checkpoints, everything from the last but one on stays: its state, and the contributions, shards and weights
    of its round and all later ones. So whoever joins, comes back or goes on can replay from the last one, and while it
    does so a newer one takes nothing away from it. The beginning of the run counts as a checkpoint. Without checkpoints
    (`every_rounds` of 0) objects go as soon as all have passed the barrier that needed them: there is no state that
    their commits could be applied to. The weights that a run started from, the best, the latest and those of kept
    checkpoints always stay.

    What goes is found by listing, so that nothing leaks: no account knows contributions that no commit took, or what a
    writer that died had left to do. Weights take an account beside it, as their names tell no round, and a hash that
    this peer has not seen recorded may be that of a round to come.
    """

    def __init__(
        self,
        me: MemberRef,
        shelf: WeightsShelf,
        initial_weights: str,
        *,
        every_rounds: int = 0,
    ) -> None:
        self._me, self._shelf = me, shelf
        self._initial, self._every = initial_weights, every_rounds
        self._weights: dict[str, int] = {}  # by hash the last round whose state names them
        self._checkpoints: dict[int, str] = {}  # by round the hash of the weights, where the record is known
        self._best = ""

    def applied(self, commit: Commit) -> None:
        """Note what a round started from."""
        self._note(commit.base_weights.get("0", self._initial), commit.round)

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        """Note a checkpoint whose record lies in S3: written here, restored from, or heard of. Nobody need call this;
        what is not noted is looked for in time. Those of earlier runs are none of this one's."""
        if checkpoint.run != self._shelf.places.run:
            return
        self._checkpoints[checkpoint.round] = checkpoint.weights_sha256
        self._note(checkpoint.weights_sha256, checkpoint.round)

    def passed(self, result: Result, best_weights: str) -> None:
        """Note a result; delete what has outlived its use where this peer wrote it and it is time."""
        self._note(result.weights_sha256, result.round + 1)
        if best_weights != self._best:
            if self._best:
                self._note(self._best, result.round + 1)  # it is what earlier checkpoints call the best
            self._best = best_weights
        if result.writer == self._me and self._due(result.round):
            self._sweep(result)

    def _note(self, weights: str, round: int) -> None:
        self._weights[weights] = max(round, self._weights.get(weights, round))

    def _due(self, round: int) -> bool:
        """Once per checkpoint, when everyone has passed the barriers of the rounds before it."""
        return (round + 1 - LAG_ROUNDS) % (self._every or LAG_ROUNDS) == 0

    def _sweep(self, result: Result) -> None:
        """Delete everything of rounds before the first one that stays."""
        first = result.round - LAG_ROUNDS + 1  # all have passed the barriers before; hashes of it are nobody's base
        if self._every:
            self._find_checkpoints()
            if len(self._checkpoints) < KEPT_CHECKPOINTS:
                return
            first = min(first, *self._checkpoints)
        keep = {self._initial, self._best, result.weights_sha256, *self._checkpoints.values()}
        stored = {key.rpartition("/")[2] for key in self._list(self._shelf.places.weights(""))}
        old = {sha for sha in stored - keep if self._weights.get(sha, first + 1) <= first}
        self._shelf.delete(old, self._of_rounds_before(first))
        self._weights = {sha: round for sha, round in self._weights.items() if sha in stored - old}

    def _find_checkpoints(self) -> None:
        """Know the newest records: some may be others' work, of which nobody told."""
        places = self._shelf.places
        rounds = sorted(places.parse_checkpoint(key) for key in self._list(places.checkpoints()))
        for round in rounds[-KEPT_CHECKPOINTS:]:
            if round not in self._checkpoints and (found := read_checkpoint(self._shelf.store, places, round)):
                self.checkpointed(found)
        for round in sorted(self._checkpoints)[:-KEPT_CHECKPOINTS]:
            del self._checkpoints[round]

    def _of_rounds_before(self, first: int) -> list[Place]:
        """Contributions, shards and states of checkpoints."""
        places = self._shelf.places
        gone = []
        for prefix in (places.contributions(), places.shards(), places.checkpoint_states()):
            old = [key for key in self._list(prefix) if places.round_of(key, prefix) < first]
            gone += [Place(prefix.bucket, key, prefix.owner) for key in old]
        return gone

    def _list(self, prefix: Place) -> list[str]:
        return self._shelf.store.list(prefix.bucket, prefix.key, prefix.owner)
