"""Standard streams that a run survives: the reader of a pipe may leave, a terminal may be closed, a disk may be full.

What a run is worth lies in its folder, so that it goes on in silence where nobody can read its words any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class LastingStream:
    """A text stream that falls silent, instead of raising, once it cannot be written to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._silence_instead():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._silence_instead():
            self._stream.flush()

    @contextlib.contextmanager
    def _silence_instead(self) -> Any:
        try:
            yield
        except (OSError, ValueError):
            # What is still in its buffer goes nowhere too, so that the interpreter's own last flush does not fail.
            with contextlib.suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secure() -> None:
    """Make standard output and error lasting ones; a standard stream that is closed (`>&-`) becomes one to nowhere.

    Otherwise the next file to be opened would take its number, and what is meant for the stream would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for good
        with contextlib.suppress(AttributeError):  # a name in the user's language on an ASCII terminal
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, LastingStream(stream))
