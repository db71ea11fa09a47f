"""The optional zstd coding of a frame's codes: one zstd frame for each 2**20 bytes of codes, one after the other."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from .errors import CorruptFrame
from .frame import ZSTD_BLOCK_BYTES, Geometry
from .loading import NATIVE
from .threads import Threads

_CHECKSUM_BYTES = 4
_RLE_BLOCK, _RESERVED_BLOCK = 1, 3


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            "frames with entropy coding are read by the zstandard package: pip install 'qsgd-compress[zstd]'"
        ) from error
    return zstandard


def compress(codes: memoryview, bits: int, threads: Threads) -> list[bytes]:
    """The zstd frames of `codes`."""

    def frame(piece: memoryview) -> bytes:
        if NATIVE is not None:
            packed: bytes = NATIVE.compress(piece, bits)
            return packed
        from .huffman import zstd_frame

        return zstd_frame(np.frombuffer(piece, np.uint8), bits)

    def work(first: int, last: int) -> list[bytes]:
        return [frame(codes[at * ZSTD_BLOCK_BYTES : (at + 1) * ZSTD_BLOCK_BYTES]) for at in range(first, last)]

    blocks = -(-len(codes) // ZSTD_BLOCK_BYTES)
    return [block for part in threads.split(blocks, ZSTD_BLOCK_BYTES, work) for block in part]


def decompress(payload: memoryview, geometry: Geometry) -> bytearray:
    """The codes that the zstd frames hold, as words."""
    codes = _decompress(payload, geometry.codes_bytes)
    if geometry.bits == 4:
        if NATIVE is not None:
            NATIVE.separate(codes)
        else:
            from .huffman import separate

            separate(np.frombuffer(codes, np.uint8))
    return codes


def _decompress(payload: memoryview, codes_bytes: int) -> bytearray:
    """The `codes_bytes` bytes of codes; CorruptFrame for anything else. No block grows past its place."""
    zstandard = _zstandard()
    decompressor = zstandard.ZstdDecompressor()
    codes = bytearray()
    position = 0
    try:
        while len(codes) < codes_bytes:
            size = min(ZSTD_BLOCK_BYTES, codes_bytes - len(codes))
            rest = payload[position:]
            parameters = zstandard.get_frame_parameters(rest)
            if parameters.content_size != size or parameters.dict_id:
                raise CorruptFrame(f"the zstd frame at payload byte {position} does not hold {size} bytes of codes")
            length = _frame_length(rest, zstandard.frame_header_size(rest), parameters.has_checksum)
            block = decompressor.decompress(rest[:length], max_output_size=size, allow_extra_data=False)
            if len(block) != size:
                raise CorruptFrame(f"the zstd frame at payload byte {position} gave {len(block)} bytes, not {size}")
            codes += block
            position += length
    except zstandard.ZstdError as error:
        raise CorruptFrame(f"the zstd frame at payload byte {position} does not decompress") from error
    if position != len(payload):
        raise CorruptFrame(f"{len(payload) - position} bytes follow the last zstd frame")
    return codes


def _frame_length(rest: memoryview, header_bytes: int, has_checksum: bool) -> int:
    """The length of the zstd frame at the start of `rest`, from its block headers (RFC 8878, section 3.1.1.2)."""
    position = header_bytes
    while position + 3 <= len(rest):
        header = int.from_bytes(rest[position : position + 3], "little")
        kind = header >> 1 & 3
        if kind == _RESERVED_BLOCK:
            break
        position += 3 + (1 if kind == _RLE_BLOCK else header >> 3)
        if header & 1:
            return position + (_CHECKSUM_BYTES if has_checksum else 0)
    raise CorruptFrame("a zstd frame ends early")
