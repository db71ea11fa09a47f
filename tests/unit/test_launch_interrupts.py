"""What signals do to a run, phase by phase."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from peerless.launch.interrupts import ONE_WISH_SECONDS, Interrupts
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def entered(clock: FakeClock) -> Iterator[Interrupts]:
    with Interrupts(clock) as interrupts:
        yield interrupts


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_training_a_signal_ends_the_run_at_once(entered: Interrupts, number: int) -> None:
    with pytest.raises(KeyboardInterrupt, match="before training began"):
        send(number)


def test_while_training_the_first_signal_is_a_wish(entered: Interrupts, clock: FakeClock) -> None:
    entered.end_in_order()
    assert not entered.wanted
    send(signal.SIGINT)
    send(signal.SIGINT)
    assert entered.wanted
    clock.sleep(ONE_WISH_SECONDS + 0.1)
    with pytest.raises(KeyboardInterrupt, match="a second time"):
        send(signal.SIGINT)


def test_while_everything_is_stopped_signals_mean_nothing(entered: Interrupts, clock: FakeClock) -> None:
    entered.close()
    send(signal.SIGTERM)
    clock.sleep(ONE_WISH_SECONDS + 0.1)
    send(signal.SIGTERM)


def test_the_handlers_of_before_come_back(clock: FakeClock) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts(clock):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_nohup_ignores_stays_ignored(clock: FakeClock) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(clock):
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
