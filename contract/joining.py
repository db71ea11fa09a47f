"""Ranks that join a run under way: the record that says so, and how the next free rank is found.

A run begins with ranks 0 to n-1. Whoever brings data of its own later takes the next free rank by creating its record,
once its batches lie in S3. The record is the user's side's, like `run.json`: there is no process yet that could sign
it. Ranks follow each other without a gap and are never given twice, so a rank means one peer's data for good.

Everything here may raise StoreUnavailable, and CorruptObject for a record that does not fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from contract.errors import ConfigError, CorruptObject
from contract.keys import Places
from contract.records import Record
from contract.store import ObjectStore

#: Ranks that a run can have, those that join later included; as many as peers in a configuration.
MAX_RANKS = 1_000


@dataclass(frozen=True, kw_only=True)
class Joined(Record):
    """A rank that a run did not begin with. Raises ValueError for data that cannot be."""

    NAME: ClassVar[str] = "record of a joined rank"

    version: int = 1
    run: str
    rank: int
    samples: int
    """Training samples; nobody's contribution may claim more of this rank's."""
    batches: int
    bucket: str
    """The peer's own bucket."""
    manifest_sha256: str
    """Digest (hex) of its manifest."""
    state_machine: str = ""
    """ARN; "" where the peer computes in its own process."""
    nonce: str

    def __post_init__(self) -> None:
        if self.rank < 0 or self.batches < 1 or self.samples < self.batches:
            raise ValueError(f"rank {self.rank} cannot join with {self.batches} batches of {self.samples} samples")


def find_joined(store: ObjectStore, places: Places, rank: int) -> Joined | None:
    """The record of a rank that joined after the start, or None."""
    place = places.joined(rank)
    found = store.find(place)
    if found is None:
        return None
    record = Joined.from_json(found[0])
    if (record.run, record.rank) != (places.run, rank):
        raise CorruptObject(f"{place} is the record of rank {record.rank} of run {record.run!r}")
    return record


def joined_ranks(store: ObjectStore, places: Places, peers: int) -> tuple[Joined, ...]:
    """All ranks that have joined a run that began with `peers`, in rank order."""
    return tuple(_joined(store, places, peers))


def take_rank(store: ObjectStore, places: Places, peers: int, make: Callable[[int], Joined]) -> Joined:
    """Create the record that `make` gives for the next free rank, and return it.

    `make` is called again, with the next rank, where somebody else was faster. Raises ConfigError when a run has all
    the ranks that it can have.
    """
    for rank in range(peers + len(joined_ranks(store, places, peers)), MAX_RANKS):
        mine = make(rank)
        if store.create(places.joined(rank), mine.to_json()) is not None:
            return mine
        there = find_joined(store, places, rank)
        if there is not None and there.nonce == mine.nonce:  # an earlier try had won; its answer was lost
            return mine
    raise ConfigError(f"run {places.run} has {MAX_RANKS} ranks already, and cannot have more")


def _joined(store: ObjectStore, places: Places, peers: int) -> Iterator[Joined]:
    for rank in itertools.count(peers):
        record = find_joined(store, places, rank)
        if record is None:
            return
        yield record
