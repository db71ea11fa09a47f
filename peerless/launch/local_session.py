"""One local run from its buckets to its summary, on a cloud that is up: begun here, or taken up again."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from contract.clock import Clock
from contract.computing import local_workers
from contract.config import RunConfig
from contract.env import ALLOCATOR
from contract.errors import BrokerUnavailable, PeerlessError
from contract.events import EventLog
from contract.joining import Joined, joined_ranks
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.runspec import RunSpec
from contract.store import S3Store
from infra.local import ministack, unfinished
from infra.local.broker_accounts import Accounts
from infra.local.cloud import LocalCloud
from infra.local.processes import Child
from peerless.cost import Tariff
from peerless.launch import result
from peerless.launch.billing import Billing
from peerless.launch.crew import Crew
from peerless.launch.deployed import Deployment, settings_for
from peerless.launch.follow import END_SECONDS, EventTail, Told, follow
from peerless.launch.guests import wait_for_all
from peerless.launch.interrupts import Interrupts
from peerless.launch.memory import MemoryMeter
from peerless.launch.parts import Parts
from peerless.launch.resources import DeployedResources, LocalResources, Resources, one_run_at_a_time
from peerless.launch.run_folder import LOCAL_FOLDER, RunFolder
from peerless.launch.workload import invocations_per_round
from peerless.report.progress import Observer

TestBatches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a session works with."""

    folder: RunFolder
    observer: Observer
    clock: Clock
    cloud: LocalCloud
    resources: Resources
    parts: Parts
    """The internal run that the session is about is the last one."""
    code_digest: str
    tariff: Tariff
    """With what the run is billed, as if it were on AWS."""
    started: float
    """Monotonic seconds."""
    seconds_before: float = 0.0
    """What the run's earlier parts took."""

    @property
    def command(self) -> str:
        """Goes on with the run."""
        return resume_command(self.folder)


