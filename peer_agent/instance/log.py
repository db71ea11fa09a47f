"""The instance's log: one JSON object a line on standard output, from where it goes to CloudWatch.

A line is either a message (`level`, `message`) or one of the peer's events, with its metrics in CloudWatch's embedded
metric format where it has any (`peer_agent/instance/telemetry.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TextIO

from contract.clock import Clock

#: What stands in place of a secret.
MASK = "***"


class Log:
    """Writes lines at once. Whatever was given to `hide` never reaches them."""

    def __init__(self, stream: TextIO, clock: Clock, deployment: str, rank: int) -> None:
        self._stream, self._clock = stream, clock
        self._common = {"deployment": deployment, "rank": rank}
        self._hidden: set[str] = set()
        self.run: str | None = None
        """The run that messages belong to from here on."""

    def hide(self, secret: str) -> None:
        """Never show this text."""
        if secret:
            self._hidden |= {secret, json.dumps(secret)[1:-1]}

    def info(self, message: str, **fields: Any) -> None:
        self._message("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._message("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._message("error", message, fields)

    def line(self, value: Mapping[str, Any]) -> None:
        """One JSON object as it is. Raises ValueError for what JSON cannot hold."""
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        for secret in self._hidden:
            text = text.replace(secret, MASK)
        self._stream.write(text + "\n")
        self._stream.flush()

    def _message(self, level: str, message: str, fields: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in fields.items() if not isinstance(value, float) or math.isfinite(value)}
        run = {} if self.run is None else {"run": self.run}
        self.line({"t": self._clock.now(), "level": level, "message": message, **self._common, **run, **shown})
