"""Training on the deployed stacks: upload, switch the peers on, follow, switch them off, fetch the result.

The peers go on without this side: it may let go of a run (Ctrl-C) and take it up again (`attach`). What ends them
whatever happens is put in place before the first one starts: a scheduled action on every group.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import contract.config
from contract.clock import Clock, SystemClock
from contract.config import RunConfig
from contract.errors import ConfigError, PeerlessError, RunFailed
from contract.keys import spec_place
from contract.runspec import RunSpec
from contract.store import S3Store
from peerless import data
from peerless.launch import shipping
from peerless.launch.account import Account
from peerless.launch.aws_session import Adrift, Confirm, LetGo, Session
from peerless.launch.current import CurrentRun
from peerless.launch.deployed import Deployment
from peerless.launch.interrupts import Interrupts
from peerless.launch.kept import Outcome, keep, tell_in_folder
from peerless.launch.run_folder import RunFolder, new_run_id
from peerless.launch.workload import Workload, resolve
from peerless.report.progress import Observer


def train_on_aws(
    config: RunConfig,
    observer: Observer,
    confirm: Confirm,
    *,
    runs_dir: Path = Path("runs"),
    run_dir: Path | None = None,
    dataset: data.Dataset | None = None,
    account: Account | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Run `config` (its paths absolute) on the deployment that it names; returns when the run has ended.

    Raises UserError before anything is spent, RunFailed when a peer failed, and KeyboardInterrupt, its text a sentence,
    when the user has let go of a run that goes on.
    """
    clock = clock or SystemClock()
    started = clock.monotonic()
    run = new_run_id(config.name, clock)
    target = run_dir or runs_dir / run
    RunFolder.check(target)
    shipping.check(config.code)
    account = account or Account()
    deployment = Deployment.find(account.client, config.aws.name)
    if deployment.settings.local:
        raise ConfigError(f"the deployment {config.aws.name} is one on the local AWS; add --local --deployed")
    with tempfile.TemporaryDirectory(prefix="peerless-") as scratch:
        deployment.check(config, shipping.bundle(config.code, Path(scratch) / "code")[1])
    with Interrupts(clock) as interrupts, shipping.importable(config.code):
        session = Session(account, deployment, config.peers, run, observer, clock)
        session.refuse_second_run()
        observer.note("reading the data" if dataset is not None else f"reading {config.data.source}")
        work = Workload.of(config, observer.note, dataset)
        resolved = resolve(config, work.prepared.batches, work.layout.elements)
        session.look_at_account(resolved, work)
        prices = session.agree(resolved, confirm)
        folder = RunFolder.create(target)
        try:
            digest = keep(config, folder, dataset)
            with session.switched_off_at_the_end():
                spec = session.provide(resolved, work, digest, prices)
                session.start(config.aws.max_hours)
                interrupts.end_in_order()
                error = session.follow(folder, spec, interrupts)
            interrupts.close()
            summary = session.conclude(folder, config, spec, work.prepared, error, lambda: clock.monotonic() - started)
        except (LetGo, Adrift):
            raise
        except BaseException as cause:
            interrupts.close()
            tell_in_folder(folder, run, resolved, clock.monotonic() - started, cause)
            raise
    if error is not None:
        raise RunFailed(f"{error} (`peerless logs` shows what the peers wrote)")
    return Outcome(run=run, folder=folder, summary=summary)


def attach(
    name: str,
    run: str | None,
    observer: Observer,
    *,
    runs_dir: Path = Path("runs"),
    run_dir: Path | None = None,
    account: Account | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Follow a run of deployment `name` again (None: its current or last one), and fetch its result.

    The test set is read anew, as the run's configuration says; where that cannot be done here, the model comes without
    a test accuracy. Raises as `train_on_aws` does.
    """
    clock, account = clock or SystemClock(), account or Account()
    deployment = Deployment.find(account.client, name, whole=False)  # results outlive `peerless stop`
    identity = account.identity().account
    store = account.store(clock)
    current = CurrentRun(store, deployment.run_bucket, identity).read()
    if run is None and current is None:
        raise ConfigError(f"no run was started on the deployment {name} yet; `peerless train CONFIG` starts one")
    chosen = run or (current.run if current else "")
    spec = _read_spec(store, deployment, chosen, identity)
    folder = _folder_again(run_dir or runs_dir / chosen, spec)
    session = Session(account, deployment, spec.config.peers, chosen, observer, clock)
    with Interrupts(clock) as interrupts:
        interrupts.end_in_order()
        session.take_up(spec)
        with session.switched_off_at_the_end():
            error = session.follow(folder, spec, interrupts)
        interrupts.close()
        kept = contract.config.from_toml(folder.config)  # its paths are this machine's
        prepared = _prepared_again(kept, observer)
        now = clock.now
        with shipping.importable(kept.code):
            summary = session.conclude(folder, spec.config, spec, prepared, error, lambda: now() - spec.created)
    if error is not None:
        raise RunFailed(f"{error} (`peerless logs` shows what the peers wrote)")
    return Outcome(run=chosen, folder=folder, summary=summary)


def _read_spec(store: S3Store, deployment: Deployment, run: str, owner: str) -> RunSpec:
    name = deployment.settings.name
    try:
        found = store.find(spec_place(run, deployment.run_bucket, owner))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if found is None:
        raise ConfigError(f"the deployment {name} knows no run {run!r}; `peerless status` names the last one")
    return RunSpec.from_json(found[0])


def _folder_again(path: Path, spec: RunSpec) -> RunFolder:
    """The folder that the run was started in, or a new one; events are read anew."""
    folder = RunFolder(path)
    if folder.config.exists():
        if folder.events.exists() and spec.run not in folder.events.read_text(encoding="utf-8", errors="replace"):
            raise ConfigError(f"{path} is the folder of another run; name another with --run-dir")
        folder.events.unlink(missing_ok=True)
        return folder
    created = RunFolder.create(path)
    created.write(created.config, spec.config.to_toml().encode())
    return created


def _prepared_again(config: RunConfig, observer: Observer) -> data.Prepared | None:
    """The data as the run divided them; None, and a note, where they are not to be had here."""
    try:
        with shipping.importable(config.code):
            return data.prepare(config, data.load(config.data, log=observer.note))
    except PeerlessError as error:
        observer.note(f"without a test accuracy: {error}")
        return None
