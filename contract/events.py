"""A process's events: one JSON object a line, for progress views, summaries and research.

Every line holds `v` (1), `t` (seconds since the epoch), `run`, `rank` (null for the user's side), `round` (null outside
of rounds) and `event`; the rest depends on the event and is listed in docs/protocol.md.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.clock import Clock

#: The stages of a round (the paper's Table I), in order.
STAGES = ("compute", "send", "receive", "update", "convergence")

_RESERVED = frozenset({"v", "t", "run", "rank", "round", "event"})


class EventLog:
    """Appends events to a file; several processes may share it, since each line is one write at the file's end.

    With `path` None events go nowhere. A number that is NaN or infinite is written as null, which JSON can hold.
    """

    def __init__(self, path: Path | None, run: str, rank: int | None, clock: Clock) -> None:
        """Opens `path` for appending and creates it, and its folder, where missing. Raises OSError."""
        self._run, self._rank, self._clock = run, rank, clock
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def emit(self, event: str, *, round: int | None = None, fields: Mapping[str, Any] | None = None) -> None:
        """Write one event. Raises ValueError for a field that would hide one of the common keys."""
        if self._file is None:
            return
        fields = fields or {}
        if hidden := _RESERVED & fields.keys():
            raise ValueError(f"event {event} cannot carry a field named {min(hidden)}")
        common = {"v": 1, "t": self._clock.now(), "run": self._run, "rank": self._rank, "round": round, "event": event}
        line = json.dumps(_finite({**common, **fields}), allow_nan=False, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Close the file; later events go nowhere."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
