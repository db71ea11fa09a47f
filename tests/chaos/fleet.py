"""The peers of one run as processes, and what a test can see of them: their events, their records in S3, their ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from contract.clock import SystemClock
from contract.keys import Place
from contract.records import Commit, PeerReport, Result
from contract.runspec import RunSpec
from contract.store import S3Store
from tests.chaos.faults import PLAN, Fault, Plan, gradient_name

ROOT = Path(__file__).resolve().parents[2]
#: How long anything may take before a test says that it does not happen. Nothing waits so long where all is well.
PATIENCE_SECONDS = 100.0
_LOOK_SECONDS = 0.02
_CLOCK = SystemClock()


class Nursery:
    """The process that makes peers (`tests/chaos/nursery.py`), from this side."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a second thread would be lost by forking
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._pids: dict[int, int] = {}
        self._statuses: dict[int, int] = {}
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._wait(lambda: 0 in self._pids, "the nursery is not ready")

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """A new peer process."""
        assert self._process.stdin is not None
        number = len(self._pids)  # from 1 on: the nursery's own comes first
        request = {"id": number, "arguments": list(arguments), "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        self._wait(lambda: number in self._pids, "the nursery makes no peer")
        return Process(self, number, self._pids[number], log)

    def status(self, number: int) -> int | None:
        """How a process ended, or None while it lives."""
        with self._changed:
            return self._statuses.get(number)

    def clear(self) -> None:
        """Kill whoever lives, and wait for their ends."""
        for number, pid in list(self._pids.items()):
            if number > 0 and self.status(number) is None:
                os.kill(pid, signal.SIGKILL)
        self._wait(lambda: len(self._statuses) == len(self._pids) - 1, "killed peers do not end")

    def close(self) -> None:
        """End it, and with it whoever still lives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._listener.join(10)
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._changed:
                if "pid" in answer:
                    self._pids[answer["id"]] = answer["pid"]
                else:
                    self._statuses[answer["id"]] = answer["status"]
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], failure: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended, PATIENCE_SECONDS)
            assert condition(), failure


@dataclass(frozen=True)
class Process:
    """One peer process."""

    nursery: Nursery
    number: int
    pid: int
    log: Path

    @property
    def status(self) -> int | None:
        """Exit status, -N after signal N; None while it lives."""
        return self.nursery.status(self.number)

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        return self.status is None and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    @property
    def errors(self) -> str:
        """What it printed."""
        return self.log.read_text() if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, number)


@dataclass
class Fleet:
    """A prepared run and the processes of its peers, the latest of each rank last."""

    spec: RunSpec
    store: S3Store
    folder: Path
    environment: Mapping[str, str]
    nursery: Nursery
    processes: dict[int, list[Process]] = field(default_factory=dict)
    _commits: list[Commit] = field(default_factory=list)
    _read: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------- what happens

    def start(self, plan: Plan | None = None, ranks: Sequence[int] | None = None, **environment: str) -> None:
        """Start these ranks (all of them) under `plan`; `environment` comes on top of the run's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for fault in plan.faults if plan else ():
            if fault.do == "wait" and not (self.folder / fault.gate).exists():
                os.mkfifo(self.folder / fault.gate)
        for rank in range(self.spec.config.peers) if ranks is None else ranks:
            arguments = ["--rank", str(rank), "--run", self.spec.run, "--run-bucket", self.spec.places.run_bucket]
            arguments += ["--events", str(self.folder / "events.jsonl"), "--debug"]
            own = {**self.environment, **environment, **({PLAN: plan.to_json()} if plan else {})}
            before = self.processes.setdefault(rank, [])
            log = self.folder / f"peer-{rank}-{len(before) + 1}.log"
            before.append(self.nursery.start(arguments, own, log))

    def process(self, rank: int) -> Process:
        """The latest process of a rank."""
        return self.processes[rank][-1]

    def release(self, *faults: Fault) -> None:
        """Let go whoever waits there."""
        for fault in faults:
            os.close(os.open(self.folder / fault.gate, os.O_WRONLY))

    def interrupt(self) -> None:
        """Ask for an orderly end of the run."""
        rank = next(rank for rank in self.processes if self.process(rank).status is None)
        self.process(rank).send(signal.SIGTERM)

    # ------------------------------------------------------------------------------------------------ what is seen

    def events(self, name: str, rank: int | None = None, round: int | None = None) -> list[dict[str, Any]]:
        """Events so far of this name, of everybody or of one rank, of all rounds or of one."""
        path = self.folder / "events.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
            self._read += len(whole) + 1 if whole else 0
            self._events += map(json.loads, whole.splitlines())
        return [
            event
            for event in self._events
            if event["event"] == name
            and (rank is None or event["rank"] == rank)
            and (round is None or event["round"] == round)
        ]

    def commits(self) -> list[Commit]:
        """The commit records so far, from the run's first round on."""
        places, first = self.spec.places, self.spec.first_round
        while (found := self.store.find(places.commit(first + len(self._commits)))) is not None:
            self._commits.append(Commit.from_json(found[0]))
        return self._commits

    def result(self, round: int) -> Result:
        """The result record of a round."""
        return Result.from_json(self.store.get(self.spec.places.result(round)))

    def report(self, rank: int) -> PeerReport:
        """What a peer said at its end."""
        return PeerReport.from_json(self.store.get(self.spec.places.report(rank)))

    def gradient(self, rank: int, round: int) -> NDArray[np.float32]:
        """What a peer computed in a round, where its plan keeps gradients."""
        found: NDArray[np.float32] = np.load(self.folder / gradient_name(rank, round))
        return found

    def exists(self, place: Place) -> bool:
        """Whether S3 holds an object there."""
        return self.store.head(place) is not None

    # ---------------------------------------------------------------------------------------------------- waiting

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition`. Fails, saying where everybody is, when the time is up or a peer has failed."""
        dead = {(p.number, p.status) for p in self._all() if p.status is not None}

        def new_failure() -> bool:
            ended = {(p.number, p.status) for p in self._all() if p.status is not None}
            return any(status not in (0, -signal.SIGKILL) for _, status in ended - dead)

        self._wait(lambda: condition() or new_failure(), what)
        assert condition(), f"{what}: a peer failed\n{self.whereabouts()}"

    def until_struck(self, *faults: Fault) -> None:
        """Wait until these have happened; one that waits or has stopped stands there then."""
        for fault in faults:
            self.until(lambda fault=fault: self._struck(fault), f"{fault} does not happen")  # type: ignore[misc]

    def until_committed(self, round: int) -> Commit:
        """Wait for the commit of a round."""
        at = round - self.spec.first_round
        self.until(lambda: len(self.commits()) > at, f"no commit of round {round}")
        return self.commits()[at]

    def until_member(self, rank: int, incarnation: int, rounds: int = 2) -> None:
        """Wait until this process has contributed to the latest commits, so many of them."""

        def takes_part() -> bool:
            latest = self.commits()[-rounds:]
            wanted = (rank, incarnation)
            return len(latest) == rounds and all(
                wanted in {(c.rank, c.incarnation) for c in commit.contributors} for commit in latest
            )

        self.until(takes_part, f"rank {rank}, incarnation {incarnation}, takes no part")

    def end(self, expected: Mapping[int, int] | None = None) -> list[PeerReport]:
        """Wait until all latest processes have ended, with status 0 but for `expected`; the reports of status 0."""
        latest = {rank: processes[-1] for rank, processes in self.processes.items()}
        self._wait(lambda: all(p.status is not None for p in latest.values()), "the run does not end")
        wanted = {rank: (expected or {}).get(rank, 0) for rank in latest}
        assert {rank: process.status for rank, process in latest.items()} == wanted, self.whereabouts()
        return [self.report(rank) for rank, status in sorted(wanted.items()) if status == 0]

    def whereabouts(self) -> str:
        """For whoever reads a failed test: the commits, each peer's latest events, and what they printed."""
        lines = [
            f"commit {c.round}: from {[(m.rank, m.incarnation) for m in c.contributors]}, "
            f"next {[(m.rank, m.incarnation) for m in c.members]}, by {c.writer.rank}"
            for c in self.commits()[-6:]
        ]
        self.events("")
        for rank, processes in sorted(self.processes.items()):
            seen = [event for event in self._events if event["rank"] == rank][-4:]
            told = [f"{e['event']}({e['round']}, {e.get('stage', e.get('at', e.get('reason', '')))})" for e in seen]
            lines.append(f"rank {rank}: statuses {[p.status for p in processes]}, latest events {' '.join(told)}")
            lines += [f"    {line}" for p in processes for line in p.errors.splitlines()[-12:]]
        return "\n".join(lines)

    def _struck(self, fault: Fault) -> bool:
        happened = any(event["at"] == fault.at for event in self.events("chaos", fault.rank, fault.round))
        first = self.processes[fault.rank][0]
        if fault.do == "stop":
            return happened and first.stopped
        return happened and (fault.do != "kill" or first.status == -signal.SIGKILL)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        until = _CLOCK.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert _CLOCK.monotonic() < until, f"{what} within {PATIENCE_SECONDS:g} s\n{self.whereabouts()}"
            _CLOCK.sleep(_LOOK_SECONDS)

    def _all(self) -> list[Process]:
        return [process for processes in self.processes.values() for process in processes]
