"""The protocol as a state machine, as runner and actions see it, whichever the mode."""

from __future__ import annotations

from typing import Protocol

from contract.records import MemberRef
from peer_agent import signals as s


class Machine(Protocol):
    """The protocol as a state machine: `round.RoundMachine` or `asynchronous.AsyncMachine`."""

    round: int

    @property
    def members(self) -> tuple[MemberRef, ...]: ...

    @property
    def leaving(self) -> bool: ...

    @property
    def succession(self) -> tuple[int, ...] | None: ...

    @property
    def contributed(self) -> bool: ...

    @property
    def waiting(self) -> object: ...

    def handle(self, event: s.Event) -> list[s.Command]: ...
