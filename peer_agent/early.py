"""Reads that are tried before anyone has said that there is something to read.

Where peers are about equally fast, what one is about to need is there as soon as it has put what others need. To look
then uses a line both ways at once, and costs a request where it was too soon. What is found is as good as what is read
in time: whoever takes it checks it all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from contract.errors import PermanentError, TransientError
from contract.keys import Place

#: Reads under way at a time: while one waits for its answer, the line is the other's.
AT_ONCE = 2
#: Of more objects than these none is looked for merely because all may be there by now: half of the looks are too soon.
FEW = 8


@dataclass
class _Look:
    round: int
    read: Callable[[], bytes]
    found: Future[bytes | None]


class EarlyReads:
    """Of one peer. Thread-safe, as far as what reads is."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, "early-reads")
        self._looks: dict[Place, _Look] = {}

    def look(self, round: int, place: Place, read: Callable[[], bytes]) -> None:
        """Call `read`, which asks S3 for what is needed of `place` in `round`, beside whatever else goes on."""
        self._looks[place] = _Look(round, read, self._pool.submit(_attempt, read))

    def look_again(self) -> None:
        """Once more for whatever was not there."""
        for place, look in list(self._looks.items()):
            if look.found.done() and look.found.result() is None:
                self.look(look.round, place, look.read)

    def take(self, place: Place) -> bytes | None:
        """What was read of `place`, waited for where a read is under way; None where there is nothing."""
        look = self._looks.pop(place, None)
        return None if look is None else look.found.result()

    def forget_through(self, round: int) -> None:
        """Drop what belongs to `round` and before."""
        for place in [place for place, look in self._looks.items() if look.round <= round]:
            self._looks.pop(place).found.cancel()

    def close(self) -> None:
        """Wait for nothing that is under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _attempt(read: Callable[[], bytes]) -> bytes | None:
    """None for whatever reason: who needs it asks again, and hears why not."""
    try:
        return read()
    except (TransientError, PermanentError):
        return None
