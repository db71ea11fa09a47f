"""One rank's part in one run: the peer's process, its events on the way to S3 and the log, and what its end means."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from contract.env import InstanceEnv
from contract.errors import PeerlessError, PermanentError, StoreUnavailable
from contract.events import EventLog
from contract.keys import Places
from contract.records import MemberRef, PeerReport
from peer_agent.instance.chunks import Chunks
from peer_agent.instance.ports import InstancePorts, Process
from peer_agent.instance.processes import how_it_ended
from peer_agent.instance.tail import Tail
from peer_agent.instance.telemetry import HEARTBEAT_SECONDS, Telemetry
from peer_agent.records import Records

#: How often a peer is started that died without a word, and the waits in between, in seconds.
RESTART_WAITS = (5.0, 30.0)
#: Claims on one rank, by however many instances, after which it is given up.
MOST_INCARNATIONS = 6
#: What a peer may take to end in order, in seconds; Docker's and systemd's own limits are longer.
END_SECONDS = 100.0
#: Between looks at the process and at its events, in seconds.
TICK_SECONDS = 0.5
#: Tries of the last upload of events, and the waits in between, in seconds.
LAST_WAITS = (1.0, 2.0, 5.0, 10.0, 20.0)
#: A line of the peer's output is shown up to so many characters.
SHOWN = 2_000
#: Exit status of a peer for a mistake that only the user can mend.
USER_MISTAKE = 2


class Ending(Enum):
    """How a part in a run ended."""

    OVER = "over"
    """In order; this rank's report says so."""
    FAILED = "failed"
    """With a report that names the failure."""
    ASKED = "asked"
    """By SIGTERM, before there was a report."""
    SUPERSEDED = "superseded"
    """Another instance holds the rank."""


