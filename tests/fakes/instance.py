"""An instance without a machine: scripted peers, a secret, a group, and a log in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.env import InstanceEnv
from contract.errors import PeerlessError
from contract.events import EventLog
from contract.keys import Places, current_place
from contract.records import Current, Member, PeerReport
from peer_agent.instance.agent import Instance
from peer_agent.instance.log import Log
from peer_agent.instance.ports import Credentials, InstancePorts
from tests.fakes.clock import FakeClock
from tests.fakes.store import MemoryStore
from tests.unit.test_runspec import spec

RANK, BUCKET, RUN = 1, "runs", "mnist-1"
PASSWORD = "p@ss/w:rd%"
PLACES = Places(run=RUN, run_bucket=BUCKET, peer_buckets=("p0", "p1"), region="us-east-1")


def env(**changes: Any) -> InstanceEnv:
    values = {
        "PEERLESS_DEPLOYMENT": "lab",
        "PEERLESS_RUN_BUCKET": BUCKET,
        "PEERLESS_RANK": str(RANK),
        "PEERLESS_BROKER_ENDPOINT": "amqps://mq.example:5671",
        "PEERLESS_BROKER_SECRET": "arn:secret",
        "PEERLESS_GROUP": "group-1",
        "AWS_REGION": "us-east-1",
    }
    return InstanceEnv.read({**values, **changes})


def report(**changes: Any) -> PeerReport:
    values: dict[str, Any] = {
        "run": RUN, "rank": RANK, "incarnation": 1, "rounds": 3, "epochs": 1, "reason": "epoch_limit",
        "weights_sha256": "a" * 64, "model_sha256": "a" * 64, "seconds_training": 1.0, "bytes_sent": 1,
        "bytes_received": 1, "gradient_bytes_raw": 1, "gradient_bytes_encoded": 1, "lambda_invocations": 0,
        "state_machine_executions": 0,
    }  # fmt: skip
    return PeerReport(**{**values, **changes})


@dataclass
class Script:
    """One life of a peer: so many virtual seconds, then this status; what it writes at its begin and end."""

    seconds: float = 20.0
    status: int = 0
    report: PeerReport | None = None
    events: Sequence[tuple[str, int | None, Mapping[str, Any]]] = ()
    every_second: Callable[[EventLog, int], None] | None = None
    output: str = ""
    asked_status: int | None = 0
    """Status when it is asked to end, two seconds later; None: it does not listen."""
    asked_report: PeerReport | None = None
    at_start: Callable[[], None] | None = None


class ScriptedPeer:
    """A process that follows a script on the fake clock."""

    def __init__(self, script: Script, stage: Stage, log: EventLog) -> None:
        self._script, self._stage, self._log = script, stage, log
        self._begun = stage.clock.monotonic()
        self._ends_at = self._begun + script.seconds
        self._status: int | None = None
        self._next, self._report = script.status, script.report
        self._seconds = 0
        self.asked = self.killed = 0

    def poll(self) -> int | None:
        if self._status is not None:
            return self._status
        now = self._stage.clock.monotonic()
        while self._script.every_second is not None and self._begun + self._seconds < min(now, self._ends_at):
            self._script.every_second(self._log, self._seconds)
            self._seconds += 1
        if now >= self._ends_at:
            for event, round, fields in self._script.events:
                self._log.emit(event, round=round, fields=fields)
            if self._report is not None:
                self._stage.store.put(PLACES.report(RANK), self._report.to_json())
            self._status = self._next
        return self._status

    def terminate(self) -> None:
        self.asked += 1
        if self._script.asked_status is not None:
            self._ends_at = self._stage.clock.monotonic() + 2.0
            self._next, self._report = self._script.asked_status, self._script.asked_report

    def kill(self) -> None:
        self.killed += 1
        self._status = -9


@dataclass
class Stage:
    """Ports in memory and the instance over them. `scripts` are the peer's lives, in order."""

    folder: Path
    scripts: list[Script] = field(default_factory=list)
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: FakeClock = field(default_factory=FakeClock)
    transport: str = "rabbitmq"
    settings: InstanceEnv = field(default_factory=env)

    def __post_init__(self) -> None:
        self.output = io.StringIO()
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.peers: list[ScriptedPeer] = []
        self.released = 0
        self.asked_for: list[str] = []
        self.secret_errors: list[PeerlessError] = []
        self.group_errors: list[PeerlessError] = []
        ports = InstancePorts(
            store=self.store,
            secrets=self,
            group=self,
            processes=self,
            clock=self.clock,
            log=Log(self.output, self.clock, "lab", RANK),
        )
        self.instance = Instance(self.settings, ports, {"PATH": "/bin", "AWS_REGION": "us-east-1"}, self.folder)

    def credentials(self, name: str) -> Credentials:
        self.asked_for.append(name)
        if self.secret_errors:
            raise self.secret_errors.pop(0)
        return Credentials("peer-1", PASSWORD)

    def release(self) -> None:
        if self.group_errors:
            raise self.group_errors.pop(0)
        self.released += 1

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> ScriptedPeer:
        self.commands.append(list(command))
        self.environments.append(dict(environment))
        script = self.scripts.pop(0)
        with open(output, "a") as file:
            file.write(script.output)
        log = EventLog(Path(command[command.index("--events") + 1]), RUN, RANK, self.clock)
        if script.at_start is not None:
            script.at_start()
        self.peers.append(ScriptedPeer(script, self, log))
        return self.peers[-1]

    def announce(self, run: str = RUN) -> None:
        """What the user's side does: the run's configuration, then the record of the current run."""
        made = spec((5, 3), exchange={"transport": self.transport})
        self.store.put(PLACES.spec(), made.to_json())
        self.store.put(current_place(BUCKET), Current(run=run, created=self.clock.now()).to_json())

    def claim(self, incarnation: int) -> None:
        """What a peer does at its start."""
        member = Member(run=RUN, rank=RANK, peer_id="lab-0001", incarnation=incarnation, nonce="n")
        self.store.put(PLACES.member(RANK), member.to_json())

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    def messages(self, *levels: str) -> list[str]:
        return [
            line["message"] for line in self.lines() if line.get("level") in (levels or ("info", "warning", "error"))
        ]

    def chunks(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """(milliseconds, events) of every chunk in the bucket, in the order of keys."""
        prefix = PLACES.events_of(RANK)
        found = []
        for key in self.store.list(prefix.bucket, prefix.key):
            lines = self.store.objects[prefix.bucket, key].splitlines()
            found.append((PLACES.parse_events(RANK, key), [json.loads(line) for line in lines]))
        return found

    def events(self) -> list[dict[str, Any]]:
        """What the user's side has seen at the end."""
        return [event for _, events in self.chunks() for event in events]
