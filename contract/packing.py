"""How contributions and averages lie in S3: as they are, or made smaller without loss (`exchange.packing`).

zstd at its first level finds nothing that repeats in the codes of a gradient, and there is nothing; but some codes are
more frequent than others, and that makes `qsgd4` of normal gradients 19% smaller at more than 1 GB/s each way. It pays
where a line is slower than that. Digests and signatures are over what was packed, so packing proves nothing and needs
no proof: whatever bytes come out are checked like those that were never packed.
"""

from __future__ import annotations

from typing import Protocol

import zstandard

from contract.errors import CorruptObject

Blob = bytes | bytearray | memoryview
_LEVEL = 1


class Packing(Protocol):
    """One way. Stateless, so that threads may share it."""

    @property
    def in_ranges(self) -> bool:
        """Whether a range of what is stored is that range of what was packed."""
        ...

    def pack(self, data: Blob) -> bytes:
        """What is stored of `data`."""
        ...

    def room(self, most: int) -> int:
        """No more bytes than these are stored of so many."""
        ...

    def unpack(self, stored: bytes, most: int) -> bytes:
        """What was packed. Raises CorruptObject where that is none, or more than `most` bytes."""
        ...


class _AsItIs:
    in_ranges = True

    def pack(self, data: Blob) -> bytes:
        return bytes(data)

    def room(self, most: int) -> int:
        return most

    def unpack(self, stored: bytes, most: int) -> bytes:
        if len(stored) > most:
            raise CorruptObject(f"an object has {len(stored)} bytes, where {most} are the most")
        return stored


class _Zstd:
    in_ranges = False

    def pack(self, data: Blob) -> bytes:
        return zstandard.ZstdCompressor(level=_LEVEL).compress(data)

    def room(self, most: int) -> int:
        return most + most // 256 + 1_024  # ZSTD_COMPRESSBOUND, and a little

    def unpack(self, stored: bytes, most: int) -> bytes:
        """The frame says how much it holds, which is looked at before any memory is taken for it."""
        try:
            size = zstandard.frame_content_size(stored)
            if not 0 <= size <= most:
                raise CorruptObject(f"an object says that it holds {size} bytes, where {most} are the most")
            return zstandard.ZstdDecompressor().decompress(stored, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptObject(f"an object of {len(stored)} bytes is not packed as the run's are: {error}") from error


_PACKINGS: dict[str, Packing] = {"none": _AsItIs(), "zstd": _Zstd()}


def packing(name: str) -> Packing:
    """The packing that the configuration calls `name`."""
    return _PACKINGS[name]
