"""The fuzzer's child: tries cases, writes each to a file first, and stops at the first that shows something.

Run by run.py, with sanitizers in the process. What a sanitizer reports ends the process; everything else that should
not be is an AssertionError or another exception, and ends it too.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from cases import Json, case_of, corpus_of

import qsgd_compress as q
from qsgd_compress import _native as native
from qsgd_compress import checksum, codec, entropy, huffman, threads
from qsgd_compress.numpy_backend import NumpyBackend

NUMPY, NATIVE = NumpyBackend(), codec._BACKEND
MISTAKES = (TypeError, ValueError, OverflowError, BufferError, MemoryError)


def memory(data: bytes, offset: int) -> memoryview:
    """The bytes at the end of a block of malloc that they fill, `offset` bytes past its start.

    Not in an array of NumPy's own: it keeps small blocks, and a use after free in them would not be noticed.
    """
    block = memoryview(array.array("B", [0]) * (offset + len(data)))  # repetition allocates no more than it fills
    block[offset:] = data
    return block[offset:]


def vector(data: bytes, offset: int) -> np.ndarray:
    return np.frombuffer(memory(data, offset), np.float32) if data else np.empty(0, np.float32)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    equal = one.view(np.uint32) == other.view(np.uint32)
    return bool((equal | (np.isnan(one) & np.isnan(other))).all())


class by_numpy:
    """The public functions compute with NumPy in this block."""

    def __enter__(self) -> None:
        codec._BACKEND, checksum.NATIVE, entropy.NATIVE = NUMPY, None, None

    def __exit__(self, *_: object) -> None:
        codec._BACKEND, checksum.NATIVE, entropy.NATIVE = NATIVE, native, native


def read(case: Json) -> None:
    frame = memory(bytes.fromhex(case["frame"]["bytes"]), case["frame"]["offset"])
    expected, count = case["expected"], case["threads"]
    try:
        q.inspect(frame)
    except q.QsgdError:
        pass
    else:
        assert len(frame) >= 40
    if expected > 1 << 22:  # no memory for an array of that size, and no need: the frame is far too short for it
        assert decoded(frame, expected, None, count) is None, "so few bytes cannot hold so many values"
        return
    before = np.arange(expected, dtype=np.float32)
    out = vector(before.tobytes(), case["offset"])
    acc = vector(before.tobytes(), case["offset"])
    values = decoded(frame, expected, out, count)
    with by_numpy():
        wanted = decoded(frame, expected, None, 1)
    assert (values is None) == (wanted is None), "the two backends disagree about what a frame is"
    fresh = decoded(frame, expected, None, count)
    assert passes(frame, expected, count) == (values is not None), "check and decode disagree about what a frame is"
    if values is None:
        assert same(out, before), "out was changed and the frame refused"
        assert fresh is None
    else:
        assert np.isfinite(values).all(), "a frame was accepted that is not finite"
        assert values is out
        assert fresh is not None
        assert same(values, wanted)
        assert same(fresh, wanted)
    weight = case["weight"]
    sound = q.encode(before % 8, bits=8)
    for frames in ([frame], [sound, frame, sound]):
        weights = [weight] * len(frames)
        mine = vector(acc.tobytes(), case["offset"])
        try:
            if len(frames) == 1:
                q.accumulate(frame, mine, weight, threads=count)
            else:
                q.accumulate_many(frames, mine, weights, threads=count)
        except q.QsgdError:
            assert values is None, "decode takes a frame that accumulate refuses"
            assert same(mine, acc), "acc was changed and the frame refused"
            continue
        assert values is not None, "accumulate takes a frame that decode refuses"
        other = acc.copy()
        with by_numpy():
            q.accumulate_many(frames, other, weights)
        assert same(mine, other)


def passes(frame: memoryview, expected: int, count: int) -> bool:
    try:
        q.check(frame, expected, threads=count)
    except q.QsgdError:
        return False
    return True


def decoded(frame: memoryview, expected: int, out: np.ndarray | None, count: int) -> np.ndarray | None:
    try:
        return q.decode(frame, expected, out=out, threads=count)
    except q.QsgdError:
        return None


def encode(case: Json) -> None:
    x, form = vector(bytes.fromhex(case["x"]["bytes"]), case["x"]["offset"]), case["form"]
    wrong = np.flatnonzero(~np.isfinite(x))
    try:
        frame = q.encode(x, **form, threads=case["threads"])
    except q.NonFiniteGradient as raised:
        named = raised
    else:
        named = None
    if named is not None:
        assert wrong.size, "a finite gradient was refused"
        assert named.index == wrong[0], f"value {wrong[0]} is the first that is not finite"
        assert named.value == x[named.index] or math.isnan(named.value)
        return
    assert not wrong.size, "a gradient that is not finite was encoded"
    with by_numpy():
        assert frame == q.encode(x, **form), "another frame than NumPy's"
    info = q.inspect(frame)
    assert info.frame_bytes == len(frame)
    bucket = form["bucket_size"]
    step = np.frombuffer(frame, np.float32, -(-x.size // bucket), 40).repeat(bucket)[: x.size].astype(float)
    y = q.decode(memory(frame, case["x"]["offset"]), x.size)
    assert (np.abs(y.astype(float) - x.astype(float)) <= step * (1 + 1e-5)).all(), "a value is more than a step off"


def pack(case: Json) -> None:
    codes, bits = bytes.fromhex(case["codes"]["bytes"]), case["bits"]
    packed = native.compress(memory(codes, case["codes"]["offset"]), bits)
    assert packed == huffman.zstd_frame(np.frombuffer(codes, np.uint8), bits), "another zstd frame than huffman.py's"
    unpacked = memory(zstandard.ZstdDecompressor().decompress(packed), case["codes"]["offset"])
    if bits == 4:
        native.separate(unpacked)
    assert unpacked == codes, "other codes than were packed"


def call(case: Json) -> None:
    with contextlib.suppress(*MISTAKES):
        getattr(native, case["function"])(*(argument(value) for value in case["arguments"]))


def argument(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "text" in value:
        return value["text"]
    if "tuple" in value:
        return tuple(argument(item) for item in value["tuple"])
    if "frame" in value:
        return native.allocate(value["frame"])
    view = memory(bytes.fromhex(value["bytes"]), value["offset"])
    return view if value["writable"] else view.toreadonly()


def attempt(case: Json) -> None:
    native.use(case["instruction_set"])
    {"read": read, "encode": encode, "pack": pack, "call": call}[case["kind"]](case)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--reproduce", action="store_true")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    threads.SMALLEST_SHARE = 128  # small vectors are split among threads too
    if options.reproduce:
        attempt(json.loads(options.file.read_text()))
        return
    sets = native.instruction_sets()
    corpus = corpus_of(options.seed)
    until = None if options.seconds is None else time.monotonic() + options.seconds
    done = 0
    while time.monotonic() < until if until is not None else done < options.runs:
        case = case_of(options.seed, done, corpus, sets)
        options.file.write_text(json.dumps(case))
        attempt(case)
        done += 1
    print(f"{done} cases of seed {options.seed} on {', '.join(sets)}: nothing found.")


if __name__ == "__main__":
    main()
