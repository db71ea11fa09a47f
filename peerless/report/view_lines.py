"""The view of a run that goes on, for whoever watches through a pipe: how it stands, then a line for what is new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType

from contract.clock import Clock, SystemClock
from peerless.report.progress import ROUND_EVENTS, FirstOfItsKind, describe
from peerless.report.view import drawn
from peerless.report.view_state import State, brief

#: Seconds between two lines about rounds: where there is a validation to tell, and where not.
VALIDATED_SECONDS, EVERY_SECONDS = 1.0, 5.0


class StateLines:
    """An `Observer` that prints lines."""

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        self._console, self._clock = console, clock or SystemClock()
        self._state, self._rejected = State(), FirstOfItsKind()
        self._told, self._told_at = 0, -math.inf  # rounds, and the moment of the event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def picture(self) -> RenderableType:
        """How the run stands now."""
        return drawn(self._state, self._clock.now())

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def training(self, peers: int, rounds: int) -> None:
        self._state.begin(peers, rounds or None)
        self._console.print(self.picture())

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in what came before somebody watched; nothing of it is told."""
        for event in events:
            if self._state.add(event):
                self._rejected.is_new(event)
        self._told = self._state.rounds_done

    def ended(self) -> None:
        """Nobody works on the run any more."""
        self._state.over = True

    def event(self, event: Mapping[str, Any]) -> None:
        if not self._state.add(event):
            return
        if event["event"] in ROUND_EVENTS:
            self._round(event)
        elif (
            event["event"] != "validated"
            and self._rejected.is_new(event)
            and (line := describe(event, self._state.rounds_limit or 0)) is not None
        ):
            self.note(line)

    def _round(self, event: Mapping[str, Any]) -> None:
        done = self._state.rounds_done
        validated = event.get("validation_loss") is not None
        enough = VALIDATED_SECONDS if validated else EVERY_SECONDS
        if done > self._told and (event["t"] - self._told_at >= enough or event.get("final")):
            self._told, self._told_at = done, event["t"]
            self.note(brief(self._state))
