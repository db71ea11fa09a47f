"""The vendored codec, `qsgd_compress`, against memcpy of the same size and against QSGD in torch, one thread each.

Both sides of a ratio take turns in one process, so that they meet the same noise and the same caches, and the medians
count. memcpy is `np.copyto` of the float32 vector into memory that the accumulating functions add to as well, so that
no side meets fresh pages that the other does not. What encode gives is new memory every time, as its interface says.

That both sides do equal work is checked, and a difference ends the benchmark: codes that decode to the gradient with
the errors that go with their bits, for torch's as for ours; sums that equal the decoded values'; and bit for bit the
same values from `accumulate_many` as from single sums, with zstd as without, with two threads as with one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import qsgd_compress as q
import torch
from numpy.typing import NDArray

from benchmarks import torch_qsgd
from benchmarks.comparison import UnequalWorkError
from benchmarks.gradient import kurtosis, tiled, vgg11_gradient
from benchmarks.reporting import Figure
from contract.clock import SystemClock

F32 = NDArray[np.float32]
Action = Callable[[], object]

#: Values of the large vector: VGG-11's parameters with the ImageNet head.
LARGE = 132_863_336
BUCKET, SEED, FRAMES = 512, 1, 8
#: A pair is measured in this many turns at least and at most; between them, until it has had SECONDS.
FEWEST_TURNS, MOST_TURNS, SECONDS = 7, 51, 3.0
IMPORTS = 15


@dataclass(frozen=True)
class Form:
    """What is known of a figure before it is measured."""

    unit: str
    better: Literal["higher", "lower", "neither"] = "neither"
    must: float | None = None
    aim: float | None = None


#: All figures in the order in which they are printed. "9m" is the gradient's 9.23M values, "133m" are LARGE values.
FORMS: Mapping[str, Form] = {
    "encode_4_bits_9m": Form("x memcpy", "higher", 1.0, 1.6),
    "encode_4_bits_133m": Form("x memcpy", "higher", 0.75, 1.1),
    "accumulate_4_bits_9m": Form("x memcpy", "higher", 1.2, 1.5),
    "accumulate_4_bits_133m": Form("x memcpy", "higher", 0.85, 1.0),
    "accumulate_many_over_accumulates_9m": Form("x", "higher", 3.0, 6.0),
    "accumulate_many_over_accumulates_133m": Form("x", "higher", 3.0, 6.0),
    "encode_8_bits_over_torch": Form("x", "higher", 40.0, 75.0),
    "accumulate_8_bits_over_torch": Form("x", "higher", 8.0, 12.0),
    "size_ratio_4_bits": Form("x", "higher", 7.85, 7.9),
    "relative_error_4_bits": Form("share", "lower", 0.25),
    "size_ratio_zstd": Form("x", "higher", 15.0, 17.0),
    "encode_zstd_9m": Form("x memcpy", "higher", 0.25, 0.6),
    "import_milliseconds": Form("ms", "lower", 5.0, 1.0),
    "native_backend": Form("1 native, 0 numpy"),
    "zeros_of_the_gradient": Form("share"),
    "kurtosis_of_the_gradient": Form("1"),
    "memcpy_9m": Form("GB/s"),
    "memcpy_133m": Form("GB/s"),
    "decode_4_bits_9m": Form("x memcpy"),
    "decode_4_bits_133m": Form("x memcpy"),
    "decode_zstd_9m": Form("x memcpy"),
    "encode_l2_9m": Form("x memcpy"),
    "accumulate_l2_9m": Form("x memcpy"),
    "encode_2_threads_9m": Form("x memcpy"),
    "accumulate_2_threads_9m": Form("x memcpy"),
    "encode_8_bits_9m": Form("x memcpy"),
    "accumulate_8_bits_9m": Form("x memcpy"),
    "encode_8_bits_over_torch_in_place": Form("x"),
    "relative_error_8_bits": Form("share"),
    "relative_error_8_bits_torch": Form("share"),
}


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError."""
    if q.backend() != "native":
        _tell(f"the codec's backend is {q.backend()}: these are not the figures of its native form")
    values = {"native_backend": float(q.backend() == "native"), "import_milliseconds": import_milliseconds()}
    gradient = vgg11_gradient()
    torch.set_num_threads(1)
    values["zeros_of_the_gradient"] = float(np.mean(gradient == 0))
    values["kurtosis_of_the_gradient"] = kurtosis(gradient)
    values |= on_the_gradient(gradient)
    values |= against_torch(gradient)
    values |= on_the_large_vector(tiled(gradient, LARGE), values["relative_error_4_bits"])
    return figures(values)


def figures(values: Mapping[str, float]) -> list[Figure]:
    """The figures in the order of FORMS; `values` must have exactly their names."""
    if set(values) != set(FORMS):
        raise KeyError(f"figures without a form, or forms without a figure: {sorted(set(values) ^ set(FORMS))}")
    return [
        Figure(name=name, value=values[name], unit=form.unit, better=form.better, must=form.must, aim=form.aim)
        for name, form in FORMS.items()
    ]


