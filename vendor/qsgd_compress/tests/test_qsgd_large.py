"""More values than 31 bits count: every index, offset and length on the way is 64 bits wide."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

import qsgd_compress as q

SIZE = 2**31 + 1_500
PLACES = [0, 512, 2**30 - 1, 2**31 - 513, 2**31 - 1, 2**31, 2**31 + 512, SIZE - 1]  # each in a bucket of its own
MOST_BYTES = 12 << 30


def not_zero(x: np.ndarray) -> dict[int, float]:
    """Index and value, in parts, because a comparison of the whole would take gigabytes more."""
    found = {}
    for start in range(0, x.size, 1 << 24):
        part = x[start : start + (1 << 24)]
        found |= {start + int(at): float(part[at]) for at in np.flatnonzero(part)}
    return found


def room() -> int:
    """Bytes of memory that are free for use."""
    if not sys.platform.startswith("linux"):
        return MOST_BYTES
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


@pytest.mark.slow
def test_more_than_two_to_the_31_values():
    if room() < MOST_BYTES:
        pytest.skip(f"takes {MOST_BYTES >> 30} GiB of memory, and {room() >> 30} are free")
    x = np.zeros(SIZE, np.float32)  # all one page of zeros, until something is written
    x[PLACES] = np.arange(1, len(PLACES) + 1)
    want = not_zero(x)
    assert list(want) == PLACES
    frame = q.encode(x, seed=3, threads=2)
    info = q.inspect(frame)
    assert (info.size, info.payload_bytes) == (SIZE, 2**30 + 768)
    x[-1] = np.nan
    with pytest.raises(q.NonFiniteGradient) as caught:
        q.encode(x)
    assert caught.value.index == SIZE - 1
    del x

    y = np.zeros(SIZE, np.float32)
    q.accumulate(frame, y, weight=-0.5)
    assert not_zero(y) == pytest.approx({at: -0.5 * value for at, value in want.items()}, rel=3e-7)
    q.decode(frame, SIZE, out=y, threads=2)
    assert not_zero(y) == pytest.approx(want, rel=3e-7)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < MOST_BYTES
