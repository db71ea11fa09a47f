"""What Ctrl-C, SIGTERM and SIGHUP mean to a run, phase by phase.

Before training they end it at once. From the first peer's start on they are a wish: training ends in order, and the
result is written; one that comes more than a second later ends the run at once. While everything is being stopped they
mean nothing: stopping is bounded in time, and half stopped would be worse.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

from contract.clock import Clock

#: Signals closer together than this are one wish: a terminal that closes sends two, and people press a key twice.
ONE_WISH_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Handles the signals while it is entered; only where this thread may set handlers.

    A signal that whoever started us wants ignored stays ignored: SIGHUP under nohup, SIGINT in a shell's background.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._orderly = self._closing = self._wanted = False
        self._last_at: float | None = None

    def __enter__(self) -> Self:
        may = threading.current_thread() is threading.main_thread()
        heeded = [number for number in _SIGNALS if may and signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def wanted(self) -> bool:
        """Whether someone has asked for an orderly end."""
        return self._wanted

    def end_in_order(self) -> None:
        """From now on a first signal is a wish."""
        self._orderly = True

    def close(self) -> None:
        """From now on signals are ignored."""
        self._closing = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, before = self._clock.monotonic(), self._last_at
        if self._closing or (before is not None and now - before <= ONE_WISH_SECONDS):
            return
        self._last_at = now
        if not self._orderly:
            raise KeyboardInterrupt("interrupted before training began; everything was stopped")
        if self._wanted:
            raise KeyboardInterrupt("interrupted a second time; training was stopped at once, without its result")
        self._wanted = True
