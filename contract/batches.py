"""Batches in S3: one safetensors object each, and a manifest per peer.

N samples of a batch, C channels, H x W pixels: `x` (N, C, H, W) float32 and `y` (N,) int64 for images; other data may
use other shapes, with the samples first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from contract import jsonform
from contract.errors import CorruptObject

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BatchRef:
    """One batch: `length` bytes from `offset` of the object at `key` in the peer's bucket; length None is the whole.

    `sha256` (hex) is over exactly those bytes.
    """

    index: int
    key: str
    samples: int
    sha256: str
    offset: int = 0
    length: int | None = None

    def __post_init__(self) -> None:
        if self.index < 0 or self.samples < 1 or self.offset < 0 or (self.length is not None and self.length < 1):
            raise ValueError(f"batch {self.index} of {self.samples} samples is no range of an object")
        if self.offset and self.length is None:
            raise ValueError(f"batch {self.index} starts at byte {self.offset} and needs a length")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; also one item of a state machine's map."""
        form: dict[str, Any] = jsonform.to_dict(self)
        return form

    @classmethod
    def from_dict(cls, value: object) -> BatchRef:
        """Inverse of `to_dict`. Raises CorruptObject."""
        return jsonform.from_dict(cls, value, "batch")


@dataclass(frozen=True)
class Share:
    """The batches that one invocation computes, in the order of the round; named by the first. Raises ValueError for
    none."""

    batches: tuple[BatchRef, ...]

    def __post_init__(self) -> None:
        if not self.batches:
            raise ValueError("an invocation computes at least one batch")

    @property
    def index(self) -> int:
        """Index of the first batch."""
        return self.batches[0].index

    @property
    def samples(self) -> int:
        """Samples of all batches."""
        return sum(batch.samples for batch in self.batches)

    def to_dict(self) -> dict[str, Any]:
        """One item of a state machine's map: the first batch, and under `more` the others, where there are any."""
        first, *others = (batch.to_dict() for batch in self.batches)
        return {**first, "more": others} if others else first


def share_count(batches: int, per_worker: int) -> int:
    """How many invocations `batches` batches take, at most `per_worker` each."""
    return -(-batches // per_worker)


def divide(batches: Sequence[BatchRef], count: int) -> tuple[Share, ...]:
    """`count` shares of consecutive batches whose sizes differ by one at most, larger ones first.

    Raises ValueError for more shares than batches.
    """
    size, larger = divmod(len(batches), count)
    starts = [rank * size + min(rank, larger) for rank in range(count + 1)]
    return tuple(Share(tuple(batches[start:end])) for start, end in pairwise(starts))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All batches of a peer; batch i is at position i. Raises ValueError where that does not hold."""

    rank: int
    batches: tuple[BatchRef, ...]

    def __post_init__(self) -> None:
        if [batch.index for batch in self.batches] != list(range(len(self.batches))):
            raise ValueError("a manifest numbers its batches from 0 without gaps")

    @property
    def samples(self) -> int:
        """Samples of the whole partition."""
        return sum(batch.samples for batch in self.batches)

    def chosen(self, positions: Iterable[int]) -> list[BatchRef]:
        """The batches at `positions`. Raises CorruptObject for one that there is not."""
        try:
            return [self.batches[position] for position in positions]
        except IndexError:
            raise CorruptObject(f"the manifest of rank {self.rank} has only {len(self.batches)} batches") from None

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        return jsonform.dumps({"version": _VERSION, **jsonform.to_dict(self)})

    @classmethod
    def from_json(cls, blob: bytes | bytearray | memoryview | str) -> Manifest:
        """Inverse of `to_json`. Raises CorruptObject."""
        value = jsonform.loads(blob, "manifest")
        version = value.pop("version", None)
        if version != _VERSION:
            raise CorruptObject(f"manifest has version {version!r}; this build reads version {_VERSION}")
        return jsonform.from_dict(cls, value, "manifest")


def encode_batch(x: Tensor, y: Tensor) -> bytes:
    """Safetensors bytes of `x` (N, …) and `y` (N, …). Raises ValueError when their sample counts differ or are 0."""
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise ValueError(f"a batch needs as many inputs as targets, not {tuple(x.shape)} and {tuple(y.shape)}")
    return safetensors.torch.save({"x": x.detach().contiguous(), "y": y.detach().contiguous()})


def opened(blob: bytes, batch: BatchRef) -> tuple[Tensor, Tensor]:
    """x (N, …) and y (N, …) of the batch that `batch` names. Raises CorruptObject for any other."""
    x, y = decode_batch(blob, batch.sha256)
    if len(y) != batch.samples:
        raise CorruptObject(f"{batch.key} holds {len(y)} samples, but the manifest says {batch.samples}")
    return x, y


def decode_batch(blob: bytes, sha256: str | None = None) -> tuple[Tensor, Tensor]:
    """Inverse of `encode_batch`: x (N, …), y (N, …). Raises CorruptObject, also when the digest differs."""
    if sha256 is not None and hashlib.sha256(blob).hexdigest() != sha256:
        raise CorruptObject(f"a batch of {len(blob)} bytes does not have the digest {sha256}")
    try:
        tensors = safetensors.torch.load(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptObject(f"a batch of {len(blob)} bytes is not a safetensors file: {error}") from error
    if tensors.keys() != {"x", "y"}:
        raise CorruptObject(f"a batch holds x and y, not {', '.join(sorted(tensors)) or 'nothing'}")
    x, y = tensors["x"], tensors["y"]
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
        raise CorruptObject(f"a batch needs as many inputs as targets, not {tuple(x.shape)} and {tuple(y.shape)}")
    return x, y