class Participation:
    """Everything in `folder`, which is made, belongs to this run."""

    def __init__(self, env: InstanceEnv, ports: InstancePorts, places: Places, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._env, self._ports, self._places = env, ports, places
        self._clock, self._log, self._store = ports.clock, ports.log, ports.store
        self._events_path, self._output_path = folder / "events.jsonl", folder / "peer.log"
        self._events = EventLog(self._events_path, places.run, env.rank, ports.clock)
        self._new_events, self._new_output = Tail(self._events_path), Tail(self._output_path)
        self._chunks = Chunks(ports.store, places, env.rank, ports.clock)
        self._telemetry = Telemetry(env.deployment, env.rank)
        self._beat_at = ports.clock.monotonic()
        self._process: Process | None = None
        self._asked = self._forwarded = 0
        self._incarnation, self._rounds = 0, 0  # as the peer's events tell
        self._told: str | None = None  # the failure that the peer told
        self._said = ""  # the last line of its output
        self._upload_failed = ""

    def ask_to_end(self) -> None:
        """Forward SIGTERM to the peer, now or once it runs; safe to call from a signal handler."""
        self._asked += 1
        self._forward()

    def play(self, environment: Mapping[str, str]) -> Ending:
        """Keep the peer going until the run is over for this rank. Raises PermanentError when it is to be given up."""
        deaths: list[str] = []
        for wait in (*RESTART_WAITS, None):
            self._ports.patiently(functools.partial(self._check_claims, deaths))
            self._told = None
            status = self._run_peer(environment, attempt=len(deaths) + 1)
            ending = self._ports.patiently(functools.partial(self._ending, status))
            if ending is not None:
                return ending
            deaths.append(how_it_ended(status))
            if status == USER_MISTAKE or self._told is not None or wait is None:
                break
            self._log.warning(f"the peer {deaths[-1]} without a word; starting it again in {wait:g} s")
            if not self._pause(wait):
                return Ending.ASKED
        raise PermanentError(self._sentence(deaths))

    def give_up(self, sentence: str) -> None:
        """End this rank's part, and so the run: say why in log and events, and to the others by a stop record.

        A report keeps later instances from taking the run up. Storage may be what failed, so whatever of this does not
        work is left.
        """
        self._log.error(sentence)
        if self._told is None:
            self._events.emit("failed", fields={"error": sentence})
        rank = self._env.rank
        me = MemberRef(rank=rank, incarnation=self._incarnation)
        with self._unless_refused("the other peers could not be told"):
            Records(self._store, self._places, me).create_stop(f"failed: peer {rank}: {sentence}", self._rounds)
        with self._unless_refused("no report could be left"):
            self._store.create(self._places.report(rank), self._report(sentence).to_json())

    def close(self) -> None:
        """Bring the last events to S3, and close the file."""
        self._upload_the_rest()
        self._events.close()

    # ---------------------------------------------------------------------------------------------- the process

    def _run_peer(self, environment: Mapping[str, str], attempt: int) -> int:
        """Start the peer and wait for its end; its exit status. Raises PermanentError when it cannot be started."""
        self._log.info("starting the peer", attempt=attempt)
        self._events.emit("instance_started", fields={"attempt": attempt})
        begun = self._clock.monotonic()
        try:
            self._process = self._ports.processes.start(self._command(), environment, self._output_path)
        except OSError as error:
            raise PermanentError(f"the peer's process cannot be started: {error}") from error
        self._forward()
        try:
            status = self._wait_for(self._process)
        finally:
            if self._process.poll() is None:  # only after an error of our own: nobody would look after it any more
                self._process.kill()
            self._process = None
        fields = {"status": status, "seconds": self._clock.monotonic() - begun}
        self._events.emit("instance_ended", fields=fields)
        self._log.info(f"the peer {how_it_ended(status)}", **fields)
        self._pass_on()
        return status

    def _wait_for(self, process: Process) -> int:
        """Pass on what it tells until it has ended; its exit status."""
        kill_at: float | None = None
        while (status := process.poll()) is None:
            now = self._clock.monotonic()
            if self._asked and kill_at is None:
                kill_at = now + END_SECONDS
                self._log.info("ending after this round, as SIGTERM asks")
            if kill_at is not None and now >= kill_at:
                self._log.warning(f"the peer did not end within {END_SECONDS:g} s and is killed")
                process.kill()
            self._pass_on()
            self._clock.sleep(TICK_SECONDS)
        return status

    def _command(self) -> list[str]:
        """The rank belongs to this deployment's role, so an instance takes over what another one of it held."""
        env = self._env
        peer_id = f"{env.deployment}-{env.rank:04d}"
        command = [sys.executable, "-m", "peer_agent", "--rank", str(env.rank), "--run", self._places.run]
        return [*command, "--run-bucket", env.run_bucket, "--events", str(self._events_path), "--peer-id", peer_id]

    def _forward(self) -> None:
        if self._process is not None and self._forwarded < self._asked:
            self._forwarded = self._asked
            self._process.terminate()

    def _ending(self, status: int) -> Ending | None:
        """What the peer's end means; None where it left nothing."""
        found = self._store.find(self._places.report(self._env.rank))
        if found is not None:
            report = PeerReport.from_json(found[0])
            return Ending.OVER if status == 0 and report.error is None else Ending.FAILED
        member = self._records.member(self._env.rank)
        if member is not None and self._incarnation and member.incarnation > self._incarnation:
            self._log.warning(f"another instance holds rank {self._env.rank} now; this one waits to be ended")
            return Ending.SUPERSEDED
        return Ending.ASKED if self._asked else None

    def _check_claims(self, deaths: list[str]) -> None:
        """Raises PermanentError for a rank that was claimed too often, on whatever instances."""
        member = self._records.member(self._env.rank)
        if member is not None and member.incarnation >= MOST_INCARNATIONS:
            self._incarnation = member.incarnation
            lately = f"; lately it {deaths[-1]}" if deaths else ""
            raise PermanentError(f"the peer was started {member.incarnation} times without coming to an end{lately}")

    @property
    def _records(self) -> Records:
        return Records(self._store, self._places, MemberRef(rank=self._env.rank, incarnation=self._incarnation))

    def _sentence(self, deaths: list[str]) -> str:
        """Why this rank is given up."""
        if self._told is not None:
            before = f" (before that it {' and '.join(deaths[:-1])})" if deaths[1:] else ""
            return self._told + before
        times = f", {len(deaths)} times" if deaths[1:] else ""
        said = f"; its output ends with: {self._said}" if self._said else "; it said nothing"
        return f"the peer {deaths[-1]}{times}{said}"

    def _report(self, sentence: str) -> PeerReport:
        return PeerReport(
            run=self._places.run,
            rank=self._env.rank,
            incarnation=self._incarnation,
            rounds=self._rounds,
            epochs=0,
            reason="failed",
            weights_sha256="",
            model_sha256="",
            seconds_training=0.0,
            bytes_sent=0,
            bytes_received=0,
            gradient_bytes_raw=0,
            gradient_bytes_encoded=0,
            lambda_invocations=0,
            state_machine_executions=0,
            error=sentence,
        )

    # ------------------------------------------------------------------------------------------ events and output

    def _pass_on(self) -> None:
        """What is new goes to the log, and what is due to S3."""
        for line in self._new_output.new():
            text = line.decode(errors="replace").rstrip()[:SHOWN]
            if text:
                self._said = text
                self._log.info(text, source="peer")
        lines = self._new_events.new()
        self._chunks.add(lines)
        for line in lines:
            event = json.loads(line)
            self._note(event)
            self._log.line(self._telemetry.line(event))
        now = self._clock.monotonic()
        if now - self._beat_at >= HEARTBEAT_SECONDS:
            self._beat_at = now
            self._log.line(self._telemetry.heartbeat(self._clock.now(), self._places.run))
        self._upload(self._chunks.upload_when_due)

    def _note(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "member_claimed", "incarnation": int(incarnation)}:
                self._incarnation = incarnation
            case {"event": "commit", "round": int(round), "contributors": [_, *_]}:
                self._rounds = round + 1
            case {"event": "averaged", "round": int(round)}:
                self._rounds = round + 1
            case {"event": "failed", "error": str(error)}:
                self._told = error

    def _upload(self, what: Callable[[], None]) -> bool:
        """False, and a line in the log for every new reason, when it fails; what is left goes with a later chunk."""
        try:
            what()
        except (StoreUnavailable, PermanentError) as error:
            if str(error) != self._upload_failed:
                self._upload_failed = str(error)
                self._log.warning(f"events could not be brought to S3: {error}")
            return False
        if not self._chunks.waiting:
            self._upload_failed = ""
        return True

    def _upload_the_rest(self) -> None:
        """Nothing is lost at an end, unless S3 stays away for the better part of a minute."""
        self._pass_on()
        for wait in LAST_WAITS:
            if self._upload(self._chunks.upload):
                return
            self._clock.sleep(wait)
        if not self._upload(self._chunks.upload):
            self._log.error("the last events were lost on the way to S3")

    @contextlib.contextmanager
    def _unless_refused(self, what: str) -> Any:
        try:
            yield
        except PeerlessError as error:
            self._log.warning(f"{what}: {error}")

    def _pause(self, seconds: float) -> bool:
        """Wait; False when SIGTERM ends that."""
        until = self._clock.monotonic() + seconds
        while not self._asked and self._clock.monotonic() < until:
            self._clock.sleep(TICK_SECONDS)
        return not self._asked
