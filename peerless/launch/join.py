"""`peerless join RUN --data …`: bring data of one's own into a local run that is under way, and follow the new peer.

The run's process owns servers, function and buckets; this one adds a bucket, where the gradients are Lambda's a state
machine, and one peer. Everything that may be wrong with the data is found before anything is made. Whoever leaves takes
its data along; at the run's own end the run removes them, or keeps them for `peerless train --resume`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

import contract.batches
import contract.config
from contract.clock import Clock, SystemClock
from contract.config import DataConfig
from contract.errors import BrokerUnavailable, ConfigError, LocalStackError, PeerlessError, RunFailed
from contract.events import EventLog
from contract.joining import Joined, take_rank
from contract.records import PeerReport
from contract.runspec import RunSpec
from contract.store import ObjectStore
from infra.local import unfinished
from infra.local.broker_accounts import Accounts
from infra.local.cloud import LocalCloud
from infra.local.detached import State
from peerless import data
from peerless.launch import parts as parts_of
from peerless.launch.crew import Crew
from peerless.launch.follow import EventTail, follow
from peerless.launch.guests import one_at_a_time, takes_part
from peerless.launch.interrupts import Interrupts
from peerless.launch.local_session import open_store, own_environment, start_peer
from peerless.launch.parts import Parts
from peerless.launch.resources import create_machine, delete_bucket, function_name, machine_order, reducer_name
from peerless.launch.result import LEFT, UNFINISHED
from peerless.launch.resume import last_spec
from peerless.launch.run_folder import RunFolder
from peerless.launch.workload import invocations_per_round, resolve_mode
from peerless.report.progress import Observer

#: What `--set` may say of a newcomer's data; how they are preprocessed and cut into batches is the run's.
MAY_SET = ("source", "path", "train_samples")
#: So often the state machine is seen to, in seconds.
_ASK_SECONDS = 2.0
#: Sources that need no path.
_PUBLISHED = ("mnist", "fashion-mnist", "cifar10")


def join_local(
    run: str,
    given: str,
    observer: Observer,
    *,
    overrides: Sequence[str] = (),
    runs_dir: Path = Path("runs"),
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Join `run`, a local run's name or folder, with the data that `given` names, and follow the new peer to its end.

    Ctrl-C and SIGTERM make it leave in order; the others go on. Gives what the peer has done. Raises UserError, one
    sentence, before anything is made, and RunFailed when the run or the peer fails.
    """
    clock = clock or SystemClock()
    wanted = data_of(given, overrides)
    run_at_hand = Running.find(run, runs_dir, clock)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(clock))
        observer.note(f"reading {wanted.path or wanted.source}")
        prepared = prepare(run_at_hand, wanted)
        token = secrets.token_hex(3)
        stack.enter_context(takes_part(run_at_hand.folder, token))
        guest = Guest(run_at_hand, prepared, token, observer, clock)
        try:
            joined = guest.take_place()
            interrupts.end_in_order()
            error = guest.follow(stack, interrupts)
            report = guest.report()
        finally:
            interrupts.close()
            guest.settle()
    if error is not None:
        raise RunFailed(f"{error} (logs: {run_at_hand.folder.logs})")
    return told(joined, report)


