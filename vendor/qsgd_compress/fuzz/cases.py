"""The fuzzer's cases: JSON objects made from (seed, number) alone; bytes are hexadecimal.

A buffer is {"bytes": hex, "offset": how far past an aligned address it begins, "writable": bool}.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import zstandard
from numpy.random import Generator

import qsgd_compress as q
from qsgd_compress.checksum import crc32c

Json: TypeAlias = dict[str, Any]

HEADER = 40
SIZES = (0, 1, 15, 16, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1_023, 1_025, 4_095, 4_097, 8_193)
WEIGHTS = (1.0, 0.0, -0.0, -1.0, 0.125, 5e-324, 1e-42, -1e10, 1e300, -1.7e308)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 4.861e37, 4.8613e37, 2.6793e36, 2.6794e36, 3.4e38, np.inf, -np.inf, np.nan)
INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 63, 64, 127, 128, 129, 512, 2**16, 2**31, 2**32, 2**48, 2**63 - 1, 2**64)


def case_of(seed: int, number: int, corpus: list[bytes], sets: tuple[str, ...]) -> Json:
    rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, number])
    kind = pick(rng, ("read", "read", "encode", "encode", "pack", "call", "call"))
    if kind == "read":
        case = read_case(rng, corpus)
    else:
        case = {"encode": encode_case, "pack": pack_case, "call": call_case}[kind](rng)
    return {"kind": kind, "number": number, "instruction_set": pick(rng, sets)} | case


def pick(rng: Generator, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


def size_of(rng: Generator) -> int:
    return pick(rng, SIZES) if rng.random() < 0.4 else int(rng.integers(0, pick(rng, (200, 3_000, 20_000))))


# ---- contents ----


def contents(rng: Generator, size: int, *, finite: bool) -> np.ndarray:
    """Runs of unlike contents; with `finite` without NaN and infinities."""
    x = np.empty(size, np.float32)
    run = pick(rng, (64, 128, 512, 1_000, 100_000))
    for start in range(0, size, run):
        part = x[start : start + run]
        n = part.size
        kind = int(rng.integers(8))
        if kind == 0:
            part.view(np.uint32)[:] = rng.integers(0, 1 << 32, n, dtype=np.uint32)
        elif kind == 1:
            part.view(np.uint32)[:] = rng.integers(0, 1 << pick(rng, (1, 2, 8, 23, 24)), n, dtype=np.uint32)
        elif kind == 2:
            part[:] = 0 if rng.random() < 0.5 else -0.0
        elif kind == 3:
            part.view(np.uint32)[:] = rng.choice(np.array([0x7F7FFFFF, 0xFF7FFFFF, 0x7F7FFFFE], np.uint32), n)
        elif kind == 4:
            part[:] = rng.uniform(-1, 1, n) * 2.0 ** float(rng.integers(-149, 128))
        elif kind == 5:
            part[:] = rng.standard_normal(n) * (rng.random(n) < 0.02)
        else:
            part[:] = rng.standard_normal(n)
    infinite = ~np.isfinite(x)
    if finite:
        x.view(np.uint32)[infinite] ^= 1 << 30
    elif size and rng.random() < 0.5:
        x[infinite] = 1
        x[rng.integers(size)] = pick(rng, (np.nan, np.inf, -np.inf))
    return x


def form_of(rng: Generator) -> Json:
    return {
        "bits": pick(rng, (4, 8)),
        "bucket_size": 1 << int(rng.integers(7, 17)),
        "norm": pick(rng, ("max", "l2")),
        "seed": int(rng.integers(0, 1 << 64, dtype=np.uint64)),
        "entropy": pick(rng, (None, None, "zstd")),
    }


def buffer(data: bytes, offset: int = 0, *, writable: bool = False) -> Json:
    return {"bytes": data.hex(), "offset": offset, "writable": writable}


def offset_of(rng: Generator) -> int:
    return 0 if rng.random() < 0.5 else int(rng.integers(0, 64))


def threads_of(rng: Generator) -> int:
    return 1 if rng.random() < 0.85 else int(rng.integers(2, 5))


def encode_case(rng: Generator) -> Json:
    x = contents(rng, size_of(rng), finite=rng.random() < 0.7)
    return {"x": buffer(x.tobytes(), offset_of(rng)), "form": form_of(rng), "threads": threads_of(rng)}


def pack_case(rng: Generator) -> Json:
    """Codes of all distributions: even and very uneven ones, of two symbols and of 256, several blocks of zstd's."""
    size = 64 * int(rng.integers(1, 6_000 if rng.random() < 0.1 else 60))
    symbols = rng.permutation(256)[: int(rng.integers(1, 257)) if rng.random() < 0.5 else int(rng.integers(1, 20))]
    share = pick(rng, (1.0, 1.05, 1.3, 2.0, 4.0)) ** -np.arange(float(symbols.size))
    codes = rng.choice(symbols.astype(np.uint8), size, p=share / share.sum())
    if rng.random() < 0.2:
        codes[: size // 2] = symbols[0]
    return {"codes": buffer(codes.tobytes(), offset_of(rng)), "bits": pick(rng, (4, 8))}


# ---- frames ----


def corpus_of(seed: int, count: int = 60) -> list[bytes]:
    """Frames as the encoder writes them."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    return [q.encode(contents(rng, size_of(rng), finite=True), **form_of(rng)) for _ in range(count)]


def sealed(frame: bytes, *, lengths: bool) -> bytes:
    """The frame with both checksums made right, and with `lengths` the payload's length too, as far as it can be."""
    if len(frame) < HEADER:
        return frame
    head = bytearray(frame[:HEADER])
    if lengths and 0 <= head[7] < 32:
        size = struct.unpack_from("<Q", head, 8)[0]
        payload = len(frame) - HEADER - 4 * -(-size // (1 << head[7]))
        struct.pack_into("<Q", head, 24, max(payload, 0))
    struct.pack_into("<I", head, 32, crc32c(frame[HEADER:]))
    struct.pack_into("<I", head, 36, crc32c(bytes(head[:36])))
    return bytes(head) + frame[HEADER:]


def read_case(rng: Generator, corpus: list[bytes]) -> Json:
    original = pick(rng, corpus)
    frame = original
    for _ in range(int(rng.integers(0, 5))):
        frame = pick(rng, DAMAGES)(rng, frame, corpus)
    if rng.random() < 0.9:
        frame = sealed(frame, lengths=bool(rng.random() < 0.7))
    expected = q.inspect(original).size
    if len(frame) >= 16 and rng.random() < 0.5:
        expected = struct.unpack_from("<Q", frame, 8)[0]
    return {
        "frame": buffer(frame, offset_of(rng)),
        "expected": expected if expected <= 1 << 20 or rng.random() < 0.5 else 1_000,
        "weight": pick(rng, WEIGHTS),
        "offset": offset_of(rng),
        "threads": threads_of(rng),
    }


def flip(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    damaged = bytearray(frame)
    end = min(len(frame), pick(rng, (HEADER, HEADER + 32, 1 << 30)))
    for _ in range(pick(rng, (1, 1, 2, 8))):
        if end:
            damaged[rng.integers(end)] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def overwrite(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    at = int(rng.integers(len(frame) + 1))
    foreign = pick(rng, (b"\xff", b"\x00", b"\xff" * 64, bytes(64), rng.bytes(4), rng.bytes(32)))
    return (frame[:at] + foreign + frame[at + len(foreign) :])[: len(frame)]


def cut(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    if rng.random() < 0.5:
        return frame[: max(0, len(frame) - pick(rng, (1, 4, 63, 64, 65, 128)))]
    at = int(rng.integers(len(frame) + 1))
    return frame[:at] if rng.random() < 0.5 else frame[:at] + frame[at + pick(rng, (1, 4, 64)) :]


def extend(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    return frame + pick(rng, (b"\x00", b"\x77" * 64, b"\x7f" * 64, bytes(4), rng.bytes(64), pick(rng, corpus)))


def splice(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    other = pick(rng, corpus)
    at = HEADER if rng.random() < 0.5 else int(rng.integers(min(len(frame), len(other)) + 1))
    return frame[:at] + other[at:] if rng.random() < 0.5 else other[:at] + frame[at:]


def other_field(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    size = struct.unpack_from("<Q", frame, 8)[0] if len(frame) >= 16 else 0
    near = [max(0, size + off) for off in (-129, -64, -1, 1, 64, 127)]
    far = [0, 1, 2**31, 2**32 - 1, 2**48, 2**48 + 1, 2**62, 2**63, 2**64 - 1]
    number = struct.pack("<Q", pick(rng, near + far) & (1 << 64) - 1)
    at, value = pick(
        rng,
        [
            (4, bytes([pick(rng, (0, 2, 255))])),
            (5, bytes([int(rng.integers(16))])),
            (5, bytes([int(rng.integers(256))])),
            (6, bytes([pick(rng, (0, 1, 2, 4, 8, 16, 255))])),
            (7, bytes([int(rng.integers(5, 19))])),
            (7, bytes([int(rng.integers(256))])),
            (8, number),
            (24, number),
        ],
    )
    return frame[:at] + value + frame[at + len(value) :]


def other_geometry(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    """Another size, bits or bucket, with a body of the lengths that go with it."""
    size, bits, log2_bucket = size_of(rng), pick(rng, (4, 8)), int(rng.integers(7, 17))
    groups = -(-size // (16 * 32 // bits))
    scales = rng.choice(np.array(FLOATS[:4], np.float32), -(-size >> log2_bucket)).tobytes()
    kind = int(rng.integers(4))
    if kind == 0:
        codes = (frame * (64 * groups // max(len(frame), 1) + 1))[: 64 * groups]
    elif kind == 1:
        codes = rng.bytes(64 * groups)
    else:
        codes = (b"\x77" if bits == 4 else b"\x7f") * (64 * groups)
    head = b"QSG1" + bytes([1, int(rng.integers(2)), bits, log2_bucket]) + struct.pack("<QQQ", size, 0, len(codes))
    return head + bytes(8) + scales + codes


def scale(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    if len(frame) < HEADER + 4:
        return frame
    size = struct.unpack_from("<Q", frame, 8)[0]
    buckets = max(1, min(-(-size >> (frame[7] & 31)), (len(frame) - HEADER) // 4))
    at = HEADER + 4 * int(rng.integers(buckets))
    value = struct.pack("<f", pick(rng, FLOATS)) if rng.random() < 0.7 else rng.bytes(4)
    return frame[:at] + value + frame[at + 4 :]


def zstd_payload(rng: Generator, frame: bytes, corpus: list[bytes]) -> bytes:
    """The frame with zstd for its coder, and a payload of somebody else's making."""
    if len(frame) < HEADER or frame[6] not in (4, 8):
        return frame
    size = min(struct.unpack_from("<Q", frame, 8)[0], 1 << 21)
    scales = 4 * -(-size >> (frame[7] & 31))
    codes = 64 * -(-size // (16 * 32 // frame[6]))
    zero = b"\x77" if frame[6] == 4 else b"\x7f"
    length = max(0, codes + pick(rng, (0, 0, 0, 0, -1, 1, 64, 1 << 20)))
    raw = pick(rng, (zero * length, rng.bytes(length), (rng.bytes(7) * (length // 7 + 1))[:length]))
    compressor = zstandard.ZstdCompressor(
        level=pick(rng, (1, 1, 3, 19 if length < 1 << 14 else 1, -5)),
        write_checksum=bool(rng.integers(2)),
        write_content_size=bool(rng.random() < 0.9),
    )
    packed = bytearray(compressor.compress(raw))
    if rng.random() < 0.3:
        half = len(raw) // 2
        packed = bytearray(compressor.compress(raw[:half]) + compressor.compress(raw[half:]))
    kind = int(rng.integers(8))
    if kind == 0:
        packed += rng.bytes(pick(rng, (1, 8)))
    elif kind == 1:
        del packed[-pick(rng, (1, 3, 4)) :]
    elif kind == 2:
        for _ in range(pick(rng, (1, 2, 4))):
            packed[rng.integers(min(len(packed), pick(rng, (16, 1 << 20))))] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        packed[:0] = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    flags = frame[5] & ~0b1100 | 0b0100
    body = frame[HEADER : HEADER + scales] + bytes(packed)
    return frame[:5] + bytes([flags]) + frame[6:24] + struct.pack("<Q", len(packed)) + frame[32:HEADER] + body


DAMAGES = (flip, overwrite, cut, extend, splice, other_field, other_geometry, other_geometry, scale, zstd_payload)


# ---- calls of the extension module ----

COMPUTING = ("quantise", "check", "decode", "add", "compress", "separate", "crc32c", "put")
CALLS = (*COMPUTING, *COMPUTING, "allocate", "combine", "use")
ANYTHING = (None, {"text": "text"}, 1.5, {"tuple": []}, {"tuple": [1, 2]}, {"bytes": "", "offset": 0, "writable": True})


def call_case(rng: Generator) -> Json:
    """A right call, in which some arguments are then replaced."""
    function = pick(rng, CALLS)
    size, bits, log2_bucket = size_of(rng), pick(rng, (4, 8)), int(rng.integers(7, 17))
    groups, buckets = -(-size // (16 * 32 // bits)), -(-size >> log2_bucket)
    blocks = -(-size // 128)
    x = buffer(contents(rng, size, finite=rng.random() < 0.8).tobytes(), offset_of(rng), writable=True)
    codes = buffer(rng.bytes(64 * groups), offset_of(rng), writable=True)

    def between(count: int) -> list[int]:
        return [0, count] if rng.random() < 0.5 else sorted(int(v) for v in rng.integers(0, count + 1, 2))

    def frame() -> Json:
        own_bits = pick(rng, (4, 8))
        own_log2 = int(rng.integers(7, 17))
        own = [
            buffer(rng.bytes(4 * -(-size >> own_log2)), offset_of(rng)),
            buffer(rng.bytes(64 * -(-size // (16 * 32 // own_bits))), offset_of(rng)),
            own_bits,
            own_log2,
            pick(rng, WEIGHTS),
        ]
        if rng.random() < 0.2:
            own[rng.integers(5)] = replacement(rng, own[int(rng.integers(5))])
        return {"tuple": own}

    values = [min(128 * block, size) for block in between(blocks)]
    arguments: dict[str, list[Any]] = {
        "quantise": [
            {"frame": HEADER + 4 * buckets + 64 * groups},
            x,
            bits,
            log2_bucket,
            bool(rng.integers(2)),
            int(rng.integers(0, 1 << 64, dtype=np.uint64)),
            *between(buckets),
        ],
        "check": [codes, size, bits, *between(groups)],
        "decode": [frame(), x, *values],
        "add": [{"tuple": [frame() for _ in range(int(rng.integers(0, 5)))]}, x, *values],
        "put": [{"frame": 64}, int(rng.integers(0, 25)), buffer(rng.bytes(40))],
        "allocate": [int(rng.integers(0, 10_000))],
        "crc32c": [codes, int(rng.integers(0, 1 << 32)), bool(rng.integers(2))],
        "combine": [int(v) for v in rng.integers(0, 1 << 32, 3)],
        "compress": [codes, bits],
        "separate": [codes],
        "use": [{"text": pick(rng, ("baseline", "avx2", "avx512", "", "other"))}],
    }
    chosen = arguments[function]
    for _ in range(pick(rng, (0, 1, 1, 2))):
        at = int(rng.integers(len(chosen)))
        chosen[at] = replacement(rng, chosen[at])
    if function == "allocate" and isinstance(chosen[0], int) and chosen[0] > 1 << 24:
        chosen[0] = (1 << 63) - 1  # more than fits, whatever the memory
    return {"function": function, "arguments": chosen}


def replacement(rng: Generator, argument: Any) -> Any:
    """Another argument, most often of the same type."""
    if rng.random() < 0.15:
        return pick(rng, ANYTHING)
    if isinstance(argument, dict) and "bytes" in argument:
        data = bytes.fromhex(argument["bytes"])
        length = max(0, len(data) + pick(rng, (-512, -64, -16, -4, -1, 1, 4, 64)))
        resized = (data + rng.bytes(max(0, length - len(data))))[:length]
        return buffer(resized, offset_of(rng), writable=bool(rng.random() < 0.8))
    if isinstance(argument, dict) and "frame" in argument:
        return {"frame": max(0, argument["frame"] + pick(rng, (-64, -40, -1, 1, 64)))}
    if isinstance(argument, int) and rng.random() < 0.5:
        return argument + pick(rng, (-128, -1, 1, 2, 64, 128))
    return pick(rng, INTEGERS)