def on_the_gradient(x: F32) -> dict[str, float]:
    """Speeds in memcpys, sizes and errors with 4 bits, on `x` (size,)."""
    target = x.copy()
    copy = _copying(x, target)
    frame = q.encode(x, seed=SEED)
    zipped, long = q.encode(x, seed=SEED, entropy="zstd"), q.encode(x, norm="l2", seed=SEED)
    check_sums(x, frame, target)
    same_values("zstd", q.decode(zipped, x.size), q.decode(frame, x.size))
    equal("frame by two threads", q.encode(x, seed=SEED, threads=2) == frame, True)
    same_values("two threads", summed(x, frame, threads=2), summed(x, frame, threads=1))
    copy_seconds, encode_seconds = medians("encode", copy, lambda: q.encode(x, seed=SEED))
    return {
        "memcpy_9m": x.nbytes / copy_seconds / 1e9,
        "size_ratio_4_bits": x.nbytes / len(frame),
        "size_ratio_zstd": x.nbytes / len(zipped),
        "relative_error_4_bits": relative_error(q.decode(frame, x.size), x),
        "encode_4_bits_9m": copy_seconds / encode_seconds,
        "accumulate_4_bits_9m": speed("accumulate", copy, lambda: q.accumulate(frame, target)),
        "accumulate_many_over_accumulates_9m": many_over_single("accumulate_many", x, target),
        "encode_zstd_9m": speed("encode, zstd", copy, lambda: q.encode(x, seed=SEED, entropy="zstd")),
        "decode_4_bits_9m": speed("decode", copy, lambda: q.decode(frame, x.size, out=target)),
        "decode_zstd_9m": speed("decode, zstd", copy, lambda: q.decode(zipped, x.size, out=target)),
        "encode_l2_9m": speed("encode, L2", copy, lambda: q.encode(x, norm="l2", seed=SEED)),
        "accumulate_l2_9m": speed("accumulate, L2", copy, lambda: q.accumulate(long, target)),
        "encode_2_threads_9m": speed("encode, 2 threads", copy, lambda: q.encode(x, seed=SEED, threads=2)),
        "accumulate_2_threads_9m": speed("accumulate, 2 threads", copy, lambda: q.accumulate(frame, target, threads=2)),
    }


def on_the_large_vector(x: F32, expected_error: float) -> dict[str, float]:
    """Speeds in memcpys with 4 bits on `x` (size,), whose relative error must be near `expected_error`."""
    target = x.copy()
    copy = _copying(x, target)
    frame = q.encode(x, seed=SEED)
    near("error of the large vector", relative_error(q.decode(frame, x.size, out=target), x), expected_error, 0.2)
    copy_seconds, encode_seconds = medians("encode, large", copy, lambda: q.encode(x, seed=SEED))
    return {
        "memcpy_133m": x.nbytes / copy_seconds / 1e9,
        "encode_4_bits_133m": copy_seconds / encode_seconds,
        "accumulate_4_bits_133m": speed("accumulate, large", copy, lambda: q.accumulate(frame, target)),
        "decode_4_bits_133m": speed("decode, large", copy, lambda: q.decode(frame, x.size, out=target)),
        "accumulate_many_over_accumulates_133m": many_over_single("accumulate_many, large", x, target),
    }


def many_over_single(what: str, x: F32, target: F32) -> float:
    """How much faster `accumulate_many` of frames with different seeds is than one `accumulate` for each."""
    frames, weights = [q.encode(x, seed=seed) for seed in range(FRAMES)], [1 / FRAMES] * FRAMES

    def singly() -> None:
        for frame, weight in zip(frames, weights, strict=True):
            q.accumulate(frame, target, weight)

    target.fill(0)
    singly()
    by_one = target.copy()
    target.fill(0)
    q.accumulate_many(frames, target, weights)
    same_values("accumulate_many", target, by_one)
    single, many = medians(what, singly, lambda: q.accumulate_many(frames, target, weights))
    return single / many


