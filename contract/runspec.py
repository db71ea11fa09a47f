"""The run's configuration as peers read it from S3: what the user configured and what the launcher found out."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract import config as run_config
from contract import jsonform
from contract.config import RunConfig
from contract.errors import ConfigError, CorruptObject
from contract.joining import Joined
from contract.keys import Places, check_run
from contract.modelspec import ModelSpec
from contract.prices import Prices
from contract.seeds import public_seed

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The validation set: digest of its object (SHA-256, hex) and its number of samples."""

    sha256: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run that another one goes on from, and the first round that the other one computes itself.

    Raises ValueError for a name that no run can have, and for a round before the first.
    """

    run: str
    round: int

    def __post_init__(self) -> None:
        check_run(self.run)
        if self.round < 0:
            raise ValueError(f"a run cannot go on from round {self.round}; rounds start at 0")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that a peer must know, the same for all of them; written once before the peers start.

    Raises ValueError when the per-rank lists differ in length, rounds_per_epoch is not what the batches give, or the
    run goes on from itself.
    """

    run: str
    config: RunConfig
    places: Places
    model: ModelSpec
    samples: tuple[int, ...]
    """Training samples per rank."""
    batches: tuple[int, ...]
    """Batches per rank."""
    rounds_per_epoch: int
    """As `rounds_per_epoch(batches, config.batches_per_round)`."""
    initial_weights: str
    """Hash (hex) of the weights that the first round starts from. They lie at `places.weights(initial_weights)`, but
    for a run with an `origin`, where replaying may lead to them instead."""
    validation: ValidationSet
    state_machines: tuple[str, ...]
    """ARN per rank; "" where the peer computes in its own process."""
    code_digest: str = ""
    """Digest of the user's own code (contract/code.py); "" where there is none."""
    created: float = 0.0
    """Seconds since the epoch."""
    prices: Prices | None = None
    """What the run's parts cost, for the peers' meters; None where nobody asked, or nothing costs (locally)."""
    origin: Origin | None = None
    """The run that this one goes on from, which lies in the same buckets; None where it begins at round 0."""
    joined: int = 0
    """So many ranks, the last of the per-rank lists, joined after the start; never in what is written (`including`)."""

    def __post_init__(self) -> None:
        per_rank = {
            "samples": len(self.samples),
            "batches": len(self.batches),
            "state_machines": len(self.state_machines),
            "places.peer_buckets": len(self.places.peer_buckets),
        }
        for name, length in per_rank.items():
            if length != self.config.peers + self.joined:
                raise ValueError(f"{name} has {length} entries, but the run has {self.config.peers} peers")
        if self.run != self.places.run:
            raise ValueError(f"the run is {self.run!r}, but its places are those of {self.places.run!r}")
        if self.origin is not None and self.origin.run == self.run:
            raise ValueError(f"run {self.run} cannot go on from itself")
        begun_with = self.batches[: self.config.peers]  # an epoch stays as long as it was planned
        if self.rounds_per_epoch != rounds_per_epoch(begun_with, self.config.batches_per_round):
            raise ValueError(f"rounds_per_epoch is {self.rounds_per_epoch}, which the batches do not give")

    def including(self, records: Sequence[Joined]) -> RunSpec:
        """The same run with ranks that have joined it, all from the first one on. Raises ValueError for a gap."""
        expected = range(len(self.samples), len(self.samples) + len(records))
        if [record.rank for record in records] != list(expected):
            raise ValueError(f"ranks {[record.rank for record in records]} do not follow rank {expected.start - 1}")
        return replace(
            self,
            samples=(*self.samples, *(record.samples for record in records)),
            batches=(*self.batches, *(record.batches for record in records)),
            state_machines=(*self.state_machines, *(record.state_machine for record in records)),
            places=self.places.with_buckets(record.bucket for record in records),
            joined=self.joined + len(records),
        )

    @property
    def first_round(self) -> int:
        """The round that the initial weights belong to; rounds of a run that goes on count on from its origin's."""
        return 0 if self.origin is None else self.origin.round

    @property
    def rounds_limit(self) -> int:
        """Rounds at the epoch limit."""
        return self.config.epochs * self.rounds_per_epoch

    def epoch(self, round: int) -> int:
        """The epoch, from 0, to which a round belongs."""
        return round // self.rounds_per_epoch

    def batches_for_round(self, rank: int, round: int) -> tuple[int, ...]:
        """Indices of the batches that `rank` computes in `round`; never empty, no index twice.

        With batches_per_round = 0 these are all. Otherwise each pass over the partition is a new permutation (from the
        public seed, rank and number of the pass), cut into consecutive slices; the last slice of a pass may be
        shorter. A partition smaller than the largest comes to its end earlier and starts its next pass at once.
        """
        count = self.batches[rank]
        size = self.config.batches_per_round
        if size == 0:
            return tuple(range(count))
        pass_number, position = divmod(round, -(-count // size))
        order = _permutation(public_seed(self.config.seed, "order", rank, pass_number), count)
        return order[position * size : (position + 1) * size]

    def is_validation_round(self, round: int) -> bool:
        """Whether the weights that `round` leads to are validated: each epoch's or every n-th, and the last."""
        return (round + 1) % self._validate_every == 0 or round + 1 == self.rounds_limit

    def validation_number(self, round: int) -> int | None:
        """Which validation of the run, counted from 0, is that of the weights from which `round` starts; or None."""
        if round == 0 or not self.is_validation_round(round - 1):
            return None
        return -(-round // self._validate_every) - 1

    @property
    def _validate_every(self) -> int:
        """Rounds from one validation to the next; the last one may come earlier."""
        return self.config.validate_every or self.rounds_per_epoch

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        form = {name: jsonform.to_dict(getattr(self, name)) for name in self.__dataclass_fields__ if name != "config"}
        return jsonform.dumps({"version": _VERSION, **form, "config": self.config.model_dump(mode="json")})

    @classmethod
    def from_json(cls, blob: bytes | bytearray | memoryview | str) -> RunSpec:
        """Inverse of `to_json`. Raises CorruptObject."""
        what = "run configuration"
        value = jsonform.loads(blob, what)
        version = value.pop("version", None)
        if version != _VERSION:
            raise CorruptObject(f"{what} has version {version!r}; this build reads version {_VERSION}")
        settings = value.pop("config", None)
        if not isinstance(settings, dict):
            raise CorruptObject(f"{what} lacks the field 'config'")
        try:
            config = run_config.from_mapping(settings, what)
            rest = jsonform.from_dict(_Rest, value, what)
            return cls(config=config, **{name: getattr(rest, name) for name in _Rest.__dataclass_fields__})
        except (ConfigError, ValueError) as error:
            raise CorruptObject(f"{what}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Rest:
    """The fields of RunSpec beside `config`, which pydantic reads."""

    run: str
    places: Places
    model: ModelSpec
    samples: tuple[int, ...]
    batches: tuple[int, ...]
    rounds_per_epoch: int
    initial_weights: str
    validation: ValidationSet
    state_machines: tuple[str, ...]
    code_digest: str
    created: float
    prices: Prices | None = None  # specifications of before there were prices stay readable
    origin: Origin | None = None  # likewise
    joined: int = 0  # likewise


def rounds_per_epoch(batches: tuple[int, ...], batches_per_round: int) -> int:
    """Ceil(batches of the largest partition / batches_per_round); 1 where a round takes all.

    Raises ValueError when a rank has no batch.
    """
    if not batches or min(batches) < 1:
        raise ValueError(f"every peer needs at least one batch, not {list(batches)}")
    return -(-max(batches) // batches_per_round) if batches_per_round else 1


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, count: int) -> tuple[int, ...]:
    """0 … count-1 in an order that depends on nothing but `seed`, on any machine and library version."""

    def rank_of(index: int) -> bytes:
        return hashlib.sha256(seed.to_bytes(8, "little") + index.to_bytes(8, "little")).digest()

    return tuple(sorted(range(count), key=rank_of))


def _check_fields() -> None:
    if any(f not in RunSpec.__dataclass_fields__ for f in _Rest.__dataclass_fields__) or (
        len(_Rest.__dataclass_fields__) + 1 != len(RunSpec.__dataclass_fields__)
    ):
        raise TypeError("RunSpec and the form that is read from JSON have drifted apart")


_check_fields()
