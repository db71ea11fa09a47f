"""The clock that tests turn by hand."""

from __future__ import annotations

from contract.clock import Clock
from tests.fakes.clock import FakeClock


def test_time_moves_only_when_told_to() -> None:
    fake = FakeClock(now=50.0)
    clock: Clock = fake
    assert (clock.now(), clock.monotonic(), clock.cpu()) == (50.0, 0.0, 0.0)
    clock.sleep(2.0)
    clock.sleep(-1.0)
    fake.advance(0.5)
    fake.use_cpu(1.5)
    assert (clock.now(), clock.monotonic(), clock.cpu()) == (54.0, 4.0, 1.5)
    assert fake.slept == [2.0, -1.0]
