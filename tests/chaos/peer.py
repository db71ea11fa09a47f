"""One peer with faults in its ports: what `python -m peer_agent` does, under the plan in PEERLESS_CHAOS_PLAN.

The seam is the names by which `peer_agent.__main__` builds its ports. They are replaced in this process alone, which
ends with the peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import peer_agent.__main__ as agent
from contract import wire
from contract.clock import SystemClock
from contract.events import EventLog
from contract.wire import FrameHeader, Kind
from tests.chaos.faults import PLAN, Plan
from tests.chaos.ports import ChaosExchange, ChaosGradients, ChaosMetrics, ChaosStore, Injector


def main(arguments: Sequence[str]) -> int:
    """Run one peer to its end; its exit status."""
    if PLAN in os.environ:
        _arm(Plan.from_json(os.environ[PLAN]), arguments)
    return agent.main(arguments)


def _arm(plan: Plan, arguments: Sequence[str]) -> None:
    parsed = agent._parse(arguments)
    clock = SystemClock()
    events = EventLog(parsed.events, parsed.run, parsed.rank, clock)
    injector = Injector(plan, parsed.rank, parsed.events.parent, events, clock)
    stores: list[ChaosStore] = []

    def store(made: Any) -> ChaosStore:
        stores.append(ChaosStore(made, injector))
        return stores[-1]

    if injector.rank in plan.unusable:
        _spoil_from(plan.unusable[injector.rank])
    _decorate("S3Store", store)
    _decorate("open_exchange", lambda made: ChaosExchange(made, injector))
    _decorate("gradient_service", lambda made: ChaosGradients(made, injector, stores[0]))
    _decorate("StageMetrics", lambda made: ChaosMetrics(made, injector))


def _spoil_from(first: int) -> None:
    """Contributions of round `first` and later say something that no honest peer's do, before they are signed."""
    original = wire.encode

    def encode(header: FrameHeader, *content: Any) -> bytes:
        spoiled = header.kind is Kind.UPDATE and header.round >= first
        return original(replace(header, samples=0) if spoiled else header, *content)

    wire.encode = encode  # type: ignore[assignment]


def _decorate(name: str, decorator: Callable[[Any], Any]) -> None:
    """Whatever `peer_agent.__main__` makes by calling `name` comes decorated."""
    original = getattr(agent, name)  # AttributeError: the agent builds this port in another way now
    setattr(agent, name, lambda *given, **named: decorator(original(*given, **named)))
