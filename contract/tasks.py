"""What one gradient worker is asked, and what it answers: small JSON, never a tensor.

An event is `{"common": {...}, "batch": {...}, "retries": n}`. `common` is the same for all batches of a round, so that
a state machine carries it once and adds one item per invocation: a batch, with further ones under its `more` where an
invocation computes several. Weights, batches and results stay in S3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from contract import jsonform
from contract.batches import BatchRef, Share
from contract.errors import CorruptObject, PeerlessError
from contract.keys import Place, Places
from contract.local_steps import LocalSteps
from contract.modelspec import ModelSpec
from contract.seeds import public_seed

__all__ = [
    "PAYLOAD_LIMIT_BYTES",
    "Failure",
    "GradientAnswer",
    "GradientTask",
    "ModelSpec",
    "distributed_input",
    "gradient_seed",
    "inline_input",
    "items_json",
]

#: Step Functions' limit for the input and output of an execution and of each state, in bytes of UTF-8.
PAYLOAD_LIMIT_BYTES = 262_144
#: How Lambda begins what it says of an invocation whose process came to no answer.
_REQUEST = re.compile(r"RequestId: (\S+) Error: ")


@dataclass(frozen=True, kw_only=True)
class GradientTask:
    """One invocation's gradient at given weights: everything that the result depends on."""

    places: Places
    """Names of the run's buckets and keys."""
    rank: int
    """The peer that asks; its bucket holds the batch and receives the gradient."""
    round: int
    incarnation: int
    """The peer's incarnation, so that a successor never reads its predecessor's gradients."""
    model: ModelSpec
    weights_sha256: str
    """Name of the weights to compute with (64 hex digits)."""
    loss: str
    """Name of the loss (contract.objective)."""
    steps: LocalSteps | None = None
    """Steps that the worker takes, and their update in place of a gradient; None for a gradient."""
    precision: str = "float32"
    """Of the forward pass (contract/precision.py)."""
    codec: str
    """Codec of the gradient on its way to the peer."""
    seed: int
    """Seed of the round; each batch derives its own from it."""
    threads: int
    """torch threads, pinned because their number changes the bits of a sum."""
    channels_last: bool = False
    """Whether images have their channels last in memory, which changes the bits of a sum, too."""
    code_digest: str = ""
    """Digest of the user's own code; empty where there is none."""
    batch: BatchRef
    """The first batch, which names the result."""
    more: tuple[BatchRef, ...] = ()
    """Further batches; the result is the sample-weighted mean over all."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"a worker needs at least one thread, not {self.threads}")
        self.places.manifest(self.rank)  # raises ValueError for a rank without a bucket

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.places.run

    @property
    def weights(self) -> Place:
        """Where the weights lie."""
        return self.places.weights(self.weights_sha256)

    @property
    def batches(self) -> tuple[BatchRef, ...]:
        """All batches, in the order in which they are added up."""
        return (self.batch, *self.more)

    @property
    def batch_place(self) -> Place:
        """The object of which the first batch is the whole or a byte range."""
        return self.place_of(self.batch)

    def place_of(self, batch: BatchRef) -> Place:
        """The object of which `batch` is the whole or a byte range."""
        return Place(self.places.peer_buckets[self.rank], batch.key, self.places.account)

    @property
    def output(self) -> Place:
        """Where the gradient goes; the same for every attempt, so that a repeated one overwrites an equal gradient."""
        return self.places.gradient(self.rank, self.round, self.incarnation, self.batch.index)

    @property
    def batch_seed(self) -> int:
        """Seed of the first batch: dropout and random rounding differ between batches, not between attempts."""
        return self.seed_of(self.batch)

    def seed_of(self, batch: BatchRef) -> int:
        """Seed of `batch`, whichever invocation computes it."""
        return gradient_seed(self.seed, batch.index)

    def common_dict(self) -> dict[str, Any]:
        """The part of the event that all batches of a round share."""
        common: dict[str, Any] = jsonform.to_dict(self)
        del common["batch"], common["more"]
        return common

    def to_event(self, retries: int = 0) -> dict[str, Any]:
        """The whole event; `from_event` reads it back."""
        return {"common": self.common_dict(), "batch": Share(self.batches).to_dict(), "retries": retries}

    @classmethod
    def from_event(cls, event: object) -> GradientTask:
        """Raises CorruptObject naming the first field that doesn't fit."""
        common = event.get("common") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(common, dict):
            raise CorruptObject("the event of a gradient worker lacks `common`")
        batch, more = event.get("batch"), []
        if isinstance(batch, dict):
            batch = dict(batch)
            more = batch.pop("more", [])
        return jsonform.from_dict(cls, {**common, "batch": batch, "more": more}, "task")


