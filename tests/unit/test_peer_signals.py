"""Signals to a peer: the first asks for an orderly end, a later one ends at once."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from peer_agent.__main__ import ONE_WISH_SECONDS, Interrupts
from tests.fakes.clock import FakeClock


class Asked:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def request_end(self, reason: str) -> None:
        self.reasons.append(reason)


def test_the_first_signal_asks_for_an_end_and_a_later_one_ends_at_once() -> None:
    clock, runner = FakeClock(), Asked()
    with Interrupts(clock) as interrupts:
        stand_in: Any = runner
        interrupts.runner = stand_in
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the terminal's own, for the same Ctrl-C
        assert runner.reasons == ["interrupted"]
        clock.advance(ONE_WISH_SECONDS + 0.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_before_there_is_a_run_to_end_a_signal_ends_the_process() -> None:
    with Interrupts(FakeClock()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(FakeClock()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
