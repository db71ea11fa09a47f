"""Codecs of a gradient: float32 values to bytes and back; the only importer of the vendored qsgd_compress.

n is the number of values, a 1-D contiguous float32 array.

    name   bytes      form
    none   4 n        little-endian float32, bit for bit
    fp16   2 n        little-endian float16, rounded to nearest; values beyond ±65,504 become ±65,504
    qsgd8  about n    QSGD with 127 levels, buckets of 512 scaled by their largest magnitude (unbiased)
    qsgd4  about n/2  QSGD with 7 levels, likewise

fp16 saturates because one large value must not stop a training run, and because infinity would poison every mean that
it enters; gradients that need more range want `none` or `qsgd8`. Only QSGD uses the seed: its rounding is random, and
peers and rounds must not share one, or their errors add up instead of averaging out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import qsgd_compress
from numpy.typing import NDArray

from contract.errors import ConfigError, CorruptObject, NonFiniteGradient

Blob = bytes | bytearray | memoryview
F32 = NDArray[np.float32]

NAMES = ("none", "fp16", "qsgd8", "qsgd4")
#: Values converted at a time, so that temporary arrays stay small whatever the model's size.
_CHUNK = 1 << 18
_FP16_MAX = 65_504.0
#: Values that share a scale. A vector that is cut at multiples of this loses nothing by it.
BUCKET = 512


class GradientCodec(Protocol):
    """One codec. Errors leave `out` and `acc` as they were."""

    @property
    def name(self) -> str:
        """Its name in configurations and frames."""
        ...

    def encoded_bytes(self, size: int) -> int:
        """How many bytes `encode` gives for `size` values, whatever they are."""
        ...

    def encode(self, x: F32, seed: int) -> bytes:
        """Bytes of `x` (n,). Raises NonFiniteGradient, naming the first NaN or infinity."""
        ...

    def decode(self, blob: Blob, expected_size: int, out: F32 | None = None) -> F32:
        """The (expected_size,) values, in `out` where it is given. Raises CorruptObject."""
        ...

    def check(self, blob: Blob, expected_size: int) -> None:
        """Return where `decode` would give finite values, without making them. Raises CorruptObject."""
        ...

    def accumulate(self, blob: Blob, acc: F32, weight: float) -> None:
        """acc (n,) += weight * decode(blob, n), in float32 and without a decoded copy. Raises CorruptObject."""
        ...

    def accumulate_many(self, blobs: Sequence[Blob], acc: F32, weights: Sequence[float]) -> None:
        """What `accumulate` of each blob in turn gives, bit for bit, in fewer passes over `acc`. Raises CorruptObject
        before anything is added."""
        ...


@dataclass(frozen=True)
class _Plain:
    """Values as they are, in a floating-point type that NumPy knows."""

    name: str
    dtype: np.dtype[np.floating]

    def encoded_bytes(self, size: int) -> int:
        return size * self.dtype.itemsize

    def encode(self, x: F32, seed: int) -> bytes:
        _check_vector(x, "x")
        narrow = self.dtype.itemsize == 2
        encoded = np.empty(x.size if narrow else 0, self.dtype)
        for start in range(0, x.size, _CHUNK):
            part = x[start : start + _CHUNK]
            finite = np.isfinite(part)
            if not finite.all():
                at = start + int(np.argmin(finite))
                raise NonFiniteGradient(f"the gradient is not finite: value {at} is {x[at]}")
            if narrow:
                encoded[start : start + _CHUNK] = np.clip(part, -_FP16_MAX, _FP16_MAX)
        return encoded.tobytes() if narrow else raw(x).tobytes()

    def decode(self, blob: Blob, expected_size: int, out: F32 | None = None) -> F32:
        values = self._open(blob, expected_size)
        if out is None:
            return values.astype(np.float32)
        _check_vector(out, "out", expected_size)
        out[:] = values
        return out

    def check(self, blob: Blob, expected_size: int) -> None:
        self._open(blob, expected_size)

    def accumulate(self, blob: Blob, acc: F32, weight: float) -> None:
        self.accumulate_many([blob], acc, [weight])

    def accumulate_many(self, blobs: Sequence[Blob], acc: F32, weights: Sequence[float]) -> None:
        _check_vector(acc, "acc")
        for weight in weights:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of a gradient must be finite, not {weight}")
        opened = [self._open(blob, acc.size) for blob in blobs]
        factors = [np.float32(weight) for weight in weights]
        for start in range(0, acc.size, _CHUNK):
            part = acc[start : start + _CHUNK]
            for values, factor in zip(opened, factors, strict=True):
                part += values[start : start + _CHUNK].astype(np.float32) * factor

    def _open(self, blob: Blob, expected_size: int) -> NDArray[np.floating]:
        view = memoryview(blob).cast("B")
        if view.nbytes != expected_size * self.dtype.itemsize:
            raise CorruptObject(
                f"a {self.name} payload has {view.nbytes} bytes; "
                f"{expected_size} values take {expected_size * self.dtype.itemsize}"
            )
        values: NDArray[np.floating] = np.frombuffer(view, self.dtype)
        for start in range(0, expected_size, _CHUNK):
            if not np.isfinite(values[start : start + _CHUNK]).all():
                raise CorruptObject(f"a {self.name} payload holds NaN or infinity")
        return values


@dataclass(frozen=True)
class _Qsgd:
    """QSGD (Alistarh et al. 2017) by the vendored codec; maximum norm, because L2 has four times its error."""

    name: str
    bits: int
    bucket_size: int = BUCKET

    def encoded_bytes(self, size: int) -> int:
        """A header, a scale for each bucket, and codes in groups of 64 bytes."""
        return 40 + 4 * -(-size // self.bucket_size) + 64 * -(-size * self.bits // 512)

    def encode(self, x: F32, seed: int) -> bytes:
        with _our_errors():
            return qsgd_compress.encode(x, self.bits, self.bucket_size, "max", seed)

    def decode(self, blob: Blob, expected_size: int, out: F32 | None = None) -> F32:
        if out is not None:
            _check_vector(out, "out", expected_size)
        with _our_errors():
            self._check_bits(blob)
            return qsgd_compress.decode(blob, expected_size, out)

    def check(self, blob: Blob, expected_size: int) -> None:
        with _our_errors():
            self._check_bits(blob)
            qsgd_compress.check(blob, expected_size)

    def accumulate(self, blob: Blob, acc: F32, weight: float) -> None:
        self.accumulate_many([blob], acc, [weight])

    def accumulate_many(self, blobs: Sequence[Blob], acc: F32, weights: Sequence[float]) -> None:
        with _our_errors():
            for blob in blobs:
                self._check_bits(blob)
            qsgd_compress.accumulate_many(blobs, acc, weights)

    def _check_bits(self, blob: Blob) -> None:
        bits = qsgd_compress.inspect(blob).bits
        if bits != self.bits:
            raise CorruptObject(f"a {self.name} payload is encoded with {bits} bits")


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except qsgd_compress.NonFiniteGradient as error:
        raise NonFiniteGradient(str(error)) from error
    except qsgd_compress.QsgdError as error:
        raise CorruptObject(f"a QSGD payload cannot be decoded: {error}") from error


def _check_vector(x: F32, name: str, size: int | None = None) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 1 or not x.flags.c_contiguous:
        raise TypeError(f"{name} must be a contiguous one-dimensional NumPy array of float32")
    if size is not None and x.size != size:
        raise ValueError(f"{name} has room for {x.size} values, but {size} are expected")


def raw(values: F32) -> memoryview:
    """What codec `none` encodes finite `values` (n,) to; a view, because a copy of a whole model is what it spares."""
    return np.ascontiguousarray(values, "<f4").data.cast("B")


def codec(name: str) -> GradientCodec:
    """The codec called `name`. Raises ConfigError for an unknown one."""
    try:
        return CODECS[name]
    except KeyError as error:
        raise ConfigError(f"codec {name!r} is none of {', '.join(NAMES)}") from error


_ALL: tuple[GradientCodec, ...] = (
    _Plain("none", np.dtype("<f4")),
    _Plain("fp16", np.dtype("<f2")),
    _Qsgd("qsgd8", 8),
    _Qsgd("qsgd4", 4),
)
#: All codecs by name.
CODECS: Mapping[str, GradientCodec] = MappingProxyType({codec.name: codec for codec in _ALL})
if tuple(CODECS) != NAMES:
    raise ImportError(f"codecs {tuple(CODECS)} are registered where {NAMES} are promised")
