"""A whole run on this machine: local AWS, RabbitMQ, Lambda workers and one process per peer; then the result.

The order matters for what a user meets: mistakes are found before anything is started, and everything that was started
is stopped on every way out.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from contract.clock import Clock, SystemClock
from contract.config import RunConfig
from contract.errors import RunFailed
from infra.local.rabbitmq import check_given
from peerless import data
from peerless.launch import shipping
from peerless.launch.interrupts import Interrupts
from peerless.launch.kept import Outcome, keep, tell_in_folder
from peerless.launch.local_session import (
    Desk,
    Session,
    deployment_of,
    lasting_cloud,
    lasting_servers_run,
    own_cloud,
    resources_of,
    resume_command,
    tariff_of,
)
from peerless.launch.parts import Parts, held
from peerless.launch.resources import places_for
from peerless.launch.run_folder import LOCAL_FOLDER, RunFolder, new_run_id
from peerless.launch.upload import provide
from peerless.launch.workload import Workload, resolve
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
    deployment = deployment_of(config) if deployed else None
    with Interrupts(clock) as interrupts, shipping.importable(config.code):
        observer.note("reading the data" if dataset is not None else f"reading {config.data.source}")
        work = Workload.of(config, observer.note, dataset)
        resolved = resolve(config, work.prepared.batches, work.layout.elements)
        tariff = tariff_of(resolved, observer, clock)
        check_broker(resolved)  # before there is a folder of a run that cannot start
        folder = RunFolder.create(target)
        try:
            digest = keep(config, folder, dataset)
            with ExitStack() as stack:
                try:
                    stack.enter_context(held(folder))
                    lasting = lasting_servers_run()
                    cloud = (
                        lasting_cloud(resolved, observer) if lasting else own_cloud(stack, resolved, folder, observer)
                    )
                    places = places_for(run, config.peers, cloud.region)
                    parts = Parts(
                        runs=(run,),
                        run_bucket=places.run_bucket,
                        servers=str(LOCAL_FOLDER.resolve()) if lasting else "",
                        deployed=deployed,
                    )
                    resources = resources_of(stack, parts, places, cloud, deployment, config.peers)
                    desk = Desk(
                        folder=folder,
                        observer=observer,
                        clock=clock,
                        cloud=cloud,
                        resources=resources,
                        parts=replace(parts, run_bucket=resources.places.run_bucket),
                        code_digest=digest,
                        tariff=tariff,
                        started=started,
                    )
                    session = Session(desk, resolved, work.spec, work.prepared.test_batches)
                    stack.callback(session.settle)
                    batches = work.prepared.batches
                    observer.note(f"uploading {sum(batches)} batches of {config.peers} peers")
                    machines = session.make_resources(batches)  # first: workers import torch while the data travel
                    session.ready(
                        provide(
                            resolved,
                            work,
                            session.store,
                            resources.places,
                            machines=machines,
                            code_digest=digest,
                            clock=clock,
                            prices=tariff.for_peers(),
                            object_bytes=data.LOCAL_OBJECT_BYTES,
                        )
                    )
                    interrupts.end_in_order()
                    error = session.train(stack, interrupts)
                    summary = session.finish(error, interrupts.wanted)
                finally:
                    interrupts.close()
        except BaseException as cause:
            interrupts.close()
            tell_in_folder(folder, run, resolved, clock.monotonic() - started, cause, resume_command(folder))
            raise
    if error is not None:
        raise RunFailed(f"{error} (logs: {folder.logs})")
    return Outcome(run=run, folder=folder, summary=summary)


def check_broker(config: RunConfig) -> None:
    """See that the broker answers that PEERLESS_BROKER_URL names, if the run needs one.

    Raises ConfigError, BrokerUnavailable.
    """
    given = os.environ.get("PEERLESS_BROKER_URL", "").strip()
    if given and config.exchange.transport == "rabbitmq":
        check_given(given)
