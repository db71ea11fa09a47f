"""Every S3 place and every RabbitMQ name, built in this module only.

    run bucket                                     peer bucket (one per peer)
    runs/<run>/                                    runs/<run>/peers/<rank>/
      run.json                                       manifest.json
      members/<rank>.json                            batches/<index>.safetensors
      joined/<rank>.json
      commits/<round>.json
      results/<round>.json
      checkpoints/<round>.json
      stop.json
      validation.safetensors
      preprocessing.json
      reports/<rank>.json
    expiring/<run>/                                expiring/<run>/peers/<rank>/
      weights/<sha256>                               items/<round>-<incarnation>.json
      contributions/<round>/<rank>-<incarnation>     items/<round>-<incarnation>-groups.json
      contributions/<round>/<rank>-<incarnation>.<piece>
                                                     gradients/<round>-<incarnation>/<batch>
      own-weights/<round>/<rank>-<incarnation>       partials/<round>-<incarnation>/<level>-<group>
      shards/<round>/<shard>                         moments/<round>/optimizer
      checkpoints/<round>/common
      checkpoints/<round>/<rank>-<incarnation>
      alive/<rank>
      events/<rank>/<milliseconds>.jsonl
    deployment/current.json

What a deployment's buckets delete after some days lies under a prefix of its own, because S3's lifecycle rules go by
the beginning of a key and by nothing else that a name could say.

Numbers are padded with zeros, so that a listing comes in numerical order. Keys of a peer's bucket name the rank as
well: peers that share one bucket do not collide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from contract import jsonform
from contract.errors import CorruptObject

#: What a run may be called. It becomes part of S3 keys and queue names, so it can hold no slash and no wildcard.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
_OF_A_PEER = re.compile(r"(\d+)/(\d+)-(\d+)\Z")
_RECORD = re.compile(r"(\d+)\.json\Z")
_OF_A_ROUND = re.compile(r"(\d+)(?:\.json|/.+)\Z")
_OF_A_BATCH = re.compile(r"(\d+)/(\d+)\Z")
_CHUNK = re.compile(r"(\d+)\.jsonl\Z")


@dataclass(frozen=True)
class Place:
    """One object in S3. `owner` is the AWS account that must own the bucket, or None where none is known (locally)."""

    bucket: str
    key: str
    owner: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The table from which all places of a run follow; part of the run's configuration in S3.

    `peer_buckets` holds one bucket per rank. Raises ValueError for a run name that cannot be part of a key.
    """

    run: str
    run_bucket: str
    peer_buckets: tuple[str, ...]
    region: str
    account: str | None = None

    def __post_init__(self) -> None:
        check_run(self.run)

    def of_run(self, run: str) -> Places:
        """The places of another run in the same buckets. Raises ValueError for a name that cannot be part of a key."""
        return replace(self, run=run)

    def with_buckets(self, buckets: Iterable[str]) -> Places:
        """The same places with further peers' buckets, for the ranks after the last one."""
        return replace(self, peer_buckets=(*self.peer_buckets, *buckets))

    def spec(self) -> Place:
        """The run's configuration (`RunSpec`)."""
        return spec_place(self.run, self.run_bucket, self.account)

    def member(self, rank: int) -> Place:
        """The claim on a rank (`Member`), written under `If-None-Match` or `If-Match` only."""
        return self._in_run(f"members/{_rank(rank)}.json")

    def joined(self, rank: int) -> Place:
        """What a rank brought that the run did not begin with (`Joined`), created once."""
        return self._in_run(f"joined/{_rank(rank)}.json")

    def weights(self, sha256: str) -> Place:
        """Weights named by their hash, 64 hexadecimal digits."""
        return self._passing(f"weights/{sha256}")

    def wanted(self, sha256: str) -> Place:
        """That somebody looks for weights which nobody has put (`Wanted`), created once."""
        return self._passing(f"wanted/{sha256}")

    def contribution(self, round: int, rank: int, incarnation: int) -> Place:
        """A peer's frame for a round; of one that is cut into shards, what comes before its payload."""
        return self._passing(f"contributions/{_round(round)}/{_rank(rank)}-{_number(incarnation)}")

    def piece(self, round: int, rank: int, incarnation: int, piece: int) -> Place:
        """Some shards of a contribution that is cut (contract/sharding.py)."""
        whole = self.contribution(round, rank, incarnation)
        return replace(whole, key=f"{whole.key}.{_number(piece)}")

    def contributions(self) -> Place:
        """The prefix under which all contributions lie, for listing."""
        return self._passing("contributions/")

    def parse_contribution(self, key: str) -> tuple[int, int, int]:
        """(round, rank, incarnation) of a contribution's key. Raises CorruptObject for a key of anything else."""
        parts = _OF_A_PEER.match(key.removeprefix(self.contributions().key))
        if parts is None:
            raise CorruptObject(f"s3://{self.run_bucket}/{key} is no place of a contribution")
        return int(parts[1]), int(parts[2]), int(parts[3])

    def own_weights(self, round: int, rank: int, incarnation: int) -> Place:
        """The weights from which a peer started a round, where peers hold different ones (asynchronous mode)."""
        return self._passing(f"own-weights/{_round(round)}/{_rank(rank)}-{_number(incarnation)}")

    def all_own_weights(self) -> Place:
        """The prefix under which all peers' own weights lie, for listing."""
        return self._passing("own-weights/")

    def parse_own_weights(self, key: str) -> tuple[int, int, int]:
        """(round, rank, incarnation) of the key of a peer's own weights. Raises CorruptObject for any other key."""
        parts = _OF_A_PEER.match(key.removeprefix(self.all_own_weights().key))
        if parts is None:
            raise CorruptObject(f"s3://{self.run_bucket}/{key} is no place of a peer's own weights")
        return int(parts[1]), int(parts[2]), int(parts[3])

    def commit(self, round: int) -> Place:
        """The one outcome of a round (`Commit`), created once."""
        return self._in_run(f"commits/{_round(round)}.json")

    def commits(self) -> Place:
        """The prefix under which all commits lie, for listing."""
        return self._in_run("commits/")

    def result(self, round: int) -> Place:
        """The weights that a round led to (`Result`), created once."""
        return self._in_run(f"results/{_round(round)}.json")

    def results(self) -> Place:
        """The prefix under which all results lie, for listing."""
        return self._in_run("results/")

    def checkpoint(self, round: int) -> Place:
        """The record of a checkpoint (`Checkpoint`), created once, when its common state lies in S3."""
        return self._in_run(f"checkpoints/{_round(round)}.json")

    def checkpoints(self) -> Place:
        """The prefix under which all records of checkpoints lie, for listing."""
        return self._in_run("checkpoints/")

    def parse_checkpoint(self, key: str) -> int:
        """The round in a checkpoint record's key. Raises CorruptObject for a key of anything else."""
        parts = _RECORD.match(key.removeprefix(self.checkpoints().key))
        if parts is None:
            raise CorruptObject(f"s3://{self.run_bucket}/{key} is no place of a checkpoint record")
        return int(parts[1])

    def round_of(self, key: str, prefix: Place) -> int:
        """The round in a key from a listing of `prefix`, under which something lies per round. Raises CorruptObject."""
        parts = _OF_A_ROUND.match(key.removeprefix(prefix.key))
        if parts is None or not key.startswith(prefix.key):
            raise CorruptObject(f"s3://{self.run_bucket}/{key} is the place of no round")
        return int(parts[1])

    def checkpoint_common(self, round: int) -> Place:
        """What all peers hold alike when `round` starts: optimizer, scheduler, convergence."""
        return self._passing(f"checkpoints/{_round(round)}/common")

    def checkpoint_states(self, round: int | None = None) -> Place:
        """The prefix under which all states of one checkpoint lie, or of all checkpoints, for listing."""
        return self._passing("checkpoints/" if round is None else f"checkpoints/{_round(round)}/")

    def parse_own(self, key: str) -> tuple[int, int, int] | None:
        """(round, rank, incarnation) of the key of a peer's own state; None for the key of anything else."""
        parts = _OF_A_PEER.match(key.removeprefix(self.checkpoint_states().key))
        return None if parts is None else (int(parts[1]), int(parts[2]), int(parts[3]))

    def checkpoint_own(self, round: int, rank: int, incarnation: int) -> Place:
        """What one peer alone holds when `round` starts: its residual."""
        return self._passing(f"checkpoints/{_round(round)}/{_rank(rank)}-{_number(incarnation)}")

    def shard(self, round: int, shard: int) -> Place:
        """The average of one shard of the parameters in a round (reduce-scatter), created once."""
        return self._passing(f"shards/{_round(round)}/{_rank(shard)}")

    def shards(self) -> Place:
        """The prefix under which all averages of shards lie, for listing."""
        return self._passing("shards/")

    def alive(self, rank: int) -> Place:
        """A peer's latest heartbeat, where there is no broker to carry it."""
        return self._passing(f"alive/{_rank(rank)}")

    def stop(self) -> Place:
        """The common end of the run (`Stop`), created once."""
        return self._in_run("stop.json")

    def validation(self) -> Place:
        """The validation set, one batch file (contract/batches.py)."""
        return self._in_run("validation.safetensors")

    def preprocessing(self) -> Place:
        """What further data must go through to fit the run's; the user's side writes and reads it."""
        return self._in_run("preprocessing.json")

    def report(self, rank: int) -> Place:
        """What a peer tells the user at its end (`PeerReport`)."""
        return self._in_run(f"reports/{_rank(rank)}.json")

    def events(self, rank: int, milliseconds: int) -> Place:
        """A chunk of a peer's events (contract/events.py), named by its time in milliseconds since the epoch."""
        return self._passing(f"events/{_rank(rank)}/{_number(milliseconds, 13)}.jsonl")

    def events_of(self, rank: int) -> Place:
        """The prefix under which all chunks of a peer's events lie, for listing; their keys sort by time."""
        return self._passing(f"events/{_rank(rank)}/")

    def parse_events(self, rank: int, key: str) -> int:
        """The milliseconds in a chunk's key. Raises CorruptObject for a key of anything else."""
        parts = _CHUNK.match(key.removeprefix(self.events_of(rank).key))
        if parts is None:
            raise CorruptObject(f"s3://{self.run_bucket}/{key} is no place of rank {rank}'s events")
        return int(parts[1])

    def manifest(self, rank: int) -> Place:
        """The list of a peer's batches (`Manifest`)."""
        return self._in_peer(rank, "manifest.json")

    def batch(self, rank: int, index: int) -> Place:
        """One batch of a peer's partition."""
        return self._in_peer(rank, f"batches/{_number(index, 6)}.safetensors")

    def items(self, rank: int, round: int, incarnation: int) -> Place:
        """The round's batches as a JSON array, for a distributed map's item reader."""
        return self._in_peer(rank, f"items/{_round(round)}-{_number(incarnation)}.json", "expiring")

    def groups(self, rank: int, round: int, incarnation: int) -> Place:
        """The groups of gradients that reducers add up first, for a distributed map's item reader."""
        return self._in_peer(rank, f"items/{_round(round)}-{_number(incarnation)}-groups.json", "expiring")

    def gradient(self, rank: int, round: int, incarnation: int, batch: int) -> Place:
        """The gradient of one batch, as a worker wrote it."""
        return self._in_peer(rank, f"gradients/{_round(round)}-{_number(incarnation)}/{_number(batch, 6)}", "expiring")

    def gradients(self, rank: int, round: int) -> Place:
        """The prefix under which all gradients of a rank's batches in a round lie, of all incarnations, for listing."""
        return self._in_peer(rank, f"gradients/{_round(round)}-", "expiring")

    def parse_gradient(self, rank: int, round: int, key: str) -> tuple[int, int]:
        """(incarnation, batch) of a gradient's key. Raises CorruptObject for a key of anything else."""
        prefix = self.gradients(rank, round)
        parts = _OF_A_BATCH.match(key.removeprefix(prefix.key)) if key.startswith(prefix.key) else None
        if parts is None:
            raise CorruptObject(f"s3://{prefix.bucket}/{key} is no place of a gradient of rank {rank}, round {round}")
        return int(parts[1]), int(parts[2])

    def partial(self, rank: int, round: int, incarnation: int, level: int, group: int) -> Place:
        """The mean over one group of gradients (level 1) or of such means, as a reducer wrote it."""
        name = f"{_number(level)}-{_number(group, 4)}"
        return self._in_peer(rank, f"partials/{_round(round)}-{_number(incarnation)}/{name}", "expiring")

    def moments(self, rank: int, round: int) -> Place:
        """What the optimizer of a peer's workers begins `round` with. Every process of that rank writes the same."""
        return self._in_peer(rank, f"moments/{_round(round)}/optimizer", "expiring")

    def all_moments(self, rank: int) -> Place:
        """The prefix under which these lie, for listing."""
        return self._in_peer(rank, "moments/", "expiring")

    def passing_of(self, rank: int) -> Place:
        """The prefix under which all lies in a peer's bucket that no later round needs, for listing."""
        return self._in_peer(rank, "", "expiring")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form

    @classmethod
    def from_dict(cls, value: object) -> Places:
        """Inverse of `to_dict`. Raises CorruptObject."""
        return jsonform.from_dict(cls, value, "places")

    def _in_run(self, name: str) -> Place:
        return Place(self.run_bucket, f"runs/{self.run}/{name}", self.account)

    def _passing(self, name: str) -> Place:
        return Place(self.run_bucket, f"expiring/{self.run}/{name}", self.account)

    def _in_peer(self, rank: int, name: str, root: str = "runs") -> Place:
        if not 0 <= rank < len(self.peer_buckets):
            raise ValueError(f"rank {rank} has no bucket; the run has {len(self.peer_buckets)}")
        return Place(self.peer_buckets[rank], f"{root}/{self.run}/peers/{_rank(rank)}/{name}", self.account)


