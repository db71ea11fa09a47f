"""Peers' processes that are none, and a crew of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from contract.config import MembershipConfig
from peerless.launch.crew import Crew
from tests.fakes.clock import FakeClock


@dataclass
class FakeChild:
    """A process that ends with the given statuses, one per look."""

    statuses: list[int | None]
    log: str = ""
    terminated: bool = False
    killed: bool = False

    def poll(self) -> int | None:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def terminate(self) -> None:
        self.terminated = True
        if self.statuses[0] is None:
            self.statuses = [0]

    def kill(self) -> None:
        self.killed, self.statuses = True, [137]

    def log_tail(self) -> str:
        return self.log


def crew_of(
    lives: Sequence[Sequence[FakeChild]],
    *,
    clock: FakeClock,
    told: Callable[[int, str, int], None] = lambda *_: None,
    guests: Collection[int] = (),
    **membership: Any,
) -> Crew:
    """Peers of which each has one process after the other, and no more restarts than it has processes."""
    waiting = [list(processes) for processes in lives]
    settings = {"restarts": max(len(processes) for processes in lives) - 1, **membership}
    return Crew(
        lambda rank: waiting[rank].pop(0),  # type: ignore[arg-type,return-value]
        range(len(lives)),
        MembershipConfig(**settings),
        clock,
        told,
        guests,
    )
