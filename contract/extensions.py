"""The extension area of a frame (contract/wire.py): typed fields beyond the fixed ones, and what the known types say.

    extension:  u2 type, u1 flags (bit 0: must understand; other bits zero), u1 zero, u4 length, value

    type  must understand  value
       1  either           validation accuracy: f8, 0 to 1
       2  yes              shard table: 48 bytes a shard, for at least 1 shard:
                           u8 bytes in the payload, u8 bytes in the buffers, 32 bytes SHA-256 over both
       3  no               what a worker measured: f8 seconds per batch, u8 peak memory in bytes,
                           u1 flags (bit 0: cold start, bit 1: weights fetched from S3)
       4  yes              what a reducer added up: u8 peak memory in bytes, u4 items whose worker measured, u4 cold
                           starts, u4 fetched weights, f8 seconds per batch; u4 index of each item, at least one

The shards follow each other in the payload and in the buffers, with nothing between, so offsets need no place in the
table and shards cannot overlap. A table takes at most what the extension area does, beside an accuracy: 1,364 shards.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.errors import CorruptObject

Blob = bytes | bytearray | memoryview

MAX_EXTENSION_BYTES = 65_536
#: Extension type: accuracy on the validation set, one f8 between 0 and 1.
VALIDATION_ACCURACY = 1
#: Extension type: where the shards of payload and buffers end, and their digests.
SHARD_TABLE = 2
#: Extension type: what a gradient worker measured.
MEASURED = 3
#: Extension type: which gradients a reducer added up.
REDUCED = 4
#: The most shards that a table has room for.
MAX_SHARDS = 1_364

_HEAD = struct.Struct("<HBBI")
_F8 = struct.Struct("<d")
_SHARD = struct.Struct("<QQ32s")
_MEASURED = struct.Struct("<dQB")
_REDUCED = struct.Struct("<QIIId")
_ITEM = struct.Struct("<I")
_MUST_UNDERSTAND = 1
_COLD_START, _WEIGHTS_FETCHED = 1, 2


@dataclass(frozen=True)
class Extension:
    """A typed field beyond the fixed ones; `type` below 65,536."""

    type: int
    must_understand: bool
    value: bytes


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a frame: where it lies in payload and buffers (bytes), and the SHA-256 of both parts together."""

    payload_offset: int
    payload_bytes: int
    buffers_offset: int
    buffers_bytes: int
    sha256: bytes

    def check(self, payload: Blob, buffers: Blob) -> None:
        """Raise CorruptObject unless these are the shard's bytes."""
        found = memoryview(payload).nbytes, memoryview(buffers).nbytes
        if found != (self.payload_bytes, self.buffers_bytes):
            raise CorruptObject(
                f"a shard has {found[0]} bytes of payload and {found[1]} of buffers, "
                f"but {self.payload_bytes} and {self.buffers_bytes} in its frame's table"
            )
        if _sha256(payload, buffers) != self.sha256:
            raise CorruptObject(f"a shard of {sum(found)} bytes does not match its frame's table")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a gradient worker found out about one invocation while it made a frame."""

    step_seconds: float
    """Forward and backward pass of one batch, the mean over the invocation's batches."""
    peak_bytes: int
    """Largest resident set of the worker's process so far."""
    cold_start: bool
    """Whether this was the process's first invocation."""
    weights_fetched: bool
    """Whether the weights came from S3 for it."""


def measured_extension(measured: Measured) -> Extension:
    """The extension that carries it."""
    flags = _COLD_START * measured.cold_start | _WEIGHTS_FETCHED * measured.weights_fetched
    return Extension(MEASURED, False, _MEASURED.pack(measured.step_seconds, measured.peak_bytes, flags))


def measured_of(extensions: Sequence[Extension]) -> Measured | None:
    """What the worker measured, where the frame says so."""
    value = _value(extensions, MEASURED)
    if value is None:
        return None
    seconds, peak_bytes, flags = _MEASURED.unpack(value)
    return Measured(
        step_seconds=seconds,
        peak_bytes=peak_bytes,
        cold_start=bool(flags & _COLD_START),
        weights_fetched=bool(flags & _WEIGHTS_FETCHED),
    )


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """Which gradients a mean is over, and what their workers measured."""

    items: tuple[int, ...]
    """Indices of the items, in the order in which they were added; at least one."""
    told: int
    """So many of their workers said what they measured; where none did, the rest is zero."""
    step_seconds: float
    """Forward and backward pass of one batch: the median of a group, and from there on the median of medians."""
    peak_bytes: int
    """The largest."""
    cold_starts: int
    weights_fetched: int


def reduced_extension(reduced: Reduced) -> Extension:
    """The extension that carries it. It must be understood: without it the frame would pass for one worker's."""
    told = reduced.peak_bytes, reduced.told, reduced.cold_starts, reduced.weights_fetched, reduced.step_seconds
    items = struct.pack(f"<{len(reduced.items)}I", *reduced.items)
    return Extension(REDUCED, True, _REDUCED.pack(*told) + items)


def reduced_of(extensions: Sequence[Extension]) -> Reduced | None:
    """What was added up, where the frame is a reducer's."""
    value = _value(extensions, REDUCED)
    if value is None:
        return None
    peak_bytes, told, cold_starts, weights_fetched, seconds = _REDUCED.unpack_from(value)
    return Reduced(
        items=tuple(index for (index,) in _ITEM.iter_unpack(value[_REDUCED.size :])),
        told=told,
        step_seconds=seconds,
        peak_bytes=peak_bytes,
        cold_starts=cold_starts,
        weights_fetched=weights_fetched,
    )


