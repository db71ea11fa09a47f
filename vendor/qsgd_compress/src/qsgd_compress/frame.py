"""The frame's geometry, header and checksums. README.md specifies every byte.

0      4       5     6    7          8   16   24             32        36          40
"QSG1" version flags bits log2bucket n   seed payload bytes  body crc  header crc  scales  payload
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, TypeAlias

from .checksum import crc32c
from .errors import CorruptFrame, SizeMismatch

if TYPE_CHECKING:
    from .info import FrameInfo

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
    """Every length that follows from (size, bits, bucket_size); counts of values, or bytes where the name says so."""

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


class Header:
    """What the first 40 bytes say. `info` gives it as the public dataclass."""

    __slots__ = ("body_crc32c", "entropy", "geometry", "norm", "payload_bytes", "seed")

    def __init__(
        self, geometry: Geometry, norm: Norm, entropy: Entropy, seed: int, payload_bytes: int, body_crc32c: int
    ) -> None:
        self.geometry = geometry
        self.norm: Norm = norm
        self.entropy: Entropy = entropy
        self.seed = seed
        self.payload_bytes = payload_bytes
        self.body_crc32c = body_crc32c

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame, in bytes."""
        return HEADER_BYTES + self.geometry.scales_bytes + self.payload_bytes

    def pack(self) -> bytes:
        """The 40 bytes, with their own checksum."""
        geometry = self.geometry
        flags = (_NORM_L2 if self.norm == "l2" else 0) | _CODERS.index(self.entropy) << _CODER_SHIFT
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            flags,
            geometry.bits,
            geometry.bucket_size.bit_length() - 1,
            geometry.size,
            self.seed,
            self.payload_bytes,
            self.body_crc32c,
        )
        return fields + _CRC.pack(crc32c(fields))

    def info(self) -> FrameInfo:
        from .info import FrameInfo  # imported here: a dataclass costs a millisecond or two, and few callers inspect

        return FrameInfo(
            version=VERSION,
            norm=self.norm,
            bits=self.geometry.bits,
            bucket_size=self.geometry.bucket_size,
            entropy=self.entropy,
            size=self.geometry.size,
            seed=self.seed,
            payload_bytes=self.payload_bytes,
            body_crc32c=self.body_crc32c,
            frame_bytes=self.frame_bytes,
        )


def view(blob: bytes | bytearray | memoryview) -> memoryview:
    """A flat read-only view of the blob's bytes, without copying."""
    try:
        return memoryview(blob).toreadonly().cast("B")
    except TypeError as error:
        raise TypeError("a frame must be bytes, a bytearray or a contiguous memoryview") from error


def read_header(frame: memoryview) -> Header:
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
    geometry = Geometry(size, bits, 1 << log2_bucket)
    entropy = _CODERS[coder]
    if entropy is None and payload_bytes != geometry.codes_bytes:
        raise CorruptFrame(f"{size} values take {geometry.codes_bytes} payload bytes, the header says {payload_bytes}")
    return Header(geometry, "l2" if flags & _NORM_L2 else "max", entropy, seed, payload_bytes, body_crc)


def measure(frame: memoryview, expected_size: int) -> Header:
    """The header of a frame whose lengths all hold; nothing is allocated before they are known to."""
    header = read_header(frame)
    if header.geometry.size != expected_size:
        raise SizeMismatch(f"the frame holds {header.geometry.size} values, {expected_size} were expected")
    if len(frame) != header.frame_bytes:
        raise CorruptFrame(f"the frame should have {header.frame_bytes} bytes and has {len(frame)}")
    return header