def against_torch(x: F32) -> dict[str, float]:
    """8 bits against QSGD in torch and against memcpy, after it is shown that both have the same error."""
    target = x.copy()
    copy = _copying(x, target)
    x_torch, target_torch = torch.from_numpy(x), torch.from_numpy(target)
    generator = torch.Generator().manual_seed(SEED)
    in_place = torch_qsgd.InPlace(x.size, BUCKET)
    frame, theirs = q.encode(x, bits=8, seed=SEED), torch_qsgd.encode(x_torch, BUCKET, generator)
    our_error = relative_error(q.decode(frame, x.size), x)
    their_error = relative_error(torch_qsgd.decode(theirs).numpy(), x)
    tuned_error = relative_error(torch_qsgd.decode(in_place.encode(x_torch, generator)).numpy(), x)
    near("error of torch's 8 bits", their_error, our_error, 0.03)
    near("error of torch's 8 bits, in place", tuned_error, our_error, 0.03)
    check_sums(x, frame, target)
    copy()
    torch_qsgd.accumulate(theirs, target_torch)
    near("sum by torch", relative_error(target, x + torch_qsgd.decode(theirs).numpy()), 0.0, 1e-6)

    def encode() -> bytes:
        return q.encode(x, bits=8, seed=SEED)

    torch_encode, our_encode = medians("torch", lambda: torch_qsgd.encode(x_torch, BUCKET, generator), encode)
    tuned_encode, our_encode_again = medians("torch in place", lambda: in_place.encode(x_torch, generator), encode)
    copy()
    torch_add, our_add = medians(
        "torch, accumulate",
        lambda: torch_qsgd.accumulate(theirs, target_torch, 1.0),
        lambda: q.accumulate(frame, target),
    )
    return {
        "encode_8_bits_over_torch": torch_encode / our_encode,
        "encode_8_bits_over_torch_in_place": tuned_encode / our_encode_again,
        "accumulate_8_bits_over_torch": torch_add / our_add,
        "encode_8_bits_9m": speed("encode, 8 bits", copy, encode),
        "accumulate_8_bits_9m": speed("accumulate, 8 bits", copy, lambda: q.accumulate(frame, target)),
        "relative_error_8_bits": our_error,
        "relative_error_8_bits_torch": their_error,
    }


def medians(what: str, one: Action, other: Action) -> tuple[float, float]:
    """Median seconds of both, which take turns; the first turn of each warms up and doesn't count."""
    clock = SystemClock()
    one()
    other()
    seconds_one: list[float] = []
    seconds_other: list[float] = []
    while len(seconds_one) < FEWEST_TURNS or (
        len(seconds_one) < MOST_TURNS and sum(seconds_one) + sum(seconds_other) < SECONDS
    ):
        start = clock.monotonic()
        one()
        between = clock.monotonic()
        other()
        end = clock.monotonic()
        seconds_one.append(between - start)
        seconds_other.append(end - between)
    first, second = statistics.median(seconds_one), statistics.median(seconds_other)
    _tell(f"{what:24} {first * 1e3:9.2f} ms and {second * 1e3:9.2f} ms, medians of {len(seconds_one)} turns")
    return first, second


def speed(what: str, copy: Action, action: Action) -> float:
    """How many times as fast as memcpy `action` is."""
    copying, acting = medians(what, copy, action)
    return copying / acting


def import_milliseconds(times: int = IMPORTS) -> float:
    """What importing the codec costs a fresh interpreter that has NumPy already: the median, bytecode cached."""
    tell = (
        "import numpy\n"
        "from contract.clock import SystemClock\n"
        "clock = SystemClock()\n"
        "start = clock.monotonic()\n"
        "import qsgd_compress\n"
        "print(clock.monotonic() - start)\n"
    )
    root = Path(__file__).parents[1]
    seconds = [
        float(subprocess.run([sys.executable, "-c", tell], cwd=root, capture_output=True, text=True, check=True).stdout)
        for _ in range(times + 1)
    ]
    return statistics.median(seconds[1:]) * 1e3  # the first one may write the bytecode


def relative_error(y: F32, x: F32) -> float:
    """|y - x| / |x| in the Euclidean norm, summed in float64 block by block."""
    apart = whole = 0.0
    for start in range(0, x.size, 1 << 20):
        part = x[start : start + (1 << 20)].astype(np.float64)
        apart += float(np.square(y[start : start + (1 << 20)] - part).sum())
        whole += float(np.square(part).sum())
    return float(np.sqrt(apart / whole))


def summed(x: F32, frame: bytes, threads: int) -> F32:
    """x plus the decoded frame."""
    acc = x.copy()
    q.accumulate(frame, acc, threads=threads)
    return acc


def check_sums(x: F32, frame: bytes, target: F32) -> None:
    """Raise UnequalWorkError unless `accumulate` adds to `target` what the frame decodes to, but for rounding."""
    np.copyto(target, x)
    q.accumulate(frame, target)
    near("sum by accumulate", relative_error(target, x + q.decode(frame, x.size)), 0.0, 1e-6)


def same_values(what: str, ours: F32, expected: F32) -> None:
    """Raise UnequalWorkError unless both are the same bit for bit."""
    equal(f"values that differ with {what}", int(np.count_nonzero(ours.view(np.uint32) != expected.view(np.uint32))), 0)


def equal(what: str, value: object, expected: object) -> None:
    """Raise UnequalWorkError unless both are the same."""
    if value != expected:
        raise UnequalWorkError(f"{what}: {value}, but must be {expected}")


def near(what: str, value: float, expected: float, tolerance: float) -> None:
    """Raise UnequalWorkError where they differ by more than `tolerance` of `expected`, or of 1 where that is 0."""
    if not abs(value - expected) <= tolerance * (expected or 1.0):
        raise UnequalWorkError(f"{what}: {value:.6g}, but must be within {tolerance:.2g} of {expected:.6g}")


def _copying(x: F32, target: F32) -> Action:
    return lambda: np.copyto(target, x)


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