def accuracy_extension(accuracy: float) -> Extension:
    """The extension that carries a validation accuracy between 0 and 1."""
    return Extension(VALIDATION_ACCURACY, False, _F8.pack(accuracy))


def accuracy_of(extensions: Sequence[Extension]) -> float | None:
    """The validation accuracy, where there is one."""
    value = _value(extensions, VALIDATION_ACCURACY)
    return None if value is None else float(_F8.unpack(value)[0])


def table_extension(parts: Sequence[tuple[Blob, Blob]]) -> Extension:
    """The table of shards of which each has a part of the payload and one of the buffers.

    Raises ValueError for more than `MAX_SHARDS`, or for none.
    """
    if not 1 <= len(parts) <= MAX_SHARDS:
        raise ValueError(f"a frame has 1 to {MAX_SHARDS} shards, not {len(parts)}")
    rows = (_SHARD.pack(memoryview(p).nbytes, memoryview(b).nbytes, _sha256(p, b)) for p, b in parts)
    return Extension(SHARD_TABLE, True, b"".join(rows))


def table_of(extensions: Sequence[Extension]) -> tuple[ShardEntry, ...] | None:
    """The shard table, where there is one."""
    value = _value(extensions, SHARD_TABLE)
    if value is None:
        return None
    entries, payload_at, buffers_at = [], 0, 0
    for payload_bytes, buffers_bytes, sha256 in _SHARD.iter_unpack(value):
        entries.append(ShardEntry(payload_at, payload_bytes, buffers_at, buffers_bytes, sha256))
        payload_at += payload_bytes
        buffers_at += buffers_bytes
    return tuple(entries)


def pack(extensions: Sequence[Extension]) -> bytes:
    """The extension area. Raises ValueError for a type that is out of range."""
    return b"".join(_pack(extension) for extension in extensions)


def parse(view: memoryview) -> tuple[Extension, ...]:
    """Inverse of `pack`. Raises CorruptObject, also for an unknown type that must be understood."""
    found: list[Extension] = []
    at = 0
    while at < view.nbytes:
        if view.nbytes - at < _HEAD.size:
            raise CorruptObject("a frame's extensions end in the middle of one")
        type_, flags, reserved, length = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        if reserved or flags & ~_MUST_UNDERSTAND or length > view.nbytes - at:
            raise CorruptObject(f"a frame's extension of type {type_} is malformed")
        extension = Extension(type_, bool(flags & _MUST_UNDERSTAND), bytes(view[at : at + length]))
        at += length
        if type_ in _KNOWN:
            if any(other.type == type_ for other in found):
                raise CorruptObject(f"a frame's extension of type {type_} occurs twice")
            _KNOWN[type_](extension)
        elif extension.must_understand:
            raise CorruptObject(
                f"a frame needs its extension of type {type_} understood, which this build does not know"
            )
        found.append(extension)
    return tuple(found)


def _pack(extension: Extension) -> bytes:
    if not 0 <= extension.type < 65_536:
        raise ValueError(f"extension type {extension.type} is not below 65,536")
    flags = _MUST_UNDERSTAND * extension.must_understand
    return _HEAD.pack(extension.type, flags, 0, len(extension.value)) + extension.value


def _value(extensions: Sequence[Extension], type_: int) -> bytes | None:
    return next((extension.value for extension in extensions if extension.type == type_), None)


def _sha256(payload: Blob, buffers: Blob) -> bytes:
    digest = hashlib.sha256(payload)
    digest.update(buffers)
    return digest.digest()


def _check_accuracy(extension: Extension) -> None:
    if len(extension.value) != _F8.size or not 0.0 <= _F8.unpack(extension.value)[0] <= 1.0:
        raise CorruptObject("a frame's validation accuracy is not a number between 0 and 1")


def _check_table(extension: Extension) -> None:
    """A reader that skipped the table would look for another digest, so it must be understood."""
    if not extension.must_understand or not extension.value or len(extension.value) % _SHARD.size:
        raise CorruptObject(f"a frame's shard table of {len(extension.value)} bytes is malformed")


def _check_measured(extension: Extension) -> None:
    fits = len(extension.value) == _MEASURED.size
    seconds, _, flags = _MEASURED.unpack(extension.value) if fits else (math.nan, 0, 0)
    if not 0 <= seconds < math.inf or flags > (_COLD_START | _WEIGHTS_FETCHED):
        raise CorruptObject("what a frame's worker measured is malformed")


def _check_reduced(extension: Extension) -> None:
    items = len(extension.value) - _REDUCED.size
    seconds = _REDUCED.unpack_from(extension.value)[-1] if items >= 0 else math.nan
    if not extension.must_understand or items < _ITEM.size or items % _ITEM.size or not 0 <= seconds < math.inf:
        raise CorruptObject("what a frame says of the gradients in it is malformed")


#: Known extension types, each with the check of its value.
_KNOWN: dict[int, Callable[[Extension], None]] = {
    VALIDATION_ACCURACY: _check_accuracy,
    SHARD_TABLE: _check_table,
    MEASURED: _check_measured,
    REDUCED: _check_reduced,
}
