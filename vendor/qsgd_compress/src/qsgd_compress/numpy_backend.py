"""The arithmetic in NumPy: the form that is easy to read, and the one in use where the C part was not built.

Letters: n buckets, b values of a bucket, r pairs of rows, l = 16 lanes, g groups, k rows of a group, v values of a
range. Work runs in chunks of some 2**17 values, so that every intermediate stays in the second-level cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .body import Body
from .checksum import crc32c
from .errors import NonFiniteGradient
from .frame import HEADER_BYTES, LANES, Geometry, Norm
from .rounding import FRACTION_BITS, U32, bucket_keys, counters, hash_pairs, uniforms
from .threads import Threads

if TYPE_CHECKING:
    from .protocols import Unsealed

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]

CHUNK_VALUES = 1 << 17
_ONE = 1 << FRACTION_BITS  # one quantisation step in fixed point
_LARGEST = float(np.finfo(np.float32).max)
_INFINITY_BITS = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALL_SCALE = 2.0**-100  # below it 2**24 / scale would leave float32
_LIFT = 2.0**64  # exact for every value of such a bucket


def largest_scale(levels: int) -> np.float32:
    """The largest float32 whose product with `levels` is finite; no frame holds a larger scale."""
    return np.float32(_round_down(np.array([_LARGEST / levels]))[0])


def _round_down(x_n: F64) -> F32:
    """The nearest float32 at or below each non-negative value."""
    y_n = x_n.astype(np.float32)
    above_n = y_n.astype(np.float64) > x_n
    y_n[above_n] = np.nextafter(y_n[above_n], np.float32(0))
    return y_n


def _l2_norms(x_nb: F32) -> F64:
    """Square roots of float64 sums in the specified order: down the rows for each lane, then the lanes in halves."""
    n, b = x_nb.shape
    x_nrl = x_nb.reshape(n, b // LANES, LANES)
    sum_nl = np.zeros((n, LANES))
    square_nl = np.empty((n, LANES))
    for row in range(b // LANES):
        np.multiply(x_nrl[:, row], x_nrl[:, row], out=square_nl, dtype=np.float64)
        np.add(sum_nl, square_nl, out=sum_nl)
    width = LANES // 2
    while width:
        sum_nl = sum_nl[:, :width] + sum_nl[:, width:]
        width //= 2
    return np.sqrt(sum_nl[:, 0])


def scales_and_inverses(norm_n: F64, levels: int) -> tuple[F32, F32, NDArray[np.bool_]]:
    """The stored scale, the factor from value to fixed point, and which buckets are lifted by 2**64 first.

    The scale is rounded up and the factor down, so that no value of the bucket leaves [-levels, levels] and the inner
    loop needs no clamp.
    """
    top = largest_scale(levels)
    scale_n = np.minimum(norm_n / levels, float(top)).astype(np.float32)
    short_n = (scale_n.astype(np.float64) * levels < norm_n) & (scale_n < top)
    scale_n[short_n] = np.nextafter(scale_n[short_n], np.float32(np.inf))
    lifted_n = scale_n < _SMALL_SCALE
    divisor_n = scale_n.astype(np.float64)
    divisor_n[lifted_n] *= _LIFT
    empty_n = norm_n == 0
    divisor_n[empty_n] = 1.0
    factor_n = _ONE / divisor_n
    factor_n[scale_n == top] = levels * _ONE / _LARGEST
    factor_n[empty_n] = 0.0
    lifted_n[empty_n] = False
    return scale_n, _round_down(factor_n), lifted_n


class _Frame:
    """An array for the whole frame, filled but for the header."""

    def __init__(self, geometry: Geometry) -> None:
        codes_at = HEADER_BYTES + geometry.scales_bytes
        self._frame = np.empty(codes_at + geometry.codes_bytes, np.uint8)
        self.scale: F32 = self._frame[HEADER_BYTES:codes_at].view(np.float32)
        self.words_gl: U32 = self._frame[codes_at:].view(np.uint32).reshape(-1, LANES)

    @property
    def body(self) -> memoryview:
        return self._frame[HEADER_BYTES:].data

    @property
    def body_crc32c(self) -> int:
        return crc32c(self.body)

    def seal(self, header: bytes) -> bytes:
        self._frame[:HEADER_BYTES] = np.frombuffer(header, np.uint8)
        return self._frame.tobytes()


class NumpyBackend:
    """Work in chunks over ranges of buckets, each with the scratch of its thread."""

    name = "numpy"

    def quantise(self, x: F32, geometry: Geometry, norm: Norm, seed: int, threads: Threads) -> Unsealed:
        frame = _Frame(geometry)

        def work(first: int, last: int) -> None:
            Encoder(geometry, norm, seed).run(x, first, last, frame.scale, frame.words_gl)

        threads.split(geometry.buckets, geometry.bucket_size, work)
        return frame

    def check(self, body: Body, threads: Threads) -> tuple[str | None, int]:
        crc = crc32c(body.scales, body.codes)
        scale = np.frombuffer(body.scales, np.float32)
        # Of non-negative floats the order of the bits is that of the values; whatever has a sign is above them all.
        wrong = scale.view(np.uint32) > largest_scale(body.geometry.levels).view(np.uint32)
        if wrong.any():
            return body.fault_of_scale(int(np.argmax(wrong))), crc
        words_gl = _words_of(body)
        step = CHUNK_VALUES // body.geometry.group_size
        for start in range(0, len(words_gl), step):
            if _has_reserved(words_gl[start : start + step], body.geometry.bits):
                return body.fault_of_group(start), crc
        if not _is_padded(words_gl, body.geometry):
            return body.fault_of_group(len(words_gl) - 1), crc
        return None, crc

    def decode(self, body: Body, out: F32, threads: Threads) -> None:
        geometry = body.geometry

        def work(first: int, last: int) -> None:
            decoder = Decoder(CHUNK_VALUES)
            for start, stop in _chunks(first, last, geometry.bucket_size, out.size):
                decoder.write(body, start, out[start:stop])

        threads.split(geometry.buckets, geometry.bucket_size, work)

    def add(self, bodies: list[Body], acc: F32, threads: Threads) -> None:
        unit = max(body.geometry.bucket_size for body in bodies)

        def work(first: int, last: int) -> None:
            decoder = Decoder(CHUNK_VALUES)
            for start, stop in _chunks(first, last, unit, acc.size):
                for body in bodies:
                    decoder.add(body, start, acc[start:stop])

        threads.split(-(-acc.size // unit), unit, work)


def _chunks(first: int, last: int, unit: int, size: int) -> list[tuple[int, int]]:
    """Ranges of values that cover units [first, last) of `size` values, each of at most CHUNK_VALUES."""
    step = CHUNK_VALUES // unit * unit
    end = min(last * unit, size)
    return [(start, min(start + step, end)) for start in range(first * unit, end, step)]


class Encoder:
    """Quantises and packs ranges of buckets; holds the scratch of one thread."""

    def __init__(self, geometry: Geometry, norm: Norm, seed: int) -> None:
        self._geometry = geometry
        self._norm = norm
        self._seed = seed
        b = geometry.bucket_size
        self._chunk = max(1, min(CHUNK_VALUES // b, geometry.buckets))
        self._counter_p = counters(b)
        self._value_nb: F32 = np.empty((self._chunk, b), np.float32)
        self._fixed_nb: U32 = np.empty((self._chunk, b), np.uint32)
        self._uniform_nr2l: U32 = np.empty((self._chunk, b // (2 * LANES), 2, LANES), np.uint32)
        self._hash_np: U32 = np.empty((self._chunk, b // 2), np.uint32)
        self._spare_np: U32 = np.empty((self._chunk, b // 2), np.uint32)

    def run(self, x: F32, first: int, last: int, scale: F32, words_gl: U32) -> None:
        """Buckets [first, last) of `x` (size,) into a frame's `scale` (buckets,) and `words_gl` (groups, 16)."""
        geometry = self._geometry
        b = geometry.bucket_size
        groups_per_bucket = b // geometry.group_size
        for start in range(first, last, self._chunk):
            stop = min(start + self._chunk, last)
            values = x[start * b : stop * b]
            if values.size < (stop - start) * b:
                padded = np.zeros((stop - start) * b, np.float32)
                padded[: values.size] = values
                values = padded
            groups = words_gl[start * groups_per_bucket : stop * groups_per_bucket]
            with np.errstate(under="ignore"):  # whatever the caller has set: a tiny product is a zero here
                self._chunk_of(values.reshape(stop - start, b), start, scale[start:stop], groups)

    def _chunk_of(self, x_nb: F32, start: int, scale_n: F32, words_gl: U32) -> None:
        geometry = self._geometry
        n, b = x_nb.shape
        value_nb, fixed_nb = self._value_nb[:n], self._fixed_nb[:n]
        np.bitwise_and(x_nb.view(np.uint32), _MAGNITUDE, out=fixed_nb)
        peak_n = fixed_nb.max(axis=1)
        if peak_n.max() >= _INFINITY_BITS:
            at = int(np.argmax(fixed_nb.reshape(-1) >= _INFINITY_BITS))
            raise NonFiniteGradient(start * b + at, float(x_nb.reshape(-1)[at]))
        norm_n = peak_n.view(np.float32).astype(np.float64) if self._norm == "max" else _l2_norms(x_nb)
        scale_n[:], factor_n, lifted_n = scales_and_inverses(norm_n, geometry.levels)
        np.multiply(x_nb, factor_n[:, None], out=value_nb)
        if lifted_n.any():
            value_nb[lifted_n] = (x_nb[lifted_n] * np.float32(_LIFT)) * factor_n[lifted_n, None]
        np.copyto(fixed_nb.view(np.int32), value_nb, casting="unsafe")  # towards zero, as a C cast

        half = (n, b // (2 * LANES), LANES)
        hash_np, spare_np = self._hash_np[:n], self._spare_np[:n]
        low_n, high_n = bucket_keys(self._seed, start, n)
        hash_pairs(low_n, high_n, self._counter_p, hash_np, spare_np)
        uniform_nr2l = uniforms(hash_np.reshape(half), self._uniform_nr2l[:n], spare_np.reshape(half))
        np.add(fixed_nb, uniform_nr2l.reshape(n, b), out=fixed_nb)
        np.add(fixed_nb, np.uint32(geometry.levels * _ONE), out=fixed_nb)
        np.right_shift(fixed_nb, FRACTION_BITS, out=fixed_nb)
        _pack(fixed_nb.reshape(-1, geometry.group_size // LANES, LANES), geometry.bits, words_gl)


def _pack(codes_gkl: U32, bits: int, words_gl: U32) -> None:
    """Row k of a group into bits k * bits and up of its words; groups past the end of `words_gl` are dropped."""
    codes_gkl = codes_gkl[: len(words_gl)]
    words_gl[:] = codes_gkl[:, 0]
    for k in range(1, codes_gkl.shape[1]):
        row_gl: Any = codes_gkl[:, k]
        np.left_shift(row_gl, bits * k, out=row_gl)
        np.bitwise_or(words_gl, row_gl, out=words_gl)


def _has_reserved(words_gl: U32, bits: int) -> bool:
    if bits == 8:
        return bool((words_gl.view(np.uint8) == 0xFF).any())
    ones = words_gl & words_gl >> np.uint32(1)
    ones &= ones >> np.uint32(2)
    return bool((ones & np.uint32(0x11111111)).any())


def _is_padded(words_gl: U32, geometry: Geometry) -> bool:
    """Whether the codes after the last value are zero's."""
    used = geometry.size % geometry.group_size
    last_v = _unpack(words_gl[-1:], geometry.bits, np.empty(len(words_gl[-1:]) * geometry.group_size, np.uint32))
    return not used or bool((last_v[used:] == geometry.levels).all())


def _unpack(words_gl: U32, bits: int, out_v: U32) -> U32:
    """The codes of whole groups, in element order: `out_v` (groups * group_size,) uint32, returned."""
    codes_gkl = out_v.reshape(len(words_gl), 32 // bits, LANES)
    shift_k = np.arange(0, 32, bits, dtype=np.uint32)
    np.right_shift(words_gl[:, None, :], shift_k[:, None], out=codes_gkl)
    np.bitwise_and(out_v, np.uint32((1 << bits) - 1), out=out_v)
    return out_v


class Decoder:
    """Unpacks ranges of values; holds the scratch of one thread."""

    def __init__(self, values: int) -> None:
        # Room for whole groups of a last, partial range.
        self._code_v: U32 = np.empty(values + 128, np.uint32)
        self._value_v: F32 = np.empty(values + 128, np.float32)

    def write(self, body: Body, start: int, out_v: F32) -> None:
        """Values [start, start + out_v.size) of the frame into `out_v`; `start` is the first of a bucket."""
        with np.errstate(under="ignore"):
            out_v[:] = self._values(body, start, out_v.size, _scales_of(body, start, out_v.size))

    def add(self, body: Body, start: int, acc_v: F32) -> None:
        """acc_v += weight * values, with the product weight * scale rounded to float32 once for each bucket."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            step_n = (_scales_of(body, start, acc_v.size).astype(np.float64) * body.weight).astype(np.float32)
            np.add(acc_v, self._values(body, start, acc_v.size, step_n), out=acc_v)

    def _values(self, body: Body, start: int, size: int, step_n: F32) -> F32:
        geometry = body.geometry
        first, last = start // geometry.group_size, -(-(start + size) // geometry.group_size)
        padded = (last - first) * geometry.group_size
        code_v = _unpack(_words_of(body)[first:last], geometry.bits, self._code_v[:padded])
        value_v = self._value_v[:padded]
        np.copyto(value_v, code_v.view(np.int32), casting="unsafe")
        np.subtract(value_v, np.float32(geometry.levels), out=value_v)
        step_g = np.repeat(step_n, geometry.bucket_size // geometry.group_size)[: last - first]
        value_gv = value_v.reshape(last - first, geometry.group_size)
        np.multiply(value_gv, step_g[:, None], out=value_gv)
        return value_v[:size]


def _scales_of(body: Body, start: int, size: int) -> F32:
    b = body.geometry.bucket_size
    return np.frombuffer(body.scales, np.float32)[start // b : -(-(start + size) // b)]


def _words_of(body: Body) -> U32:
    return np.frombuffer(body.codes, np.uint32).reshape(-1, LANES)
