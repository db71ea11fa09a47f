"""The header of a frame: its fields, and its bytes as contract/wire.py writes them down; no payload."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from contract import extensions as ext
from contract.errors import CorruptObject
from contract.extensions import Extension, ShardEntry
from contract.keys import RUN_NAME

MAGIC = b"PRL1"
VERSION = 1
_FIXED = struct.Struct("<4sBBHIIQQQQQQIIIIIBBHQdd32s32s64s")
_ALIGNMENT = 16
DIGEST_AT, SIGNATURE_AT = 144, 176
SIGNATURE_BYTES = 64
FIXED_BYTES = _FIXED.size
#: No header is longer: two names, and extensions, padded.
MAX_HEADER_BYTES = -(-(FIXED_BYTES + 2 * 255 + ext.MAX_EXTENSION_BYTES) // _ALIGNMENT) * _ALIGNMENT
_HAS_LOSS, _HAS_VALIDATION_LOSS = 1, 2
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_CODEC_NAME = re.compile(r"[a-z0-9_]{1,32}\Z")

Blob = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame carries."""

    GRADIENT = 1
    UPDATE = 2
    WEIGHTS = 3
    SHARD = 4


@dataclass(frozen=True, kw_only=True)
class FrameHeader:
    """Everything about a frame but its contents. Hashes are 64 lower-case hexadecimal digits."""

    kind: Kind
    run: str
    round: int
    base_round: int
    base_weights: str
    rank: int
    incarnation: int
    shard: int = 0
    shards: int = 1
    group: int = 0
    samples: int
    loss: float | None = None
    validation_loss: float | None = None
    codec: str
    seed: int
    elements: int
    payload_bytes: int = 0
    buffers_bytes: int = 0
    extensions: tuple[Extension, ...] = ()
    digest: str = ""
    signature: bytes = bytes(64)

    @property
    def validation_accuracy(self) -> float | None:
        """Accuracy on the validation set (0 to 1), where the sender validated."""
        return ext.accuracy_of(self.extensions)

    @property
    def measured(self) -> ext.Measured | None:
        """What the gradient worker that made the frame measured, where it says so."""
        return ext.measured_of(self.extensions)

    @property
    def reduced(self) -> ext.Reduced | None:
        """Which gradients are in it, where it is a reducer's mean."""
        return ext.reduced_of(self.extensions)

    @cached_property
    def table(self) -> tuple[ShardEntry, ...] | None:
        """Where the shards lie, in order; None in a frame without a shard table."""
        return ext.table_of(self.extensions)

    @property
    def header_bytes(self) -> int:
        """Where the payload starts in the frame, in bytes. Raises ValueError for extensions that cannot be written."""
        return header_length(self.run, self.codec, self.extensions)


def header_length(run: str, codec: str, extensions: Sequence[Extension]) -> int:
    """Bytes of a frame before its payload. Raises ValueError for extensions that cannot be written."""
    return _padded(_FIXED.size + len(run) + len(codec) + len(ext.pack(extensions)))


def declared_length(blob: Blob) -> int:
    """How long a frame's header says it is, which any part of it tells that holds the fixed fields.

    Raises CorruptObject for what does not begin as a frame, or for more than any frame can have before its payload.
    """
    view = memoryview(blob).cast("B")
    if view.nbytes < _FIXED.size or bytes(view[: len(MAGIC)]) != MAGIC:
        raise CorruptObject(f"{view.nbytes} bytes that start with {bytes(view[:4])!r} are not the beginning of a frame")
    length = int.from_bytes(view[8:12], "little")
    if not _FIXED.size < length <= MAX_HEADER_BYTES:
        raise CorruptObject(f"a frame says that its header has {length} bytes")
    return length


def pack_header(header: FrameHeader) -> bytes:
    """The leading part of the frame that `header` was decoded from: the inverse of `decode_header`.

    Raises ValueError for a header that was never part of an encoded frame (it has no digest, for example).
    """
    blank, digest = pack_blank(header), bytes.fromhex(header.digest)
    if len(digest) != SIGNATURE_AT - DIGEST_AT:
        raise ValueError(f"a frame's digest has 64 hexadecimal digits, not {header.digest!r}")
    return blank[:DIGEST_AT] + digest + header.signature + blank[_FIXED.size :]