@dataclass(frozen=True, kw_only=True)
class GradientAnswer:
    """What a worker answers once the gradient lies in S3; a few hundred bytes."""

    batch: int
    """Index of the first batch."""
    key: str
    """Key of the gradient's frame in the peer's bucket."""
    digest: str
    """The frame's own digest (64 hex digits)."""
    samples: int
    loss: float
    """Mean over the samples."""
    seconds: float
    """From the event's arrival to the stored result."""
    step_seconds: float
    """Forward and backward pass of one batch, the mean over the invocation's batches."""
    peak_bytes: int
    """Largest resident set of the worker process so far."""
    cold_start: bool
    """Whether this was the process's first invocation."""
    weights_fetched: bool
    """Whether the weights came from S3 for it, and not from a warm process or the machine's files."""
    retries: int = 0
    """How many attempts of the state machine came before this one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form

    @classmethod
    def from_dict(cls, value: object) -> GradientAnswer:
        """Raises CorruptObject naming the first field that doesn't fit."""
        return jsonform.from_dict(cls, value, "answer")


def gradient_seed(seed: int, batch: int) -> int:
    """Seed of batch `batch` in a round whose seed is `seed`; alike in a worker and in the peer's own process."""
    return public_seed(seed, "gradient", batch)


class Item(Protocol):
    """One item of a state machine's map."""

    def to_dict(self) -> dict[str, Any]:
        """Its JSON form."""


def inline_input(
    common: Mapping[str, Any], batches: Sequence[BatchRef | Share], reduce: Mapping[str, Any] | None = None
) -> str:
    """Input of an `inline_map` or `parallel` execution; `reduce` says how gradients are added up, where they are.

    Raises PeerlessError beyond 256 KiB.
    """
    values = {"common": common, "batches": [batch.to_dict() for batch in batches]}
    return _checked(values | ({} if reduce is None else {"reduce": reduce}), len(batches))


def distributed_input(common: Mapping[str, Any], items: Place, reduce: Mapping[str, Any] | None = None) -> str:
    """The same of a `distributed_map` execution whose items (`items_json`) lie at `items`."""
    values = {"common": common, "items": {"bucket": items.bucket, "key": items.key}}
    return _checked(values | ({} if reduce is None else {"reduce": reduce}), 0)


def items_json(items: Sequence[Item]) -> bytes:
    """The items of a `distributed_map`, as they are stored in S3."""
    return json.dumps([item.to_dict() for item in items], separators=(",", ":")).encode()


def _checked(values: Mapping[str, Any], batches: int) -> str:
    text = json.dumps(values, separators=(",", ":"))
    size = len(text.encode())
    if size > PAYLOAD_LIMIT_BYTES:
        remedy = f"; with {batches} batches a round use compute.state_machine = distributed_map" if batches else ""
        raise PeerlessError(
            f"the state machine's input has {size:,} bytes, but Step Functions takes {PAYLOAD_LIMIT_BYTES:,}{remedy}"
        )
    return text


@dataclass(frozen=True)
class Failure:
    """Why an invocation failed, as far as the state machine passed it on."""

    name: str
    """The error's class name, or Lambda's own name for a crash or a time-out."""
    message: str
    log: str = field(default="", compare=False)
    """Where the worker's output is: a file, of a local worker; on AWS the request, by which its lines can be found."""

    @classmethod
    def parse(cls, error: str, cause: str) -> Failure:
        """Read `error` and `cause` of a failed execution or task.

        AWS gives the class name as error and Lambda's JSON answer as cause. MiniStack names every error
        `Runtime.HandlerError` and puts the first 512 bytes of that answer, in a sentence of its own, where the
        message belongs.
        """
        answer = _error_object(cause)
        if answer is None:
            return cls(error, cause)
        answer = _error_object(str(answer["errorMessage"])) or answer
        message = str(answer["errorMessage"])
        request = _REQUEST.match(message)
        log = answer.get("log") or answer.get("requestId") or (request[1] if request else "")
        return cls(str(answer.get("errorType") or error), message, str(log))


def _error_object(text: str) -> dict[str, Any] | None:
    """The JSON object of an error that begins somewhere in `text`."""
    start = text.find('{"error')
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "errorMessage" in value else None