def spec_place(run: str, run_bucket: str, account: str | None = None) -> Place:
    """Where the run's configuration lies: the one place that is found before the table is known."""
    return Place(run_bucket, f"runs/{check_run(run)}/run.json", account)


def current_place(run_bucket: str, account: str | None = None) -> Place:
    """Which run the instances of a deployment are to take part in (`Current`); written by the user's side only."""
    return Place(run_bucket, "deployment/current.json", account)


def peer_exchange(run: str, rank: int) -> str:
    """The fan-out exchange to which a peer publishes once for everyone."""
    return f"peerless.{check_run(run)}.peer.{_number(rank)}"


def inbox(run: str, rank: int) -> str:
    """The queue in which a peer receives."""
    return f"peerless.{check_run(run)}.inbox.{_number(rank)}"


def pulse_exchange(run: str, rank: int) -> str:
    """The exchange that carries a peer's heartbeats, apart from what must not be lost."""
    return f"peerless.{check_run(run)}.pulse.{_number(rank)}"


def pulses(run: str, rank: int, connection: str) -> str:
    """The queue in which one connection of a peer, named by letters and digits, receives heartbeats."""
    if not connection.isalnum():
        raise ValueError(f"connection {connection!r} must be letters and digits")
    return f"peerless.{check_run(run)}.pulses.{_number(rank)}.{connection}"


def check_run(run: str) -> str:
    """`run` itself. Raises ValueError when it cannot be part of a key or queue name."""
    if not RUN_NAME.match(run):
        raise ValueError(f"run name {run!r} must be 1 to 63 letters, digits, hyphens or underscores")
    return run


def _rank(rank: int) -> str:
    return _number(rank, 4)


def _round(round: int) -> str:
    return _number(round, 6)


def _number(value: int, width: int = 1) -> str:
    if value < 0:
        raise ValueError(f"{value} cannot be part of a key; ranks, rounds, incarnations and batches start at 0")
    return f"{value:0{width}d}"