class Session:
    """One internal run of a local run."""

    def __init__(self, desk: Desk, config: RunConfig, model: ModelSpec, tests: TestBatches) -> None:
        """`config` has a concrete form of the state machine; `tests` gives the batches of the test set."""
        self._desk, self._config, self._model, self._tests = desk, config, model, tests
        self._places = desk.resources.places
        self.store = open_store(desk.cloud, desk.clock)
        self._memory = MemoryMeter(desk.clock)
        self._broken: str | None = None  # how a server ended that the peers need
        self._crew: Crew | None = None
        self._spec: RunSpec | None = None
        self._joined: tuple[Joined, ...] = ()
        self._finished = False
        self._accounts: Accounts | None = None  # the peers' on the broker

    def make_resources(self, batches: tuple[int, ...]) -> tuple[str, ...]:
        """Buckets, workers and state machines; the machines' ARNs by rank. `batches` are those of the partitions."""
        counts = invocations_per_round(self._config, batches)
        return self._desk.resources.provide(self._config, counts, self._environment(), self._workers())

    def bring(self, guests: Sequence[Joined]) -> None:
        """State machines for those who had joined an earlier part of the run."""
        for guest in guests:
            if guest.state_machine:
                (count,) = invocations_per_round(self._config, (guest.batches,))
                self._desk.resources.add(self._config, guest.state_machine.rpartition(":")[2], count)

    def ready(self, spec: RunSpec) -> None:
        """The run lies in its buckets; from here on it can be taken up again, so what holds its data is noted."""
        desk = self._desk
        self._spec = spec
        desk.parts.write(desk.folder)
        if desk.parts.servers and not desk.parts.deployed:
            places = spec.places
            unfinished.note(Path(desk.parts.servers), desk.parts.run, [places.run_bucket, *places.peer_buckets])
        desk.cloud.state().write(desk.folder.path, desk.folder.servers.name)

    def train(self, stack: ExitStack, interrupts: Interrupts, guests: Collection[int] = ()) -> str | None:
        """Start the peers and follow them to their end; returns what failed, or None.

        `guests` are ranks that had joined an earlier part of the run, and whose data are here.
        """
        assert self._spec is not None
        desk, config = self._desk, self._config
        self._accounts = desk.cloud.broker_accounts(self._places.run, desk.observer.note)
        desk.observer.training(config.peers, self._spec.rounds_limit)
        tail = EventTail(desk.folder.events, from_now=True)
        self._crew = Crew(
            lambda rank: self._start_peer(stack, rank),
            [*range(config.peers), *guests],
            config.membership,
            desk.clock,
            self._tell_restart,
            guests,
        )
        error = follow(self._crew, tail, desk.observer, desk.clock, lambda: interrupts.wanted, self._look_around)
        desk.folder.servers.unlink(missing_ok=True)  # nobody joins any more
        if not wait_for_all(desk.folder, desk.clock):
            desk.observer.note("somebody who joined this run does not end; not waiting any longer")
        return error

    def finish(self, error: str | None, interrupted: bool) -> dict[str, Any]:
        """Fetch and test the saved model, and write model.safetensors and summary.json."""
        desk = self._desk
        store = open_store(desk.cloud, desk.clock, attempts=1) if self._broken else self.store
        with contextlib.suppress(*([PeerlessError] if error else [])):
            self._joined = joined_ranks(store, self._places, self._config.peers)
        summary = result.conclude(
            desk.folder,
            store,
            self._places,
            self._config,
            self._model,
            self._tests,
            earlier=[self._places.of_run(run) for run in desk.parts.runs[:-1]],
            joined=self._joined,
            run=desk.parts.run,
            resume=desk.command,
            counters=desk.resources.counters,
            bill=Billing(
                tariff=desk.tariff,
                config=self._config,
                store=store,
                requests=store.counts,
                places=[*(self._places.of_run(run) for run in desk.parts.runs[:-1]), self._places],
                events=desk.folder.events,
                now=desk.clock.now(),
            ),
            peak_memory_bytes=self._memory.peak_bytes,
            seconds_total=lambda: desk.seconds_before + desk.clock.monotonic() - desk.started,
            error=error,
            interrupted=interrupted,
        )
        self._finished = summary["reason"] not in result.UNFINISHED
        return summary

    def settle(self) -> None:
        """Keep what going on takes, or take everything off; to be called once the peers have ended."""
        desk = self._desk
        if self._accounts is not None:
            with contextlib.suppress(BrokerUnavailable):  # it is gone, or takes them with it
                self._accounts.close()
        keep = not self._finished and Told.of(desk.folder.events).rounds > 0
        desk.cloud.keep_data = keep
        desk.folder.servers.unlink(missing_ok=True)
        if keep:
            desk.observer.note(f"to go on with this run: {desk.command}")
        else:
            desk.folder.parts.unlink(missing_ok=True)
        if not desk.parts.servers:
            return
        try:
            desk.resources.adopt([each.bucket for each in self._joined], [each.state_machine for each in self._joined])
            desk.resources.remove(keep_buckets=keep)
            if not keep:
                unfinished.forget(Path(desk.parts.servers), desk.parts.run)
        except (PeerlessError, OSError) as error:  # the run's own outcome matters more
            desk.observer.note(str(error))

    def _tell_restart(self, rank: int, died: str, attempt: int) -> None:
        events = EventLog(self._desk.folder.events, self._places.run, rank, self._desk.clock)
        events.emit("peer_restarted", fields={"reason": died, "attempt": attempt})
        events.close()

    def _look_around(self) -> str | None:
        """Measure, and see to the servers of this run; a sentence when one is gone for good."""
        desk = self._desk
        self._memory.sample()
        gone = desk.cloud.mend(desk.observer.note, self._restore)
        self._broken = self._broken or next(iter(gone), None)
        return self._broken

    def _restore(self, server: str) -> None:
        """Make once more what a MiniStack that was started again had in memory alone."""
        if server == ministack.NAME:
            self._desk.resources.restore()

    def _start_peer(self, stack: ExitStack, rank: int) -> Child:
        assert self._accounts is not None
        environment = {
            **self._desk.cloud.environment(os.environ),
            **self._environment(),
            "PEERLESS_BROKER_URL": self._accounts.url(rank),
        }
        return start_peer(stack, self._desk.folder, self._places, rank, environment)

    def _environment(self) -> dict[str, str]:
        return own_environment(self._config, self._desk.folder, self._desk.code_digest)

    def _workers(self) -> int:
        return local_workers(self._config.compute, _cores())


