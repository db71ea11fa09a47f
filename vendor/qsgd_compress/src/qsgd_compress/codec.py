"""The public functions: arguments are checked here, lengths in frame.py, and the arithmetic is in kernels.py."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from . import entropy as zstd
from .errors import SizeMismatch
from .frame import (
    HEADER_BYTES,
    LANES,
    LARGEST_BUCKET,
    LARGEST_SIZE,
    SMALLEST_BUCKET,
    VERSION,
    ZSTD_BLOCK_BYTES,
    Entropy,
    FrameInfo,
    Geometry,
    Norm,
    crc32c,
    open_frame,
    read_header,
    view,
)
from .kernels import CHUNK_VALUES, F32, Body, Decoder, Encoder

Blob: TypeAlias = bytes | bytearray | memoryview
T = TypeVar("T")

SMALLEST_SHARE = 1 << 15  # values a thread; below it starting the thread costs more than it saves


def backend() -> str:
    """Which form does the arithmetic: "numpy". A native form must give the same bytes."""
    return "numpy"


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
    codes_at = HEADER_BYTES + geometry.scales_bytes
    frame = np.empty(codes_at + geometry.codes_bytes, np.uint8)
    scale = frame[HEADER_BYTES:codes_at].view(np.float32)
    words_gl = frame[codes_at:].view(np.uint32).reshape(-1, LANES)

    def quantise(first: int, last: int) -> None:
        Encoder(geometry, norm, seed).run(x, first, last, scale, words_gl)

    _split(geometry.buckets, bucket_size, threads, quantise)
    body = frame[HEADER_BYTES:].data if entropy is None else _with_zstd(frame[HEADER_BYTES:], geometry, threads)
    header = FrameInfo(
        version=VERSION,
        norm=norm,
        bits=bits,
        bucket_size=bucket_size,
        entropy=entropy,
        size=x.size,
        seed=seed,
        payload_bytes=len(body) - geometry.scales_bytes,
        body_crc32c=crc32c(body),
    ).pack()
    if isinstance(body, bytes):
        return header + body
    frame[:HEADER_BYTES] = np.frombuffer(header, np.uint8)
    return frame.tobytes()


def decode(
    blob: Blob, expected_size: int, out: NDArray[np.float32] | None = None, threads: int = 1
) -> NDArray[np.float32]:
    """The (expected_size,) float32 values of a frame, in `out` where it is given.

    Raises SizeMismatch where the frame, or `out`, holds another number of values, CorruptFrame for damaged bytes; `out`
    is then as it was.
    """
    if out is None:
        body = _open(blob, expected_size)
        out = np.empty(expected_size, np.float32)
    else:
        out = _vector(out, "out", writable=True)
        if out.size != expected_size:
            raise SizeMismatch(f"out holds {out.size} values, {expected_size} were expected")
        body = _open(blob, expected_size)
    target = out

    def write(first: int, last: int) -> None:
        decoder = Decoder(CHUNK_VALUES)
        for start, stop in _chunks(first, last, body.geometry.bucket_size, target.size):
            decoder.write(body, start, target[start:stop])

    _split(body.geometry.buckets, body.geometry.bucket_size, threads, write)
    return target


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
    bodies = [_open(blob, acc.size) for blob in blobs]
    if not bodies:
        return
    unit = max(body.geometry.bucket_size for body in bodies)

    def add(first: int, last: int) -> None:
        decoder = Decoder(CHUNK_VALUES)
        for start, stop in _chunks(first, last, unit, acc.size):
            for body, factor in zip(bodies, factors, strict=True):
                decoder.add(body, factor, start, acc[start:stop])

    _split(-(-acc.size // unit), unit, threads, add)


def inspect(blob: Blob) -> FrameInfo:
    """The header of a frame, or of its first 40 bytes alone; the header's own checksum is verified, the body is not.

    Raises CorruptFrame.
    """
    return read_header(view(blob))


def _open(blob: Blob, expected_size: int) -> Body:
    """The checked scales and words of a frame; without entropy coding they are views of the blob."""
    frame = view(blob)
    info = open_frame(frame, expected_size)
    geometry = info.geometry
    codes_at = HEADER_BYTES + geometry.scales_bytes
    payload = frame[codes_at:]
    codes = payload if info.entropy is None else zstd.decompress(payload, geometry.codes_bytes)
    body = Body(
        geometry,
        np.frombuffer(frame[HEADER_BYTES:codes_at], np.float32),
        np.frombuffer(codes, np.uint32).reshape(-1, LANES),
    )
    body.check()
    return body


def _with_zstd(body: NDArray[np.uint8], geometry: Geometry, threads: int) -> bytes:
    blocks = -(-geometry.codes_bytes // ZSTD_BLOCK_BYTES)
    compressed = _split(blocks, ZSTD_BLOCK_BYTES, threads, zstd.compress(body[geometry.scales_bytes :].data))
    return b"".join([body[: geometry.scales_bytes].tobytes(), *(block for part in compressed for block in part)])


def _vector(x: NDArray[np.float32], name: str, *, writable: bool = False) -> F32:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise TypeError(f"{name} must be a NumPy array of float32, not {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError(f"{name} must be one-dimensional and contiguous")
    if writable and not x.flags.writeable:
        raise ValueError(f"{name} must be writable")
    return x


def _chunks(first: int, last: int, unit: int, size: int) -> list[tuple[int, int]]:
    """Ranges of values that cover units [first, last) of `size` values, each of at most CHUNK_VALUES."""
    step = CHUNK_VALUES // unit * unit
    end = min(last * unit, size)
    return [(start, min(start + step, end)) for start in range(first * unit, end, step)]


def _split(count: int, unit: int, threads: int, work: Callable[[int, int], T]) -> list[T]:
    """work(first, last) over `count` units in at most `threads` ranges; the earliest range's error is raised."""
    threads = operator.index(threads)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    parts = min(threads, count, -(-count * unit // SMALLEST_SHARE))
    if parts <= 1:
        return [work(0, count)] if count else []
    from concurrent.futures import ThreadPoolExecutor  # imported here: most callers never need it

    edges = [count * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts, thread_name_prefix="qsgd") as pool:
        return list(pool.map(work, edges[:-1], edges[1:]))
