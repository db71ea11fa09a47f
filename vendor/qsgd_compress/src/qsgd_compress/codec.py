"""The public functions: arguments are checked here, lengths in frame.py, and a backend does the arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, get_args

import numpy as np

from .body import Body
from .checksum import crc32c
from .errors import CorruptFrame, SizeMismatch
from .frame import (
    HEADER_BYTES,
    LARGEST_BUCKET,
    LARGEST_SIZE,
    SMALLEST_BUCKET,
    Entropy,
    Geometry,
    Header,
    Norm,
    measure,
    read_header,
    view,
)
from .loading import NATIVE
from .threads import Threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .info import FrameInfo
    from .protocols import F32, Backend

Blob: TypeAlias = bytes | bytearray | memoryview


def _backend() -> Backend:
    if NATIVE is not None:
        from .native_backend import NativeBackend

        return NativeBackend(NATIVE)
    from .numpy_backend import NumpyBackend

    return NumpyBackend()


_BACKEND = _backend()


def backend() -> str:
    """Which form does the arithmetic: "native" (C) or "numpy". Both give the same bytes and values."""
    return _BACKEND.name


def encode(
    x: NDArray[np.float32],
    bits: int = 4,
    bucket_size: int = 512,
    norm: Norm = "max",
    seed: int = 0,
    entropy: Entropy = None,
    threads: int = 1,
) -> bytes:
    """Compress a gradient by unbiased stochastic rounding (QSGD, Alistarh et al. 2017, arXiv 1610.02132, section 3.1).

    `x`: (size,) float32, contiguous, finite. `bits` a value: 4 (7 levels a side) or 8 (127). `bucket_size`: values
    that share one scale, a power of two from 128 to 65,536. `norm`: the bucket's largest magnitude ("max"), or its
    Euclidean norm ("l2", the paper's). `seed`: 0 to 2**64 - 1; rounding errors of frames with one seed do not average
    out, so give every peer, round and tensor its own. `entropy`: "zstd" for a smaller frame of the same values (needs
    zstandard). `threads` changes the speed and never the bytes.

    Raises NonFiniteGradient with the index of the first NaN or infinity; TypeError or ValueError for a wrong argument.
    """
    x = _vector(x, "x")
    bits, bucket_size, seed = operator.index(bits), operator.index(bucket_size), operator.index(seed)
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, not {bits}")
    if not SMALLEST_BUCKET <= bucket_size <= LARGEST_BUCKET or bucket_size & (bucket_size - 1):
        raise ValueError(
            f"bucket_size must be a power of two from {SMALLEST_BUCKET} to {LARGEST_BUCKET}, not {bucket_size}"
        )
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be 'max' or 'l2', not {norm!r}")
    if entropy not in (None, "zstd"):
        raise ValueError(f"entropy must be None or 'zstd', not {entropy!r}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
    if x.size > LARGEST_SIZE:
        raise ValueError(f"a frame holds at most {LARGEST_SIZE} values")
    geometry = Geometry(x.size, bits, bucket_size)
    helpers = Threads(threads)
    unsealed = _BACKEND.quantise(x, geometry, norm, seed, helpers)
    if entropy is None:
        return unsealed.seal(Header(geometry, norm, None, seed, geometry.codes_bytes, unsealed.body_crc32c).pack())
    from . import entropy as zstd

    scales, codes = unsealed.body[: geometry.scales_bytes], unsealed.body[geometry.scales_bytes :]
    body = b"".join([scales, *zstd.compress(codes, bits, helpers)])
    payload_bytes = len(body) - geometry.scales_bytes
    return Header(geometry, norm, entropy, seed, payload_bytes, crc32c(body)).pack() + body


def decode(
    blob: Blob, expected_size: int, out: NDArray[np.float32] | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """The (expected_size,) float32 values of a frame, in `out` where it is given.

    Raises SizeMismatch where the frame, or `out`, holds another number of values, CorruptFrame for damaged bytes; `out`
    is then as it was.
    """
    helpers = Threads(threads)
    if out is not None:
        out = _vector(out, "out", writable=True)
        if out.size != expected_size:
            raise SizeMismatch(f"out holds {out.size} values, {expected_size} were expected")
    body = _open(blob, expected_size, 1.0, helpers)
    if out is None:
        out = np.empty(expected_size, np.float32)
    _BACKEND.decode(body, out, helpers)
    return out


def check(blob: Blob, expected_size: int, threads: int = 1) -> None:
    """Find a frame sound without decoding it: what passes, decode takes, and its values are finite.

    Reads the frame once, and allocates nothing of its size unless it is entropy-coded. Raises as decode does.
    """
    _open(blob, expected_size, 1.0, Threads(threads))


def accumulate(blob: Blob, acc: NDArray[np.float32], weight: float = 1.0, threads: int = 1) -> None:
    """acc += weight * decode(blob, acc.size), without a decoded copy. `acc`: (size,) float32, contiguous, writable.

    weight * scale is rounded to float32 once for each bucket, its product with the code once, and the sum once.
    Raises as decode does, and leaves `acc` as it was.
    """
    accumulate_many([blob], acc, [weight], threads)


def accumulate_many(
    blobs: Sequence[Blob], acc: NDArray[np.float32], weights: Sequence[float], threads: int = 1
) -> None:
    """What accumulate for each blob in turn gives, bit for bit, in one pass over `acc`.

    Every frame is checked before the first value is added: on an error `acc` is as it was.
    """
    acc = _vector(acc, "acc", writable=True)
    factors = [float(weight) for weight in weights]
    if len(factors) != len(blobs):
        raise ValueError(f"{len(blobs)} blobs came with {len(factors)} weights")
    if not all(math.isfinite(factor) for factor in factors):
        raise ValueError("weights must be finite")
    helpers = Threads(threads)
    bodies = [_open(blob, acc.size, factor, helpers) for blob, factor in zip(blobs, factors, strict=True)]
    if bodies:
        _BACKEND.add(bodies, acc, helpers)


def inspect(blob: Blob) -> FrameInfo:
    """The header of a frame, or of its first 40 bytes alone; the header's own checksum is verified, the body is not.

    Raises CorruptFrame.
    """
    return read_header(view(blob)).info()


def _open(blob: Blob, expected_size: int, weight: float, threads: Threads) -> Body:
    """The checked body of a frame; without entropy coding it is a view of the blob."""
    frame = view(blob)
    header = measure(frame, expected_size)
    geometry = header.geometry
    scales = frame[HEADER_BYTES : HEADER_BYTES + geometry.scales_bytes]
    payload = frame[HEADER_BYTES + geometry.scales_bytes :]
    if header.entropy is None:
        body = Body(geometry, scales, payload, weight)
        fault, crc = _BACKEND.check(body, threads)
        _compare(crc, header)
    else:
        from . import entropy as zstd

        _compare(crc32c(frame[HEADER_BYTES:]), header)
        body = Body(geometry, scales, memoryview(zstd.decompress(payload, geometry)), weight)
        fault, _ = _BACKEND.check(body, threads)
    if fault:
        raise CorruptFrame(fault)
    return body


def _compare(crc: int, header: Header) -> None:
    if crc != header.body_crc32c:
        raise CorruptFrame("the checksum of scales and payload does not match")


def _vector(x: NDArray[np.float32], name: str, *, writable: bool = False) -> F32:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise TypeError(f"{name} must be a NumPy array of float32, not {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError(f"{name} must be one-dimensional and contiguous")
    if writable and not x.flags.writeable:
        raise ValueError(f"{name} must be writable")
    return x