def start_peer(stack: ExitStack, folder: RunFolder, places: Places, rank: int, environment: dict[str, str]) -> Child:
    """A peer's process, which does not outlive `stack`. Raises LocalStackError.

    The identity is the rank's in this run, so that a peer that is started again takes its rank over at once.
    """
    command = [sys.executable, "-m", "peer_agent", "--rank", str(rank), "--run", places.run]
    command += ["--run-bucket", places.run_bucket, "--events", str(folder.events)]
    scratch = folder.scratch(rank)
    child = Child.start(
        f"peer {rank}",
        command,
        env={**ALLOCATOR, **environment, "TMPDIR": str(scratch)},
        log_path=folder.logs / f"peer-{rank}.log",
        grace_seconds=END_SECONDS,
        afterwards=["rm", "-rf", str(scratch)],
    )
    stack.callback(child.kill)
    return child


def tariff_of(config: RunConfig, observer: Observer, clock: Clock) -> Tariff:
    """With what a local run of `config` is billed, as if on AWS; tells what a user should know of the prices.

    Raises ConfigError for prices that cannot be used.
    """
    tariff = Tariff.local(config, settings_for)
    for warning in tariff.warnings(clock.now()):
        observer.note(f"note: {warning}")
    return tariff


def own_environment(config: RunConfig, folder: RunFolder, code_digest: str) -> dict[str, str]:
    """What peers and workers need beside the servers' addresses: the user's code and the configured threads."""
    threads = str(config.compute.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if code_digest:
        code = str(folder.code.resolve())
        environment["PEERLESS_CODE_DIR"] = code
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    return environment


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resume_command(folder: RunFolder) -> str:
    """What goes on with the run in `folder`."""
    return f"peerless train --local --resume {folder.path}"


def open_store(cloud: LocalCloud, clock: Clock, attempts: int = 5) -> S3Store:
    """The S3 of `cloud`."""
    return S3Store(
        region=cloud.region, endpoint_url=cloud.endpoint_url, clock=clock, attempts=attempts, session=cloud.session()
    )


def resources_of(
    stack: ExitStack, parts: Parts, buckets: Places, cloud: LocalCloud, deployment: Deployment | None, peers: int
) -> Resources:
    """The resources of the last internal run of `parts`; `buckets` are its places where it has buckets of its own."""
    if deployment is None:
        return LocalResources(cloud, buckets, parts.run)
    stack.enter_context(one_run_at_a_time(LOCAL_FOLDER, deployment.settings.name))
    return DeployedResources(cloud, deployment, parts.runs[-1], peers)


def own_cloud(stack: ExitStack, config: RunConfig, folder: RunFolder, observer: Observer) -> LocalCloud:
    """Servers for this run alone, over what an earlier part of it has left."""
    broker = config.exchange.transport == "rabbitmq"
    observer.note(f"starting local AWS{', RabbitMQ' if broker else ''} and the Lambda service")
    return stack.enter_context(LocalCloud.start(folder.path, broker=broker, log=observer.note))


def lasting_cloud(config: RunConfig, observer: Observer) -> LocalCloud:
    """The servers of `peerless local up`, which must run."""
    observer.note("using the servers of `peerless local up`")
    given = os.environ.get("PEERLESS_BROKER_URL", "").strip() if config.exchange.transport == "rabbitmq" else ""
    return LocalCloud.attach(LOCAL_FOLDER, broker_url=given or None)


def lasting_servers_run() -> bool:
    """Whether `peerless local up` has servers here that all answer."""
    return bool(LocalCloud.status(LOCAL_FOLDER)["state"] == "running")


def deployment_of(config: RunConfig) -> Deployment:
    """The deployment that the configuration names, on the servers of `peerless local up`."""
    found = Deployment.find(LocalCloud.attach(LOCAL_FOLDER).client, config.aws.name)
    found.check(config)
    return found
