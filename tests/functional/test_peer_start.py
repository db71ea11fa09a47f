"""What a peer's process does between its claim and its first round, with stores and exchanges in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from contract.env import AgentEnv
from contract.events import EventLog
from contract.keys import Places
from contract.records import Heartbeat, Member
from contract.signing import verify
from peer_agent import __main__ as process
from peer_agent.keyring import USE
from tests.fakes.clock import FakeClock
from tests.fakes.small_run import prepare_run
from tests.fakes.store import MemoryStore
from tests.fakes.sync_runs import configuration

BUCKETS = ("peer-0", "peer-1", "peer-2")


class BuildsAModelError(Exception):
    """Raised where a real process would fetch weights and build its model, for as long as that takes."""


class Beating:
    """As much of an exchange as is needed before the first round."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def beat(self, body: bytes) -> None:
        self.bodies.append(body)

    def close(self, retire: bool = False) -> None:
        pass


def test_its_heart_beats_from_its_claim_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever sees the claim counts on it, and drops what is silent for longer than building a large model takes."""
    store, exchange, clock = MemoryStore(), Beating(), FakeClock()
    places = Places(run="trial", run_bucket="run", peer_buckets=BUCKETS, region="local")
    prepare_run(store, configuration(), (24, 24, 12), places)
    when_building: list[int] = []

    def build(*_: Any) -> Any:
        when_building.append(len(exchange.bodies))
        raise BuildsAModelError

    monkeypatch.setattr(store, "close", lambda: None, raising=False)
    monkeypatch.setattr(process, "S3Store", lambda **_: store)
    monkeypatch.setattr(process, "open_exchange", lambda *_, **__: exchange)
    monkeypatch.setattr(process, "_prepare_process", lambda *_: None)
    monkeypatch.setattr(process, "_MODES", {"sync": build})
    arguments = process._parse(["--rank", "1", "--run", "trial", "--run-bucket", "run", "--peer-id", "one"])
    env = AgentEnv(broker_url="", endpoint_url=None, region="local", code_dir=None)
    events = EventLog(tmp_path / "events.jsonl", "trial", 1, clock)
    with ExitStack() as stack, pytest.raises(BuildsAModelError):
        process._build(arguments, env, clock, events, stack)
    assert when_building == [1]
    claim = Member.from_json(store.get(places.member(1)))
    heartbeat = Heartbeat.from_json(exchange.bodies[0])
    assert (heartbeat.run, heartbeat.rank, heartbeat.incarnation) == ("trial", 1, claim.incarnation)
    assert verify(heartbeat, claim.public_keys[USE]), "by the key that the claim names"
