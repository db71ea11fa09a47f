"""The frame's geometry, header and checksums. README.md specifies every byte.

0      4       5     6    7          8   16   24             32        36          40
"QSG1" version flags bits log2bucket n   seed payload bytes  body crc  header crc  scales  payload
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import google_crc32c
import numpy as np

from .errors import CorruptFrame, SizeMismatch

Norm: TypeAlias = Literal["max", "l2"]
Entropy: TypeAlias = Literal["zstd"] | None

MAGIC = b"QSG1"
VERSION = 1
HEADER_BYTES = 40
CRC_OFFSET = 36
LANES = 16
GROUP_BYTES = 4 * LANES
SMALLEST_BUCKET = 128
LARGEST_BUCKET = 1 << 16
LARGEST_SIZE = 1 << 48  # keeps every length far inside a signed 64-bit integer
ZSTD_BLOCK_BYTES = 1 << 20

_FIELDS = struct.Struct("<4sBBBBQQQI")
_CRC = struct.Struct("<I")
_NORM_L2 = 0b0000_0001
_SCALE_TYPE = 0b0000_0010  # 0: float32; 1 is reserved
_CODER_SHIFT = 2
_CODER_MASK = 0b0000_1100
_KNOWN_FLAGS = _NORM_L2 | _CODER_MASK
_CODERS: tuple[Entropy, ...] = (None, "zstd")


class Geometry:
    """Every length that follows from (size, bits, bucket_size); counts of values, or bytes where the name says so.

    A plain class, because each dataclass costs half a millisecond of import.
    """

    __slots__ = ("bits", "bucket_size", "buckets", "codes_bytes", "group_size", "levels", "scales_bytes", "size")

    def __init__(self, size: int, bits: int, bucket_size: int) -> None:
        self.size = size
        self.bits = bits
        self.bucket_size = bucket_size
        self.levels = (1 << (bits - 1)) - 1  # codes run from -levels to +levels: 7 at 4 bits, 127 at 8
        self.group_size = LANES * (32 // bits)  # values in sixteen 32-bit words: 128 at 4 bits, 64 at 8
        self.buckets = -(-size // bucket_size)
        self.scales_bytes = 4 * self.buckets
        self.codes_bytes = GROUP_BYTES * -(-size // self.group_size)


@dataclass(frozen=True, kw_only=True)
class FrameInfo:
    """A frame's header. `size` counts values; `payload_bytes` the codes as stored, after entropy coding."""

    version: int
    norm: Norm
    bits: int
    bucket_size: int
    entropy: Entropy
    size: int
    seed: int
    payload_bytes: int
    body_crc32c: int

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.size, self.bits, self.bucket_size)

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame, in bytes."""
        return HEADER_BYTES + self.geometry.scales_bytes + self.payload_bytes

    def pack(self) -> bytes:
        """The 40 header bytes, with the header's own checksum."""
        flags = (_NORM_L2 if self.norm == "l2" else 0) | _CODERS.index(self.entropy) << _CODER_SHIFT
        log2_bucket = self.bucket_size.bit_length() - 1
        fields = _FIELDS.pack(
            MAGIC,
            self.version,
            flags,
            self.bits,
            log2_bucket,
            self.size,
            self.seed,
            self.payload_bytes,
            self.body_crc32c,
        )
        return fields + _CRC.pack(crc32c(fields))


def crc32c(data: bytes | memoryview) -> int:
    # The C form of google-crc32c refuses a memoryview, and takes an array over the same memory without copying.
    return cast(int, google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


def view(blob: bytes | bytearray | memoryview) -> memoryview:
    """A flat read-only view of the blob's bytes, without copying."""
    try:
        return memoryview(blob).toreadonly().cast("B")
    except TypeError as error:
        raise TypeError("a frame must be bytes, a bytearray or a contiguous memoryview") from error


def read_header(frame: memoryview) -> FrameInfo:
    """The header at the start of `frame`, checked for itself; what follows it is not looked at."""
    if len(frame) < HEADER_BYTES:
        raise CorruptFrame(f"a frame has at least {HEADER_BYTES} bytes, this one {len(frame)}")
    header = bytes(frame[:HEADER_BYTES])
    magic, version, flags, bits, log2_bucket, size, seed, payload_bytes, body_crc = _FIELDS.unpack_from(header)
    if magic != MAGIC:
        raise CorruptFrame(f"not a QSGD frame: it begins with {magic!r}")
    if _CRC.unpack_from(header, CRC_OFFSET)[0] != crc32c(header[:CRC_OFFSET]):
        raise CorruptFrame("the header's checksum does not match")
    if version != VERSION:
        raise CorruptFrame(f"frame version {version} is unknown")
    coder = (flags & _CODER_MASK) >> _CODER_SHIFT
    if flags & ~_KNOWN_FLAGS or coder >= len(_CODERS):
        raise CorruptFrame(f"unknown flags 0x{flags:02x}")
    if bits not in (4, 8):
        raise CorruptFrame(f"{bits} bits a value are unknown: 4 or 8")
    if not SMALLEST_BUCKET.bit_length() <= log2_bucket + 1 <= LARGEST_BUCKET.bit_length():
        raise CorruptFrame(f"a bucket of 2**{log2_bucket} values is out of range")
    if size > LARGEST_SIZE:
        raise CorruptFrame(f"{size} values are more than a frame can hold")
    info = FrameInfo(
        version=version,
        norm="l2" if flags & _NORM_L2 else "max",
        bits=bits,
        bucket_size=1 << log2_bucket,
        entropy=_CODERS[coder],
        size=size,
        seed=seed,
        payload_bytes=payload_bytes,
        body_crc32c=body_crc,
    )
    if info.entropy is None and payload_bytes != info.geometry.codes_bytes:
        raise CorruptFrame(
            f"{size} values take {info.geometry.codes_bytes} payload bytes, the header says {payload_bytes}"
        )
    return info


def open_frame(frame: memoryview, expected_size: int) -> FrameInfo:
    """The header of a frame whose lengths and checksums all hold; nothing is allocated before the lengths are known."""
    info = read_header(frame)
    if info.size != expected_size:
        raise SizeMismatch(f"the frame holds {info.size} values, {expected_size} were expected")
    if len(frame) != info.frame_bytes:
        raise CorruptFrame(f"the frame should have {info.frame_bytes} bytes and has {len(frame)}")
    if crc32c(frame[HEADER_BYTES:]) != info.body_crc32c:
        raise CorruptFrame("the checksum of scales and payload does not match")
    return info