def pack_blank(header: FrameHeader) -> bytes:
    """The header part with digest and signature zeroed. Raises ValueError."""
    run, codec = header.run.encode(), header.codec.encode()
    extensions = ext.pack(header.extensions)
    flags = _HAS_LOSS * (header.loss is not None) | _HAS_VALIDATION_LOSS * (header.validation_loss is not None)
    if not _HEX.match(header.base_weights) or len(header.signature) != SIGNATURE_BYTES:
        raise ValueError("base_weights has 64 hexadecimal digits, and a signature 64 bytes")
    try:
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            header.kind,
            flags,
            _padded(_FIXED.size + len(run) + len(codec) + len(extensions)),
            len(extensions),
            header.payload_bytes,
            header.buffers_bytes,
            header.elements,
            header.samples,
            header.round,
            header.base_round,
            header.rank,
            header.incarnation,
            header.shard,
            header.shards,
            header.group,
            len(run),
            len(codec),
            0,
            header.seed,
            header.loss or 0.0,  # also turns -0.0 into 0.0: one content, one encoding
            header.validation_loss or 0.0,
            bytes.fromhex(header.base_weights),
            bytes(32),
            bytes(64),
        )
    except struct.error as error:
        raise ValueError(f"a field of the frame header is out of range: {error}") from error
    leading = fixed + run + codec + extensions
    return leading.ljust(_padded(len(leading)), b"\0")


def header_bytes(run: str, codec: str) -> int:
    """Length of the header of a frame of `run` with `codec` and without extensions."""
    return _padded(_FIXED.size + len(run.encode()) + len(codec.encode()))


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def parse(blob: Blob) -> tuple[FrameHeader, int]:
    """Header and its length; every length is checked against the bytes at hand first. Raises CorruptObject."""
    view = memoryview(blob).cast("B")
    if view.nbytes < _FIXED.size:
        raise CorruptObject(f"{view.nbytes} bytes are too few for a frame")
    (
        magic,
        version,
        kind,
        flags,
        header_bytes,
        extension_bytes,
        payload_bytes,
        buffers_bytes,
        elements,
        samples,
        round,
        base_round,
        rank,
        incarnation,
        shard,
        shards,
        group,
        run_bytes,
        codec_bytes,
        reserved,
        seed,
        loss,
        validation_loss,
        base_weights,
        digest,
        signature,
    ) = _FIXED.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise CorruptObject(f"not a frame of version {VERSION}: it starts with {magic!r}, version {version}")
    if kind not in set(Kind) or reserved or flags & ~(_HAS_LOSS | _HAS_VALIDATION_LOSS):
        raise CorruptObject(f"a frame of kind {kind} with flags {flags:#x} is not understood")
    if extension_bytes > ext.MAX_EXTENSION_BYTES:
        raise CorruptObject(
            f"a frame has {extension_bytes} bytes of extensions; at most {ext.MAX_EXTENSION_BYTES} are read"
        )
    used = _FIXED.size + run_bytes + codec_bytes + extension_bytes
    if header_bytes != _padded(used) or header_bytes > view.nbytes or any(view[used:header_bytes]):
        raise CorruptObject(f"a frame's header of {header_bytes} bytes does not fit its parts")
    if not 0 <= shard < shards:
        raise CorruptObject(f"a frame is shard {shard} of {shards}")
    codec_at = _FIXED.size + run_bytes
    extensions_at = codec_at + codec_bytes
    header = FrameHeader(
        kind=Kind(kind),
        run=_name(view[_FIXED.size : codec_at], RUN_NAME, "run"),
        round=round,
        base_round=base_round,
        base_weights=base_weights.hex(),
        rank=rank,
        incarnation=incarnation,
        shard=shard,
        shards=shards,
        group=group,
        samples=samples,
        loss=_optional(loss, bool(flags & _HAS_LOSS)),
        validation_loss=_optional(validation_loss, bool(flags & _HAS_VALIDATION_LOSS)),
        codec=_name(view[codec_at:extensions_at], _CODEC_NAME, "codec"),
        seed=seed,
        elements=elements,
        payload_bytes=payload_bytes,
        buffers_bytes=buffers_bytes,
        extensions=ext.parse(view[extensions_at:used]),
        digest=digest.hex(),
        signature=signature,
    )
    _check_table(header)
    return header, header_bytes


def _check_table(header: FrameHeader) -> None:
    if header.table is None:
        return
    if header.kind is not Kind.UPDATE or header.shards != 1:
        raise CorruptObject(f"a frame of kind {header.kind.name}, shard of {header.shards}, cannot have a shard table")
    held = sum(e.payload_bytes for e in header.table), sum(e.buffers_bytes for e in header.table)
    if held != (header.payload_bytes, header.buffers_bytes):
        raise CorruptObject(
            f"a frame's shards hold {held[0]} bytes of payload and {held[1]} of buffers, "
            f"but the frame {header.payload_bytes} and {header.buffers_bytes}"
        )


def _name(raw: memoryview, pattern: re.Pattern[str], what: str) -> str:
    name = bytes(raw).decode("ascii", "replace")
    if not pattern.match(name):
        raise CorruptObject(f"a frame's {what} cannot be named {name!r}")
    return name


def _optional(value: float, present: bool) -> float | None:
    if not math.isfinite(value) or (not present and value != 0.0):
        raise CorruptObject(f"a frame carries the loss {value}")
    return value if present else None
