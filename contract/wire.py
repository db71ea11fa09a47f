"""The frame: the one binary form in which gradients, updates and weights travel and are stored. No pickle anywhere.

A frame is header, payload, buffers, with nothing between and nothing after. Little-endian; u is
unsigned, f an IEEE float.

    offset  size  field
         0     4  magic, `PRL1`
         4     1  version, 1
         5     1  kind: 1 gradient (of one batch, or a mean over several), 2 update (a peer's contribution),
                3 weights, 4 shard (the average of one shard of the parameters)
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
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract import extensions as ext
from contract.errors import CorruptObject, NonFiniteGradient
from contract.extensions import Extension as Extension
from contract.extensions import ShardEntry as ShardEntry
from contract.extensions import accuracy_extension as accuracy_extension
from contract.header import DIGEST_AT, FIXED_BYTES, pack_blank, parse
from contract.header import Blob as Blob
from contract.header import FrameHeader as FrameHeader
from contract.header import Kind as Kind
from contract.header import header_bytes as header_bytes
from contract.header import pack_header as pack_header


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
    blank = pack_blank(replace(header, payload_bytes=payload.nbytes, buffers_bytes=buffers.nbytes))
    try:
        sent, _ = parse(blank)  # what we send, everyone must be able to read
        digest = _digest(sent, blank, payload, buffers)
    except CorruptObject as error:
        raise ValueError(str(error)) from error
    leading = blank[:DIGEST_AT] + digest + header.signature + blank[FIXED_BYTES:]
    return b"".join((leading, payload, buffers))


def encode_shards(header: FrameHeader, parts: Sequence[tuple[Blob, Blob]]) -> bytes:
    """A frame with a shard table: of each shard its part of the payload and its part of the buffers, in order.

    Raises as `encode` does, and ValueError for more than `extensions.MAX_SHARDS`.
    """
    others = tuple(extension for extension in header.extensions if extension.type != ext.SHARD_TABLE)
    header = replace(header, extensions=(*others, ext.table_extension(parts)))
    return encode(header, b"".join(p for p, _ in parts), b"".join(b for _, b in parts))


def decode(
    blob: Blob,
    *,
    expected_elements: int | None,
    expected_buffers_bytes: int | None,
    digest: str | None = None,
    checked: bool = False,
) -> Frame:
    """Check a whole frame and give views of its parts; nothing is copied.

    `expected_elements` and `expected_buffers_bytes` are what the receiver's model wants, None where any will do;
    `digest` is the announced one. `checked`: the digest need not be computed, as these bytes have been decoded before
    and never left this process's memory, or another digest of what they hold is looked at. Raises CorruptObject.
    """
    view = memoryview(blob).cast("B")
    header, header_bytes = parse(view)
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
    if not checked and _digest(header, bytes(view[:header_bytes]), payload, buffers).hex() != header.digest:
        raise CorruptObject(f"a frame of {total} bytes does not match its own digest {header.digest}")
    return Frame(header, payload, buffers)


def decode_header(blob: Blob) -> FrameHeader:
    """The header of a whole frame, or of its leading part alone (as a claim-check message carries it).

    The digest is not verified: `decode` does that with the whole frame. Raises CorruptObject.
    """
    view = memoryview(blob).cast("B")
    header, header_bytes = parse(view)
    if view.nbytes not in (header_bytes, header_bytes + header.payload_bytes + header.buffers_bytes):
        raise CorruptObject(f"{view.nbytes} bytes are neither a frame's header ({header_bytes} bytes) nor all of it")
    return header


def verify_header(leading: Blob) -> FrameHeader:
    """The header of the leading part of a frame with a shard table, its digest checked. Raises CorruptObject."""
    view = memoryview(leading).cast("B")
    header, header_bytes = parse(view)
    if header.table is None or view.nbytes != header_bytes:
        raise CorruptObject(f"{view.nbytes} bytes are not the leading part of a frame with shards")
    if _hash_leading(bytes(view)).hexdigest() != header.digest:
        raise CorruptObject(f"the leading part of a frame does not match its own digest {header.digest}")
    return header


def header_part(blob: Blob) -> bytes:
    """The leading part of a frame, which a claim-check message carries. Raises CorruptObject."""
    view = memoryview(blob).cast("B")
    _, header_bytes = parse(view)
    return bytes(view[:header_bytes])


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
    digest = hashlib.sha256(leading[:DIGEST_AT])
    digest.update(bytes(FIXED_BYTES - DIGEST_AT))
    digest.update(leading[FIXED_BYTES:])
    return digest
