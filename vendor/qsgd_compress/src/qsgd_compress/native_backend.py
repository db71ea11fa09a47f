"""The arithmetic in C: native/kernels.inc, by way of native/module.c."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from .body import Body
from .errors import NonFiniteGradient
from .frame import GROUP_BYTES, HEADER_BYTES, Geometry, Norm
from .threads import Threads

if TYPE_CHECKING:
    from .protocols import F32, Unsealed

_BLOCK = 128  # values: ranges of decode and add start and end with one
_MOST_FRAMES = 1 << 16  # that the extension adds in one pass


class _Frame:
    """Bytes that C has filled, but for the header."""

    def __init__(self, native: ModuleType, frame: bytes, body_crc32c: int) -> None:
        self._native = native
        self._frame = frame
        self.body_crc32c = body_crc32c

    @property
    def body(self) -> memoryview:
        return memoryview(self._frame)[HEADER_BYTES:]

    def seal(self, header: bytes) -> bytes:
        self._native.put(self._frame, 0, header)
        return self._frame


class NativeBackend:
    """Calls into the extension module; it releases the GIL, so that threads share the work."""

    name = "native"

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def quantise(self, x: F32, geometry: Geometry, norm: Norm, seed: int, threads: Threads) -> Unsealed:
        native = self._native
        frame = native.allocate(HEADER_BYTES + geometry.scales_bytes + geometry.codes_bytes)
        log2_bucket = geometry.bucket_size.bit_length() - 1

        def work(first: int, last: int) -> tuple[int, int]:
            index, crc = native.quantise(frame, x, geometry.bits, log2_bucket, norm == "l2", seed, first, last)
            if index >= 0:
                raise NonFiniteGradient(index, float(x[index]))
            end = min(last * geometry.bucket_size, geometry.size)
            groups = -(-end // geometry.group_size) - first * geometry.bucket_size // geometry.group_size
            return crc, groups * GROUP_BYTES

        parts = threads.split(geometry.buckets, geometry.bucket_size, work)
        crc = native.crc32c(memoryview(frame)[HEADER_BYTES : HEADER_BYTES + geometry.scales_bytes])
        for following, length in parts:
            crc = native.combine(crc, following, length)
        return _Frame(native, frame, crc)

    def check(self, body: Body, threads: Threads) -> tuple[str | None, int]:
        geometry = body.geometry

        def work(first: int, last: int) -> tuple[int, int, int]:
            group, crc = self._native.check(body.codes, geometry.size, geometry.bits, first, last)
            return group, crc, (last - first) * GROUP_BYTES

        parts = threads.split(geometry.codes_bytes // GROUP_BYTES, geometry.group_size, work)
        bucket, crc = self._native.check_scales(body.scales, geometry.bits)
        for _, following, length in parts:
            crc = self._native.combine(crc, following, length)
        if bucket >= 0:
            return body.fault_of_scale(bucket), crc
        groups = [group for group, _, _ in parts if group >= 0]
        return body.fault_of_group(groups[0]) if groups else None, crc

    def decode(self, body: Body, out: F32, threads: Threads) -> None:
        frame = _tuple(body)
        threads.split(-(-out.size // _BLOCK), _BLOCK, lambda a, b: self._native.decode(frame, out, *_values(a, b, out)))

    def add(self, bodies: list[Body], acc: F32, threads: Threads) -> None:
        frames = tuple(_tuple(body) for body in bodies)

        def work(first: int, last: int) -> None:
            for at in range(0, len(frames), _MOST_FRAMES):
                self._native.add(frames[at : at + _MOST_FRAMES], acc, *_values(first, last, acc))

        threads.split(-(-acc.size // _BLOCK), _BLOCK, work)


def _tuple(body: Body) -> tuple[memoryview, memoryview, int, int, float]:
    geometry = body.geometry
    return body.scales, body.codes, geometry.bits, geometry.bucket_size.bit_length() - 1, body.weight


def _values(first: int, last: int, vector: F32) -> tuple[int, int]:
    return first * _BLOCK, min(last * _BLOCK, vector.size)
