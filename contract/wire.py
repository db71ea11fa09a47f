"""The frame: the one binary form in which gradients, updates and weights travel and are stored. No pickle anywhere.

A frame is header, payload, buffers, with nothing between and nothing after. Little-endian; u is
unsigned, f an IEEE float.

    offset  size  field
         0     4  magic, `PRL1`
         4     1  version, 1
         5     1  kind: 1 gradient (one batch), 2 update (a peer's contribution), 3 weights, 4 shard
                (the average of one shard of the parameters)
         6     2  flags: bit 0 loss present, bit 1 validation loss present; other bits zero
         8     4  u header bytes: everything before the payload
        12     4  u extension bytes, at most 65,536
        16     8  u payload bytes
        24     8  u buffers bytes
        32     8  u elements of the gradient or weights vector
        40     8  u samples: the weight in the mean
        48     8  u round
        56     8  u base round: the round that starts from the base weights
        64     4  u rank of the sender
        68     4  u incarnation of the sender
        72     4  u shard i …
        76     4  u … of n shards, n at least 1
        80     4  u parameter group, 0 for the one group
        84     1  u length of the run's name
        85     1  u length of the codec's name
        86     2  zero
        88     8  u seed of the encoding
        96     8  f loss, zero where absent
       104     8  f validation loss, zero where absent
       112    32  hash of the weights it was computed from (for weights: their own)
       144    32  digest: SHA-256 over the whole frame with digest and signature zeroed; with a shard table, over
                everything before the payload, likewise
       176    64  signature of the digest, zero where there is none
       240     …  name of the run, name of the codec (ASCII), extensions, zeros to a multiple of 16 bytes

Extensions and their types are in contract/extensions.py. A reader skips a type that it does not know, unless the
must-understand bit is set: then the frame is refused. Reserved and absent fields are zero and non-finite losses are
refused, so one content has one encoding. The padding keeps float32 payloads aligned, which NumPy is faster with.

**Shards.** A contribution may carry a shard table: then payload and buffers are cut into shards, each of which can be
fetched by its byte ranges and checked on its own. The table stands for payload and buffers in the digest: it holds
the SHA-256 of each shard, so the part before the payload proves itself (`verify_header`), every shard is proved by
that part (`ShardEntry.check`), and the digest, which commit records list and senders sign, binds all of it. Only a
frame of kind 2 that is not itself a shard has a table, and its shards fill payload and buffers exactly.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

from contract import extensions as ext
from contract.errors import CorruptObject, NonFiniteGradient
from contract.extensions import Extension as Extension
from contract.extensions import ShardEntry as ShardEntry
from contract.extensions import accuracy_extension as accuracy_extension
from contract.keys import RUN_NAME

MAGIC = b"PRL1"
VERSION = 1
_FIXED = struct.Struct("<4sBBHIIQQQQQQIIIIIBBHQdd32s32s64s")
_ALIGNMENT = 16
_DIGEST_AT, _SIGNATURE_AT = 144, 176
_SIGNATURE_BYTES = 64
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

    @cached_property
    def table(self) -> tuple[ShardEntry, ...] | None:
        """Where the shards lie, in order; None in a frame without a shard table."""
        return ext.table_of(self.extensions)

    @property
    def header_bytes(self) -> int:
        """Where the payload starts in the frame, in bytes. Raises ValueError for extensions that cannot be written."""
        return _padded(_FIXED.size + len(self.run) + len(self.codec) + len(ext.pack(self.extensions)))


@dataclass(frozen=True)
class Frame:
    """A checked frame; payload and buffers are views into the bytes that were decoded."""

    header: FrameHeader
    payload: memoryview
    buffers: memoryview


def encode(header: FrameHeader, payload: Blob, buffers: Blob = b"") -> bytes:
    """The frame's bytes; lengths and digest are filled in, whatever `header` says about them.

    Raises NonFiniteGradient for a loss that is NaN or infinite, ValueError for a field that does not fit its place, or
    for a shard table that is not this payload's and these buffers'.
    """
    for name, loss in (("loss", header.loss), ("validation loss", header.validation_loss)):
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteGradient(f"the {name} of round {header.round}, rank {header.rank} is {loss}")
    payload, buffers = memoryview(payload).cast("B"), memoryview(buffers).cast("B")
    blank = _pack(replace(header, payload_bytes=payload.nbytes, buffers_bytes=buffers.nbytes))
    try:
        sent, _ = _parse(blank)  # what we send, everyone must be able to read
        digest = _digest(sent, blank, payload, buffers)
    except CorruptObject as error:
        raise ValueError(str(error)) from error
    leading = blank[:_DIGEST_AT] + digest + header.signature + blank[_FIXED.size :]
    return b"".join((leading, payload, buffers))


def encode_shards(header: FrameHeader, parts: Sequence[tuple[Blob, Blob]]) -> bytes:
    """A frame with a shard table: of each shard its part of the payload and its part of the buffers, in order.

    Raises as `encode` does, and ValueError for more than `extensions.MAX_SHARDS`.
    """
    others = tuple(extension for extension in header.extensions if extension.type != ext.SHARD_TABLE)
    header = replace(header, extensions=(*others, ext.table_extension(parts)))
    return encode(header, b"".join(p for p, _ in parts), b"".join(b for _, b in parts))


def signed(frame: Blob, signature: bytes) -> bytes:
    """The same frame, or leading part of one, with another signature. Raises CorruptObject, ValueError."""
    view = memoryview(frame).cast("B")
    _parse(view)
    if len(signature) != _SIGNATURE_BYTES:
        raise ValueError(f"a signature has {_SIGNATURE_BYTES} bytes, not {len(signature)}")
    return b"".join((view[:_SIGNATURE_AT], signature, view[_SIGNATURE_AT + _SIGNATURE_BYTES :]))


def decode(
    blob: Blob, *, expected_elements: int | None, expected_buffers_bytes: int | None, digest: str | None = None
) -> Frame:
    """Check a whole frame and give views of its parts; nothing is copied.

    `expected_elements` and `expected_buffers_bytes` are what the receiver's model wants, None where any will do;
    `digest` is the announced one. Raises CorruptObject.
    """
    view = memoryview(blob).cast("B")
    header, header_bytes = _parse(view)
    total = header_bytes + header.payload_bytes + header.buffers_bytes
    if view.nbytes != total:
        raise CorruptObject(f"a frame says that it has {total} bytes, but has {view.nbytes}")
    if expected_elements is not None and header.elements != expected_elements:
        raise CorruptObject(f"a frame has {header.elements} elements, expected {expected_elements}")
    if expected_buffers_bytes is not None and header.buffers_bytes != expected_buffers_bytes:
        raise CorruptObject(f"a frame has {header.buffers_bytes} bytes of buffers, expected {expected_buffers_bytes}")
    if digest is not None and header.digest != digest:
        raise CorruptObject(f"a frame has the digest {header.digest}, announced was {digest}")
    end = header_bytes + header.payload_bytes
    payload, buffers = view[header_bytes:end], view[end:]
    if _digest(header, bytes(view[:header_bytes]), payload, buffers).hex() != header.digest:
        raise CorruptObject(f"a frame of {total} bytes does not match its own digest {header.digest}")
    return Frame(header, payload, buffers)


def decode_header(blob: Blob) -> FrameHeader:
    """The header of a whole frame, or of its leading part alone (as a claim-check message carries it).

    The digest is not verified: `decode` does that with the whole frame. Raises CorruptObject.
    """
    view = memoryview(blob).cast("B")
    header, header_bytes = _parse(view)
    if view.nbytes not in (header_bytes, header_bytes + header.payload_bytes + header.buffers_bytes):
        raise CorruptObject(f"{view.nbytes} bytes are neither a frame's header ({header_bytes} bytes) nor all of it")
    return header


def verify_header(leading: Blob) -> FrameHeader:
    """The header of the leading part of a frame with a shard table, its digest checked. Raises CorruptObject."""
    view = memoryview(leading).cast("B")
    header, header_bytes = _parse(view)
    if header.table is None or view.nbytes != header_bytes:
        raise CorruptObject(f"{view.nbytes} bytes are not the leading part of a frame with shards")
    if _hash_leading(bytes(view)).hexdigest() != header.digest:
        raise CorruptObject(f"the leading part of a frame does not match its own digest {header.digest}")
    return header


def header_part(blob: Blob) -> bytes:
    """The leading part of a frame, which a claim-check message carries. Raises CorruptObject."""
    view = memoryview(blob).cast("B")
    _, header_bytes = _parse(view)
    return bytes(view[:header_bytes])


def _pack(header: FrameHeader) -> bytes:
    """The header part with digest and signature zeroed. Raises ValueError."""
    run, codec = header.run.encode(), header.codec.encode()
    extensions = ext.pack(header.extensions)
    flags = _HAS_LOSS * (header.loss is not None) | _HAS_VALIDATION_LOSS * (header.validation_loss is not None)
    if not _HEX.match(header.base_weights) or len(header.signature) != _SIGNATURE_BYTES:
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


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _digest(header: FrameHeader, leading: bytes, payload: memoryview, buffers: memoryview) -> bytes:
    """What the frame's digest must be. Raises CorruptObject when a shard does not match the table."""
    if header.table is not None:
        for entry in header.table:
            payload_part = payload[entry.payload_offset : entry.payload_offset + entry.payload_bytes]
            entry.check(payload_part, buffers[entry.buffers_offset : entry.buffers_offset + entry.buffers_bytes])
        return _hash_leading(leading).digest()
    digest = _hash_leading(leading)
    digest.update(payload)
    digest.update(buffers)
    return digest.digest()


def _hash_leading(leading: bytes) -> hashlib._Hash:
    digest = hashlib.sha256(leading[:_DIGEST_AT])
    digest.update(bytes(_FIXED.size - _DIGEST_AT))
    digest.update(leading[_FIXED.size :])
    return digest


def _parse(blob: Blob) -> tuple[FrameHeader, int]:
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
