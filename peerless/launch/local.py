"""A whole run on this machine: local AWS, RabbitMQ, Lambda workers and one process per peer; then the result.

The order matters for what a user meets: mistakes are found before anything is started, and everything that was started
is stopped on every way out.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from contract.clock import Clock, SystemClock
from contract.config import RunConfig
from contract.errors import PeerlessError, RunFailed
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from infra.local.processes import Child
from infra.local.rabbitmq import check_given
from peerless import data
from peerless.launch import result, shipping
from peerless.launch.deployed import Deployment
from peerless.launch.follow import END_SECONDS, follow
from peerless.launch.interrupts import Interrupts
from peerless.launch.kept import Outcome, keep, tell_in_folder
from peerless.launch.memory import MemoryMeter
from peerless.launch.resources import DeployedResources, LocalResources, Resources, one_run_at_a_time, places_for
from peerless.launch.run_folder import LOCAL_FOLDER, RunFolder, new_run_id
from peerless.launch.upload import provide
from peerless.launch.workload import Workload, batches_per_round, resolve_mode
from peerless.report.progress import Observer


def train_local(
    config: RunConfig,
    observer: Observer,
    *,
    runs_dir: Path = Path("runs"),
    run_dir: Path | None = None,
    dataset: data.Dataset | None = None,
    deployed: bool = False,
    clock: Clock | None = None,
) -> Outcome:
    """Run `config` (its paths absolute) on this machine.

    `run_dir` is the folder of this run, by default `runs_dir/<run-id>`. With `deployed` it uses what
    `peerless deploy --local` made on the servers of `peerless local up`, in place of resources of its own. Ctrl-C and
    SIGTERM end training in order, and the outcome is still complete. Raises UserError before anything is started, and
    RunFailed when a peer failed.
    """
    clock = clock or SystemClock()
    started = clock.monotonic()
    run = new_run_id(config.name, clock)
    target = run_dir or runs_dir / run
    RunFolder.check(target)
    shipping.check(config.code)
    deployment = _deployment(config) if deployed else None
    with Interrupts(clock) as interrupts, shipping.importable(config.code):
        observer.note("reading the data" if dataset is not None else f"reading {config.data.source}")
        work = Workload.of(config, observer.note, dataset)
        resolved = resolve_mode(config, work.prepared.batches)
        given = os.environ.get("PEERLESS_BROKER_URL", "").strip()
        if given and resolved.exchange.transport == "rabbitmq":
            check_given(given)  # before there is a folder of a run that cannot start
        folder = RunFolder.create(target)
        try:
            digest = keep(config, folder, dataset)
            with ExitStack() as stack:
                try:
                    cloud, stays = _cloud(stack, resolved, folder, observer)
                    resources = _resources(stack, run, resolved, cloud, deployment)
                    session = _Session(run, resolved, folder, observer, cloud, resources, clock, work, digest)
                    if stays:
                        stack.callback(session.remove)
                    session.provide()
                    interrupts.end_in_order()
                    error = session.train(stack, interrupts)
                    summary = session.finish(started, error, interrupts.wanted)
                finally:
                    interrupts.close()
        except BaseException as cause:
            interrupts.close()
            tell_in_folder(folder, run, resolved, clock.monotonic() - started, cause)
            raise
    if error is not None:
        raise RunFailed(f"{error} (logs: {folder.logs})")
    return Outcome(run=run, folder=folder, summary=summary)


class _Session:
    """One run from its buckets to its summary, on a cloud that is up."""

    def __init__(
        self,
        run: str,
        config: RunConfig,
        folder: RunFolder,
        observer: Observer,
        cloud: LocalCloud,
        resources: Resources,
        clock: Clock,
        work: Workload,
        code_digest: str,
    ) -> None:
        self._run, self._config, self._folder, self._observer = run, config, folder, observer
        self._cloud, self._clock, self._work, self._digest = cloud, clock, work, code_digest
        self._resources, self._places = resources, resources.places
        self._store = self._open_store()
        self._memory = MemoryMeter(clock)
        self._rounds = 0
        self._broken: str | None = None  # how a server ended that the peers need

    def provide(self) -> None:
        """Buckets, workers, state machines, data, initial weights and the run's specification."""
        config, work = self._config, self._work
        batches = work.prepared.batches
        self._observer.note(f"uploading {sum(batches)} batches of {config.peers} peers")
        # First, because workers import torch while the data travel.
        counts = batches_per_round(config, batches)
        machines = self._resources.provide(config, counts, self._environment(), self._workers())
        spec = provide(
            config,
            work,
            self._store,
            self._places,
            machines=machines,
            code_digest=self._digest,
            clock=self._clock,
        )
        self._rounds = spec.rounds_limit

    def train(self, stack: ExitStack, interrupts: Interrupts) -> str | None:
        """Start the peers and follow them to their end; returns what failed, or None."""
        self._observer.training(self._config.peers, self._rounds)
        children = [self._start_peer(stack, rank) for rank in range(self._config.peers)]
        return follow(
            children, self._folder.events, self._observer, self._clock, lambda: interrupts.wanted, self._look_around
        )

    def _look_around(self) -> str | None:
        """Measure, and see whether the servers of this run live; a sentence when one does not."""
        self._memory.sample()
        self._broken = self._broken or next(iter(self._cloud.failures()), None)
        return self._broken

    def finish(self, started: float, error: str | None, interrupted: bool) -> dict[str, Any]:
        """Fetch and test the saved model, and write model.safetensors and summary.json."""
        store = self._open_store(attempts=1) if self._broken else self._store
        return result.conclude(
            self._folder,
            store,
            self._places,
            self._config,
            self._work.spec,
            self._work.prepared.test_batches,
            counters=self._resources.counters,
            peak_memory_bytes=self._memory.peak_bytes,
            seconds_total=lambda: self._clock.monotonic() - started,
            error=error,
            interrupted=interrupted,
        )

    def _open_store(self, attempts: int = 5) -> S3Store:
        cloud = self._cloud
        return S3Store(
            region=cloud.region,
            endpoint_url=cloud.endpoint_url,
            clock=self._clock,
            attempts=attempts,
            session=cloud.session(),
        )

    def remove(self) -> None:
        """Take what the run made off a cloud that goes on; what cannot be removed is told."""
        try:
            self._resources.remove()
        except PeerlessError as error:  # the run's own outcome matters more
            self._observer.note(str(error))

    def _start_peer(self, stack: ExitStack, rank: int) -> Child:
        command = [sys.executable, "-m", "peer_agent", "--rank", str(rank), "--run", self._run]
        command += ["--run-bucket", self._places.run_bucket, "--events", str(self._folder.events)]
        scratch = self._folder.scratch(rank)
        child = Child.start(
            f"peer {rank}",
            command,
            env={**self._cloud.environment(os.environ), **self._environment(), "TMPDIR": str(scratch)},
            log_path=self._folder.logs / f"peer-{rank}.log",
            grace_seconds=END_SECONDS,
            afterwards=["rm", "-rf", str(scratch)],
        )
        stack.callback(child.kill)
        return child

    def _environment(self) -> dict[str, str]:
        """What peers and workers need beside the servers' addresses: the user's code and the configured threads."""
        threads = str(self._config.compute.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self._digest:
            code = str(self._folder.code.resolve())
            environment["PEERLESS_CODE_DIR"] = code
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
        return environment

    def _workers(self) -> int:
        return self._config.compute.local_workers or _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cloud(stack: ExitStack, config: RunConfig, folder: RunFolder, observer: Observer) -> tuple[LocalCloud, bool]:
    """The cloud that `peerless local up` keeps running here, or one for this run alone; and whether it stays."""
    broker = config.exchange.transport == "rabbitmq"
    if LocalCloud.status(LOCAL_FOLDER)["state"] == "running":
        observer.note("using the servers of `peerless local up`")
        given = os.environ.get("PEERLESS_BROKER_URL", "").strip() if broker else ""
        return LocalCloud.attach(LOCAL_FOLDER, broker_url=given or None), True
    observer.note(f"starting local AWS{', RabbitMQ' if broker else ''} and the Lambda service")
    return stack.enter_context(LocalCloud.start(folder.path, broker=broker, log=observer.note)), False


def _deployment(config: RunConfig) -> Deployment:
    """The deployment that the configuration names, on the servers of `peerless local up`."""
    found = Deployment.find(LocalCloud.attach(LOCAL_FOLDER).client, config.aws.name)
    found.check(config)
    return found


def _resources(
    stack: ExitStack, run: str, config: RunConfig, cloud: LocalCloud, deployment: Deployment | None
) -> Resources:
    if deployment is None:
        return LocalResources(cloud, places_for(run, config.peers, cloud.region))
    stack.enter_context(one_run_at_a_time(LOCAL_FOLDER, deployment.settings.name))
    return DeployedResources(cloud, deployment, run, config.peers)
