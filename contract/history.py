"""What a run, and the runs that it goes on from, have left in S3: where a peer starts, and where a new run can go on.

A run that goes on from another one names it and its own first round (`RunSpec.origin`), so runs form a chain. Rounds
count through; each run of the chain has the rounds from its first one to the next run's first one. Whoever wants the
state before some round takes the newest checkpoint of the chain that is not after it, and applies the commits between.

Everything here may raise StoreUnavailable, and CorruptObject for records that do not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from contract.errors import CorruptObject, ObjectMissing
from contract.keys import Places
from contract.records import Checkpoint, Commit, Result
from contract.runspec import Origin, RunSpec
from contract.store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One run of a chain, with the rounds `first` to `end` - 1 of it; an `end` of None is open."""

    places: Places
    first: int
    end: int | None
    initial_weights: str
    """Hash of the weights that `first` starts from."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A commit to apply: that of `round` in the run of `places`."""

    places: Places
    round: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """The state before `round`, and what to apply to it."""

    places: Places
    """Of the run in whose buckets the state lies."""
    round: int
    weights_sha256: str
    """Hash of the weights that `round` starts from."""
    checkpoint: Checkpoint | None
    """None at the beginning of the first run, where optimizer, scheduler and residuals are new."""
    inherited: tuple[Step, ...]
    """Commits of earlier runs, up to this run's first round, in order."""
    own: tuple[Step, ...]
    """Commits of this run that lie in S3, in order and without a gap; none of what is missing can have been applied."""


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a new run goes on from an old one."""

    origin: Origin
    """What the new run's configuration names."""
    places: Places
    """Of the origin's run."""
    weights_sha256: str
    """Hash of the weights that the new run starts from."""
    stored: bool
    """Whether those lie at `places.weights`, and belong into the new run's; otherwise replaying leads to them."""
    checkpoint_round: int
    """The round of the state from which peers start: of a checkpoint, or 0."""
    repeated_rounds: int
    """Rounds that had been completed and are computed again, because they cannot be replayed."""

    @property
    def replayed_rounds(self) -> int:
        """Rounds that are applied again from stored contributions; error feedback of those rounds is lost."""
        return self.origin.round - self.checkpoint_round


def replayed(first: int, end: int | None, present: Collection[int]) -> range:
    """The rounds from `first` to `end` - 1 whose commits are `present`, up to the first gap."""
    stop = first
    while stop in present and (end is None or stop < end):
        stop += 1
    return range(first, stop)


def residual_survives(rank: int, replay: Collection[Commit]) -> bool:
    """Whether the residual of a checkpoint still is what `rank` owes after these commits.

    A commit that took its contribution settled that residual, and left another one that nobody has.
    """
    return not any(contributor.rank == rank for commit in replay for contributor in commit.contributors)


def newest_checkpoint(
    store: ObjectStore, places: Places, *, first: int = 0, before: int | None = None, with_own: bool = False
) -> Checkpoint | None:
    """The newest checkpoint of a run whose objects are there, of a round from `first` to `before` - 1.

    `with_own`: each of its members must have left its own state as well (in its incarnation, or a later one).
    """
    prefix = places.checkpoints()
    rounds = (places.parse_checkpoint(key) for key in store.list(prefix.bucket, prefix.key, prefix.owner))
    for round in sorted((r for r in rounds if r >= first and (before is None or r < before)), reverse=True):
        checkpoint = read_checkpoint(store, places, round)
        if checkpoint is not None and _usable(store, places, checkpoint, with_own):
            return checkpoint
    return None


def read_checkpoint(store: ObjectStore, places: Places, round: int) -> Checkpoint | None:
    """The record of the checkpoint before `round`, or None."""
    place = places.checkpoint(round)
    found = store.find(place)
    if found is None:
        return None
    checkpoint = Checkpoint.from_json(found[0])
    expected = places.run, round, places.checkpoint_common(round).key
    if (checkpoint.run, checkpoint.round, checkpoint.key) != expected:
        raise CorruptObject(f"{place} is the record of another checkpoint")
    return checkpoint


def own_states(store: ObjectStore, places: Places, round: int) -> dict[int, int]:
    """Incarnation by rank of the latest own state that each peer has left for the checkpoint before `round`."""
    found: dict[int, int] = {}
    prefix = places.checkpoint_states(round)
    for key in store.list(prefix.bucket, prefix.key, prefix.owner):
        if (parts := places.parse_own(key)) is not None:
            found[parts[1]] = max(parts[2], found.get(parts[1], 0))
    return found


def _usable(store: ObjectStore, places: Places, checkpoint: Checkpoint, with_own: bool) -> bool:
    if store.head(places.checkpoint_common(checkpoint.round)) is None:
        return False
    if store.head(places.weights(checkpoint.weights_sha256)) is None:
        return False
    if not with_own:
        return True
    left = own_states(store, places, checkpoint.round)
    return all(left.get(member.rank, -1) >= member.incarnation for member in checkpoint.members)