def data_of(given: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The data that `--data` names, with `--set data.…` on top: a published set's name, an npz file, a folder with a
    folder per class, or `package.module:callable`. Raises ConfigError."""
    for override in overrides:
        section, _, name = override.partition("=")[0].strip().partition(".")
        if section != "data" or name not in MAY_SET:
            raise ConfigError(
                f"--set {override}: whoever joins a run brings data and nothing else; only "
                f"{', '.join(f'data.{each}' for each in MAY_SET)} may be set"
            )
    path = Path(given).expanduser()
    if given in _PUBLISHED:
        named = {"source": given}
    elif path.is_dir():
        named = {"source": "image-folder", "path": str(path.resolve())}
    elif path.is_file():
        named = {"source": "npz", "path": str(path.resolve())}
    elif ":" in given:
        named = {"source": given}
    else:
        raise ConfigError(f"--data {given}: there is no such file or folder, and it is none of {', '.join(_PUBLISHED)}")
    return contract.config.with_overrides({"data": named}, overrides, "--data").data


@dataclass(frozen=True, kw_only=True)
class Running:
    """A local run that goes on, as its folder and its S3 show it to another process."""

    folder: RunFolder
    parts: Parts
    cloud: LocalCloud
    store: ObjectStore
    spec: RunSpec
    made: data.Preprocessing

    @classmethod
    def find(cls, run: str, runs_dir: Path, clock: Clock) -> Running:
        """Raises ConfigError, one sentence, for a run that nobody can join."""
        try:
            folder = parts_of.find(run, runs_dir, "peerless join")
        except ConfigError as error:
            raise ConfigError(
                f"{error}; to a run on AWS a peer is added by raising `peers` and deploying again before it starts"
            ) from error
        if not parts_of.is_going_on(folder):
            raise ConfigError(
                f"the run in {folder.path} is not going on, and only a run that is can be joined; "
                f"`peerless train --local --resume {run}` goes on with one that was not finished"
            )
        state = State.read(folder.path, folder.servers.name)
        if state is None:
            raise ConfigError(f"the run in {folder.path} is not training yet, or no longer; try again in a moment")
        parts = Parts.from_json(folder.parts.read_bytes())
        if parts.deployed:
            raise ConfigError(
                f"run {parts.run} uses what was deployed, where every peer has resources of its own; to have more "
                "peers, raise `peers`, run `peerless deploy --local` again, and start a run"
            )
        cloud = LocalCloud.of(state)
        store = open_store(cloud, clock)
        spec = last_spec(store, parts)
        if spec.config.mode != "sync":
            raise ConfigError(f"run {parts.run} is asynchronous; only synchronous runs can be joined")
        if not spec.config.checkpoint.every_rounds:
            raise ConfigError(
                f"run {parts.run} keeps no checkpoints (checkpoint.every_rounds is 0), from which a new peer would "
                "catch up, so nobody can join it"
            )
        if store.head(spec.places.stop()) is not None:
            raise ConfigError(f"run {parts.run} is about to end; nobody can join it any more")
        found = store.find(spec.places.preprocessing())
        if found is None:
            raise ConfigError(f"run {parts.run} was started by an older version, and cannot be joined")
        made = data.Preprocessing.from_json(found[0])
        return cls(folder=folder, parts=parts, cloud=cloud, store=store, spec=spec, made=made)

    @property
    def code(self) -> list[Path]:
        """Folders to import own code from."""
        return [self.folder.code.resolve()] if self.folder.code.is_dir() else []


def prepare(running: Running, wanted: DataConfig) -> data.Prepared:
    """The newcomer's data, as the run's own are. Raises DataError or ConfigError where they do not fit."""
    config = running.spec.config
    # Images of several sizes are resized while they are read.
    reading = wanted.model_copy(update={"image_size": config.data.image_size})
    dataset = data.load(reading, code=running.code)
    prepared = data.prepare_newcomer(config, running.made, dataset, train_samples=wanted.train_samples)
    resolve_mode(config, prepared.batches)
    return prepared


class Guest:
    """One newcomer, from its bucket to its end."""

    def __init__(self, running: Running, prepared: data.Prepared, token: str, observer: Observer, clock: Clock) -> None:
        """`token` tells apart whoever joins at the same time."""
        self._running, self._prepared, self._token = running, prepared, token
        self._observer, self._clock = observer, clock
        run = running.parts.run
        self._bucket, self._machine = f"peerless-{run}-j-{token}", f"peerless-{run}-guest-{token}"
        self._order: dict[str, str] | None = None
        self._asked_at = clock.monotonic()
        self._arn = ""
        self._s3, self._states = running.cloud.client("s3"), running.cloud.client("stepfunctions")
        self._joined: Joined | None = None
        self._report: PeerReport | None = None

    def take_place(self) -> Joined:
        """Make what the new peer needs, upload its batches, and take the next free rank."""
        running, prepared = self._running, self._prepared
        spec, run = running.spec, running.parts.run
        if running.parts.servers:
            servers = Path(running.parts.servers)
            with one_at_a_time(servers / "guests.lock"):
                known = unfinished.runs(servers).get(run, ())
                unfinished.note(servers, run, [*known, self._bucket])
        try:
            self._s3.create_bucket(Bucket=self._bucket)
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(f"bucket {self._bucket} cannot be created: {error}") from error
        if spec.config.compute.service == "lambda":
            (count,) = invocations_per_round(spec.config, prepared.batches)
            name = running.parts.run
            reducer = "" if spec.config.compute.reduce == "never" else self._function_arn(reducer_name(name))
            worker = self._function_arn(function_name(name))
            self._order = machine_order(spec.config, self._machine, worker, count, reducer)
            self._arn = create_machine(self._states, self._order)
        self._observer.note(f"uploading {prepared.batches[0]} batches of {prepared.samples[0]} samples")
        peers = spec.config.peers
        uploaded: list[Any] = []

        def make(rank: int) -> Joined:
            places = spec.places.with_buckets([self._bucket] * (rank + 1 - peers))
            if not uploaded:
                uploaded.append(data.upload_partition(prepared, running.store, places, rank))
            manifest = contract.batches.Manifest(rank=rank, batches=uploaded[0].batches).to_json()
            running.store.put(places.manifest(rank), manifest)
            return Joined(
                run=spec.run,
                rank=rank,
                samples=prepared.samples[0],
                batches=prepared.batches[0],
                bucket=self._bucket,
                manifest_sha256=hashlib.sha256(manifest).hexdigest(),
                state_machine=self._arn,
                nonce=secrets.token_hex(16),
            )

        self._joined = take_rank(running.store, spec.places, peers, make)
        self._observer.note(f"joining run {run} as peer {self._joined.rank} with {self._joined.samples} samples")
        return self._joined

    def follow(self, stack: ExitStack, interrupts: Interrupts) -> str | None:
        """Start the peer and follow it to its end; what failed, or None."""
        assert self._joined is not None
        running, rank, clock = self._running, self._joined.rank, self._clock
        spec, folder = running.spec, running.folder
        accounts = running.cloud.broker_accounts(spec.run, self._observer.note)
        stack.callback(_close, accounts)
        environment = {
            **running.cloud.environment(os.environ),
            **own_environment(spec.config, folder, spec.code_digest),
            "PEERLESS_BROKER_URL": accounts.url(rank),
        }
        tail = EventTail(folder.events, from_now=True)
        self._observer.training(0, spec.rounds_limit)
        crew = Crew(
            lambda rank: start_peer(stack, folder, spec.places, rank, environment),
            [rank],
            spec.config.membership.model_copy(update={"quorum": 1.0}),
            clock,
            self._tell_restart,
        )
        return follow(crew, tail, OwnEvents(self._observer, rank), clock, lambda: interrupts.wanted, self._look_around)

    def report(self) -> PeerReport | None:
        """What the peer left at its end, while the run's servers are still there; None where it left nothing."""
        assert self._joined is not None
        with contextlib.suppress(PeerlessError):
            found = self._running.store.find(self._running.spec.places.report(self._joined.rank))
            self._report = None if found is None else PeerReport.from_json(found[0])
        return self._report

    def settle(self) -> None:
        """Take the data away again, but for a run that somebody may go on with."""
        stays = self._joined is not None and self._report is None  # it died: it may come back with the run
        goes_on = self._report is not None and self._report.reason in UNFINISHED
        if stays or goes_on:
            return
        with contextlib.suppress(BotoCoreError, ClientError):
            if self._arn:
                self._states.delete_state_machine(stateMachineArn=self._arn)
            delete_bucket(self._s3, self._bucket)

    def _function_arn(self, name: str) -> str:
        try:
            found = self._running.cloud.client("lambda").get_function(FunctionName=name)
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(f"function {name} of run {self._running.parts.run} is not there: {error}") from error
        return str(found["Configuration"]["FunctionArn"])

    def _tell_restart(self, rank: int, died: str, attempt: int) -> None:
        events = EventLog(self._running.folder.events, self._running.spec.run, rank, self._clock)
        events.emit("peer_restarted", fields={"reason": died, "attempt": attempt})
        events.close()

    def _look_around(self) -> str | None:
        """A sentence once the run has gone without a word to its peers."""
        now = self._clock.monotonic()
        if self._order is not None and now - self._asked_at >= _ASK_SECONDS:
            self._asked_at = now
            with contextlib.suppress(LocalStackError):  # a local AWS that was started again has forgotten it
                create_machine(self._states, self._order)
        if parts_of.is_going_on(self._running.folder):
            return None
        return f"run {self._running.parts.run} has ended, and its servers with it"


def _close(accounts: Accounts) -> None:
    with contextlib.suppress(BrokerUnavailable):  # it is gone, or takes them with it
        accounts.close()


class OwnEvents:
    """Passes an observer what concerns one rank."""

    def __init__(self, observer: Observer, rank: int) -> None:
        self._observer, self._rank = observer, rank

    def note(self, text: str) -> None:
        self._observer.note(text)

    def training(self, peers: int, rounds: int) -> None:
        self._observer.training(peers, rounds)

    def event(self, event: Any) -> None:
        if event["rank"] == self._rank:
            self._observer.event(event)


def told(joined: Joined, report: PeerReport | None) -> dict[str, Any]:
    """What the command says at its end."""
    return {
        "run": joined.run,
        "rank": joined.rank,
        "samples": joined.samples,
        "batches": joined.batches,
        "rounds": report.rounds if report else None,
        "reason": report.reason if report else None,
        "left": report is not None and report.reason == LEFT,
        "weights_sha256": report.weights_sha256 if report else None,
        "bytes_sent": report.bytes_sent if report else None,
        "bytes_received": report.bytes_received if report else None,
    }
