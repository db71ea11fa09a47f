"""The records by which peers agree, in their JSON form: claims, commits, results, the stop and the peers' reports.

`to_json` gives canonical bytes, ready for the store; `from_json` is strict (CorruptObject). How they are written, and
what an unclear answer means, is in peer_agent/records.py. `Current` alone is not the peers': the user's side writes it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from contract import jsonform, keys
from contract.errors import CorruptObject
from contract.used import Used


class Record:
    """Base of all records: JSON round trip and version check."""

    VERSION: ClassVar[int] = 1
    NAME: ClassVar[str] = "record"

    def to_json(self) -> bytes:
        """Canonical JSON bytes. Raises NonFiniteGradient for NaN or infinity."""
        return jsonform.dumps(jsonform.to_dict(self))

    @classmethod
    def from_json(cls, blob: bytes | bytearray | memoryview | str) -> Self:
        """Inverse of `to_json`. Raises CorruptObject for an unknown version, and for fields that do not fit."""
        value = jsonform.loads(blob, cls.NAME)
        version = value.get("version")
        if type(version) is not int or version != cls.VERSION:
            raise CorruptObject(f"{cls.NAME} has version {version!r}; this build reads version {cls.VERSION}")
        return jsonform.from_dict(cls, value, cls.NAME)


@dataclass(frozen=True, kw_only=True)
class MemberRef:
    """A process that holds a rank: (rank, incarnation). Taking over a rank raises its incarnation."""

    rank: int
    incarnation: int


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """One contribution that a commit lists: where its frame is, its digest (hex), and its weight in the mean."""

    rank: int
    incarnation: int
    key: str
    digest: str
    samples: int
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Commit(Record):
    """The one outcome of a round: exactly these contributions, averaged in rank order.

    Raises ValueError when contributors or members are not in rank order with each rank once.
    """

    NAME: ClassVar[str] = "commit record"

    version: int = 1
    run: str
    round: int
    algorithm: str = "gradient_averaging"
    base_weights: dict[str, str]
    """Hash (hex) of the weights that contributions were computed from, per parameter group; "0" is the one group."""
    contributors: tuple[Contributor, ...]
    members: tuple[MemberRef, ...]
    """Members of the next round."""
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    final: bool = False
    """True when training ends with this round."""
    extensions: dict[str, Any] = field(default_factory=dict)
    writer: MemberRef
    nonce: str
    signature: str = ""

    def __post_init__(self) -> None:
        _in_rank_order("contributors", [c.rank for c in self.contributors])
        _in_rank_order("members", [m.rank for m in self.members])


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """The weights after a round: their hash (hex), and where they lie if anybody needs them."""

    NAME: ClassVar[str] = "result record"

    version: int = 1
    run: str
    round: int
    weights_sha256: str
    bucket: str
    key: str
    writer: MemberRef
    nonce: str
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Member(Record):
    """The claim of a process on a rank."""

    NAME: ClassVar[str] = "member record"

    version: int = 1
    run: str
    rank: int
    peer_id: str
    incarnation: int
    public_keys: dict[str, str] = field(default_factory=dict)
    """Public keys by use."""
    role: str = "peer"
    nonce: str
    resources: dict[str, Any] = field(default_factory=dict)
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Stop(Record):
    """The common end of a run. In asynchronous mode `weights_sha256` names the final weights, which all adopt."""

    NAME: ClassVar[str] = "stop record"

    version: int = 1
    run: str
    reason: str
    round: int
    weights_sha256: str
    validation_loss: float | None = None
    writer: MemberRef
    nonce: str
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Record):
    """What a process that holds a rank says every second: that it lives, and which round it stands at."""

    NAME: ClassVar[str] = "heartbeat"

    version: int = 1
    run: str
    rank: int
    incarnation: int
    round: int
    """The round that it works on; for one that has fallen behind, the first that it has not applied."""
    silent: tuple[int, ...] = ()
    """Ranks whose heartbeats it should hear and does not; told to everyone where not everyone hears everyone."""
    leaving: bool = False
    """Whether it takes no further part than its round, and waits for a commit that drops it."""
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Reduced(Record):
    """All averages of a round's shards lie in S3: a message of the commit's writer, which nothing depends on."""

    NAME: ClassVar[str] = "word that a round is reduced"

    version: int = 1
    run: str
    round: int
    writer: MemberRef
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted(Record):
    """The writer's arithmetic has led it to other weights than the recorded ones, which it asks for.

    A message, and a marker in S3 that is created once.
    """

    NAME: ClassVar[str] = "wish for weights"

    version: int = 1
    run: str
    round: int
    """The round that starts from the weights."""
    weights_sha256: str
    writer: MemberRef
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """The state from which `round` starts: of the run as a whole, and of each member's own.

    Written once, after the objects that it names.
    """

    NAME: ClassVar[str] = "checkpoint record"

    version: int = 1
    run: str
    round: int
    weights_sha256: str
    """Hash of the weights that `round` starts from."""
    key: str
    """S3 key of the common state in the run's bucket."""
    digest: str
    """SHA-256 of that object, in hexadecimal."""
    members: tuple[MemberRef, ...]
    """Members of `round`; each leaves its own state beside the common one."""
    writer: MemberRef
    nonce: str
    signature: str = ""

    def __post_init__(self) -> None:
        _in_rank_order("members", [m.rank for m in self.members])


@dataclass(frozen=True, kw_only=True)
class PeerReport(Record):
    """What a peer tells the user's side at its end. Times in seconds, sizes in bytes."""

    NAME: ClassVar[str] = "peer report"

    version: int = 1
    run: str
    rank: int
    incarnation: int
    rounds: int
    epochs: int
    reason: str
    weights_sha256: str
    """Hash of the final round's weights."""
    model_sha256: str
    """Hash of the best weights, which are the ones saved."""
    best_validation_loss: float | None = None
    seconds_training: float
    bytes_sent: int
    bytes_received: int
    gradient_bytes_raw: int
    """Sum of this peer's gradients as float32."""
    gradient_bytes_encoded: int
    """The same gradients as they went over the wire."""
    lambda_invocations: int
    state_machine_executions: int
    frames_rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Messages that did not fit: by sender (a rank, or `unknown`), then by reason."""
    left_out: dict[str, int] = field(default_factory=dict)
    """In how many rounds aggregation took nothing of a rank's contribution, by rank."""
    clipped: dict[str, int] = field(default_factory=dict)
    """In how many rounds it scaled a rank's gradient down, by rank."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By stage: seconds, cpu_percent, peak_bytes, peak_rss_bytes, bytes_in, bytes_out."""
    estimated_usd: float | None = None
    """At most so much is this peer's share of the run's bill, in US dollars; None where no prices were known."""
    used: Used = field(default_factory=Used)
    """What the bill is made of."""
    error: str | None = None

    def rejected(self, reason: str) -> int:
        """Messages rejected for this reason, over all senders."""
        return sum(reasons.get(reason, 0) for reasons in self.frames_rejected.values())


@dataclass(frozen=True, kw_only=True)
class Current(Record):
    """The run that the instances of a deployment take part in, once each: whoever has left a report there is done.

    Raises ValueError for a name that no run can have.
    """

    NAME: ClassVar[str] = "record of the current run"

    version: int = 1
    run: str
    created: float
    """Seconds since the epoch."""

    def __post_init__(self) -> None:
        keys.check_run(self.run)


def _in_rank_order(what: str, ranks: list[int]) -> None:
    if any(rank < 0 for rank in ranks) or any(a >= b for a, b in itertools.pairwise(ranks)):
        raise ValueError(f"{what} must be in rank order with each rank once, not {ranks}")