class History:
    """The chain of runs that ends with `spec`'s; `legs` are the latest first."""

    def __init__(self, store: ObjectStore, spec: RunSpec) -> None:
        """Reads the configurations of the chain. Raises ObjectMissing where one is gone, CorruptObject for a circle."""
        self._store, self._spec = store, spec
        self.legs: tuple[Leg, ...] = tuple(self._read_legs())

    def start(self) -> Start:
        """From what a peer of this run starts; the beginning of the first run where no checkpoint is left."""
        for index, leg in enumerate(self.legs):
            before = None if leg.end is None else leg.end + 1
            checkpoint = newest_checkpoint(self._store, leg.places, first=leg.first, before=before)
            if checkpoint is not None:
                return self._start(index, checkpoint.round, checkpoint.weights_sha256, checkpoint)
        first = self.legs[-1]
        return self._start(len(self.legs) - 1, first.first, first.initial_weights, None)

    def resume_point(self) -> ResumePoint:
        """Where a new run can go on from this one, which must have ended or died.

        After the last round whose result is recorded; where the way there cannot be replayed (contributions are gone,
        or checkpoints were not asked for), at the newest checkpoint of the chain, or at its beginning. Raises
        ObjectMissing when even those weights are gone.
        """
        start, last = self.start(), self._last_result()
        end = self._spec.first_round if last is None else last.round + 1
        weights = self._spec.initial_weights if last is None else last.weights_sha256
        steps = [*start.inherited, *(step for step in start.own if step.round < end)]
        stored = self._held(self._spec.places, weights)
        within_reach = stored or self._held(start.places, start.weights_sha256)
        if start.round + len(steps) == end and within_reach and self._replayable(steps):
            return ResumePoint(
                origin=Origin(run=self._spec.run, round=end),
                places=self._spec.places,
                weights_sha256=weights,
                stored=stored,
                checkpoint_round=start.round,
                repeated_rounds=0,
            )
        if not self._held(start.places, start.weights_sha256):
            raise ObjectMissing(f"run {self._spec.run} cannot be taken up: its weights are no longer stored")
        return ResumePoint(
            origin=Origin(run=start.places.run, round=start.round),
            places=start.places,
            weights_sha256=start.weights_sha256,
            stored=True,
            checkpoint_round=start.round,
            repeated_rounds=end - start.round,
        )

    def _start(self, index: int, round: int, weights: str, checkpoint: Checkpoint | None) -> Start:
        """The state before `round`, of leg `index`, and the commits from there on through the later legs."""
        inherited: list[Step] = []
        own: tuple[Step, ...] = ()
        for leg in reversed(self.legs[: index + 1]):
            first = max(round, leg.first)
            rounds = replayed(first, leg.end, self._commits(leg.places))
            steps = [Step(places=leg.places, round=r) for r in rounds]
            if leg.end is None:
                own = tuple(steps)
            elif len(rounds) != leg.end - first:
                raise CorruptObject(f"run {leg.places.run} lacks commit {rounds.stop}, so nothing can go on from it")
            else:
                inherited += steps
        return Start(
            places=self.legs[index].places,
            round=round,
            weights_sha256=weights,
            checkpoint=checkpoint,
            inherited=tuple(inherited),
            own=own,
        )

    def _read_legs(self) -> Iterator[Leg]:
        spec, end = self._spec, None
        seen: set[str] = set()
        while True:
            seen.add(spec.run)
            yield Leg(places=spec.places, first=spec.first_round, end=end, initial_weights=spec.initial_weights)
            if spec.origin is None:
                return
            end, places = spec.origin.round, self._spec.places.of_run(spec.origin.run)
            if places.run in seen:
                raise CorruptObject(f"run {places.run} goes on from itself")
            spec = RunSpec.from_json(self._store.get(places.spec()))
            if spec.run != places.run or spec.first_round > end:
                raise CorruptObject(f"{places.spec()} is not what a run can go on from at round {end}")

    def _commits(self, places: Places) -> frozenset[int]:
        prefix = places.commits()
        keys = self._store.list(prefix.bucket, prefix.key, prefix.owner)
        return frozenset(places.round_of(key, prefix) for key in keys)

    def _last_result(self) -> Result | None:
        prefix = self._spec.places.results()
        keys = self._store.list(prefix.bucket, prefix.key, prefix.owner)
        if not keys:
            return None
        place = self._spec.places.result(max(self._spec.places.round_of(key, prefix) for key in keys))
        result = Result.from_json(self._store.get(place))
        if result.run != self._spec.run:
            raise CorruptObject(f"{place} holds a result record of run {result.run!r}")
        return result

    def _replayable(self, steps: Collection[Step]) -> bool:
        """Whether S3 still holds every contribution that these commits list."""
        held: dict[str, frozenset[str]] = {}
        for step in steps:
            prefix = step.places.contributions()
            if step.places.run not in held:
                held[step.places.run] = frozenset(self._store.list(prefix.bucket, prefix.key, prefix.owner))
            commit = Commit.from_json(self._store.get(step.places.commit(step.round)))
            if any(contributor.key not in held[step.places.run] for contributor in commit.contributors):
                return False
        return True

    def _held(self, places: Places, weights: str) -> bool:
        return self._store.head(places.weights(weights)) is not None
