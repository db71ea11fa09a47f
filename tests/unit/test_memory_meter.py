"""The memory of a run counts this process and its descendants."""

from __future__ import annotations

import subprocess
import sys

from peerless.launch.memory import MemoryMeter
from tests.fakes.clock import FakeClock

HOLD = "import sys; block = bytearray(b'x' * 50_000_000); print('held', flush=True); sys.stdin.read()"


def test_a_childs_memory_is_counted_and_the_peak_stays() -> None:
    clock = FakeClock()
    meter = MemoryMeter(clock)
    meter.sample()
    alone = meter.peak_bytes
    assert alone > 10_000_000
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        meter.sample()
        assert meter.peak_bytes == alone, "a second has not passed"
        clock.advance(1.0)
        meter.sample()
        peak = meter.peak_bytes
        child.communicate()
    assert peak > alone + 50_000_000
    clock.advance(1.0)
    meter.sample()
    assert meter.peak_bytes == peak
