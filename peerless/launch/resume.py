"""`peerless train --local --resume RUN`: go on with a run that was interrupted, failed, or killed with everything.

The objects of its S3 are still there, in the run's folder or with the servers of `peerless local up`. A new internal
run starts from the weights of the last round that was completed, as `contract/history.py` finds it; its peers bring
their optimizers up to there by the latest checkpoint and the commits since. Batches stay where they are: manifests name
them by their whole keys, and are copied, like validation set and weights, to where the new run looks for its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract.config
from contract.batches import encode_batch
from contract.clock import Clock, SystemClock
from contract.code import code_digest
from contract.config import RunConfig
from contract.errors import ConfigError, ObjectMissing, RunFailed
from contract.history import History, ResumePoint
from contract.joining import Joined, joined_ranks
from contract.keys import Place, Places, spec_place
from contract.prices import Prices
from contract.records import Commit
from contract.runspec import RunSpec
from contract.store import ObjectStore
from infra.local.cloud import LocalCloud
from peerless.launch import parts as parts_of
from peerless.launch import shipping
from peerless.launch.interrupts import Interrupts
from peerless.launch.kept import Outcome, tell_in_folder
from peerless.launch.local import check_broker
from peerless.launch.local_session import (
    Desk,
    Session,
    deployment_of,
    lasting_cloud,
    lasting_servers_run,
    open_store,
    own_cloud,
    resources_of,
    tariff_of,
)
from peerless.launch.parts import Parts
from peerless.launch.run_folder import LOCAL_FOLDER, RunFolder
from peerless.launch.workload import Workload
from peerless.report.progress import Observer

#: What of a configuration may be another one from here on: how long, with whom, how the state is kept, at what prices.
MAY_CHANGE = ("epochs", "membership", "checkpoint", "early_stopping", "cost")


def resume_local(
    run: str,
    observer: Observer,
    *,
    overrides: Sequence[str] = (),
    runs_dir: Path = Path("runs"),
    clock: Clock | None = None,
) -> Outcome:
    """Go on with `run`, which is a run's name or its folder, to its end.

    Raises ConfigError, one sentence, for what cannot be resumed, and else as `train_local` does.
    """
    clock = clock or SystemClock()
    started = clock.monotonic()
    folder = parts_of.find(run, runs_dir)
    with ExitStack() as stack:
        stack.enter_context(parts_of.held(folder))
        known = parts_of.read(folder)
        parts = known.next()
        config = changed(folder, overrides)
        shipping.check(config.code)
        digest = code_digest(folder.code) if config.code.include else ""
        interrupts = stack.enter_context(Interrupts(clock))
        stack.enter_context(shipping.importable(config.code))
        observer.note(f"reading {config.data.source}")
        work = Workload.of(config.model_copy(update={"init_from": ""}), observer.note)
        parts_of.drop_torn_line(folder.events)
        try:
            cloud = _cloud(stack, known, config, folder, observer)
            store = open_store(cloud, clock)
            old = last_spec(store, known)
            same(old, config, work, digest)
            resolved = old.config.model_copy(update={name: getattr(config, name) for name in MAY_CHANGE})
            history = History(store, old)
            point = resume_point(history, resolved, old)
            tariff = tariff_of(resolved, observer, clock)
            deployment = deployment_of(config) if known.deployed else None
            places = old.places.of_run(parts.runs[-1])
            desk = Desk(
                folder=folder,
                observer=observer,
                clock=clock,
                cloud=cloud,
                resources=resources_of(stack, parts, places, cloud, deployment, config.peers),
                parts=parts,
                code_digest=digest,
                tariff=tariff,
                started=started,
                seconds_before=seconds_before(folder),
            )
            session = Session(desk, resolved, old.model, work.prepared.test_batches)
            stack.callback(session.settle)
            observer.note(told(point))
            parts.write(folder)  # first, because a name that was begun with is not used again
            folder.write(folder.config, config.to_toml().encode())
            machines = session.make_resources(old.batches)
            joined = carried_over(store, old, places)
            guests = guests_of(history, joined, store)
            session.bring(guests)
            for guest in guests:
                observer.note(f"peer {guest.rank}, which had joined, goes on with its data, which are still here")
            prices = tariff.for_peers()
            session.ready(continued(store, old, resolved, places, point, machines, clock, prices))
            clear(store, history, point)
            folder.summary.unlink(missing_ok=True)
            interrupts.end_in_order()
            try:
                error = session.train(stack, interrupts, [guest.rank for guest in guests])
                summary = session.finish(error, interrupts.wanted)
            except BaseException as cause:
                interrupts.close()
                seconds = desk.seconds_before + clock.monotonic() - started
                tell_in_folder(folder, parts.run, resolved, seconds, cause, desk.command)
                raise
        finally:
            interrupts.close()
    if error is not None:
        raise RunFailed(f"{error} (logs: {folder.logs})")
    return Outcome(run=parts.run, folder=folder, summary=summary)


def last_spec(store: ObjectStore, parts: Parts) -> RunSpec:
    """The specification of the last internal run that got one. Raises ConfigError, CorruptObject."""
    for run in reversed(parts.runs):
        found = store.find(spec_place(run, parts.run_bucket))
        if found is not None:
            return RunSpec.from_json(found[0])
    raise ConfigError(f"run {parts.run} cannot be resumed: its data are gone")


def changed(folder: RunFolder, overrides: Sequence[str]) -> RunConfig:
    """The run's configuration with `overrides`. Raises ConfigError for one that a run cannot change half way."""
    before = contract.config.from_toml(folder.config)
    after = contract.config.from_toml(folder.config, overrides)
    cost = shipping.resolve_paths(after, Path.cwd()).cost  # the other paths stay what they were
    after = after.model_copy(update={"cost": cost})
    for name, value in after.model_dump().items():
        if name not in MAY_CHANGE and value != before.model_dump()[name]:
            raise ConfigError(
                f"--set {name}: a run that is resumed keeps its configuration; only {', '.join(MAY_CHANGE)} may change"
            )
    return after


def same(old: RunSpec, config: RunConfig, work: Workload, digest: str) -> None:
    """Raise ConfigError where data or code are not what the run was started with."""
    if digest != old.code_digest:
        raise ConfigError(f"run {old.run} cannot be resumed: the code in its folder is not what it was started with")
    prepared = work.prepared
    validation = hashlib.sha256(encode_batch(*prepared.validation_set())).hexdigest()
    if (prepared.samples, prepared.batches, validation) != (old.samples, old.batches, old.validation.sha256):
        raise ConfigError(
            f"run {old.run} cannot be resumed: {config.data.path or config.data.source} holds other data than it was "
            "started with"
        )


def resume_point(history: History, config: RunConfig, old: RunSpec) -> ResumePoint:
    """Where the run goes on. Raises ConfigError where that cannot be, or would be after the new end."""
    try:
        point = history.resume_point()
    except ObjectMissing as error:
        raise ConfigError(str(error)) from error
    limit = replace(old, config=config).rounds_limit
    if point.origin.round > limit:
        raise ConfigError(
            f"run {old.run} has trained {point.origin.round} rounds already, and epochs = {config.epochs} are {limit}"
        )
    return point


def continued(
    store: ObjectStore,
    old: RunSpec,
    config: RunConfig,
    places: Places,
    point: ResumePoint,
    machines: tuple[str, ...],
    clock: Clock,
    prices: Prices | None = None,
) -> RunSpec:
    """Put the new internal run beside the old one; gives its specification.

    What names a run's own place is copied; the batches, which are most of it, are not. `prices` are for the peers'
    meters.
    """
    copies: list[tuple[Place, Place]] = [
        (old.places.manifest(rank), places.manifest(rank)) for rank in range(config.peers)
    ]
    copies.append((old.places.validation(), places.validation()))
    if store.head(old.places.preprocessing()) is not None:
        copies.append((old.places.preprocessing(), places.preprocessing()))
    if point.stored:
        copies.append((point.places.weights(point.weights_sha256), places.weights(point.weights_sha256)))
    for source, target in copies:
        store.put(target, store.get(source))
    spec = replace(
        old,
        run=places.run,
        config=config,
        places=places,
        initial_weights=point.weights_sha256,
        state_machines=machines,
        created=clock.now(),
        prices=prices,
        origin=point.origin,
    )
    store.create(places.spec(), spec.to_json())
    return spec


def carried_over(store: ObjectStore, old: RunSpec, places: Places) -> tuple[Joined, ...]:
    """Put the records of all ranks that had joined beside the new run's, so that none is given twice, and the manifests
    of those whose data are still there; gives the latter."""
    present = []
    records = joined_ranks(store, old.places, old.config.peers)
    before, after = (each.with_buckets(record.bucket for record in records) for each in (old.places, places))
    for record in records:
        with contextlib.suppress(ObjectMissing):  # who leaves takes the bucket along
            store.put(after.manifest(record.rank), store.get(before.manifest(record.rank)))
            present.append(replace(record, run=places.run))
        store.create(places.joined(record.rank), replace(record, run=places.run).to_json())
    return tuple(present)


def guests_of(history: History, joined: Sequence[Joined], store: ObjectStore) -> tuple[Joined, ...]:
    """Of those who had joined the ones who still took part in the last round that the run agreed on."""
    for leg in history.legs:
        prefix = leg.places.commits()
        found = store.list(prefix.bucket, prefix.key, prefix.owner)
        if found:
            last = Commit.from_json(
                store.get(leg.places.commit(max(leg.places.round_of(key, prefix) for key in found)))
            )
            members = {member.rank for member in last.members}
            return tuple(record for record in joined if record.rank in members)
    return ()


def clear(store: ObjectStore, history: History, point: ResumePoint) -> None:
    """Remove what no later part of the run can need: gradients of rounds that were cut off, and what older parts left.

    So a run that is taken up many times holds no more than one that is not. Best weights stay, whoever found them.
    """
    needed = {leg.places.run for leg in history.legs if leg.end is None or leg.end >= point.checkpoint_round}
    gone: list[Place] = []
    for leg in history.legs:
        for rank in range(len(leg.places.peer_buckets)):
            gone += _under(store, leg.places.passing_of(rank))
        if leg.places.run not in needed:
            for prefix in (leg.places.contributions(), leg.places.checkpoint_states(), leg.places.shards()):
                gone += _under(store, prefix)
    store.delete(gone)


def _under(store: ObjectStore, prefix: Place) -> list[Place]:
    return [replace(prefix, key=key) for key in store.list(prefix.bucket, prefix.key, prefix.owner)]


def seconds_before(folder: RunFolder) -> float:
    """What the run has taken so far: by its summary, where it could write one, else by its events alone."""
    told = 0.0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = float(json.loads(folder.summary.read_bytes())["seconds_total"])
    spans: dict[str, tuple[float, float]] = {}
    with folder.events.open(encoding="utf-8") as file:
        for line in file:
            event: dict[str, Any] = json.loads(line)
            first, last = spans.get(event["run"], (event["t"], event["t"]))
            spans[event["run"]] = min(first, event["t"]), max(last, event["t"])
    return max(told, sum(last - first for first, last in spans.values()))


def _cloud(stack: ExitStack, parts: Parts, config: RunConfig, folder: RunFolder, observer: Observer) -> LocalCloud:
    """Servers over the run's data; `parts` says where they are. Raises ConfigError where those are not at hand."""
    check_broker(config)
    if not parts.servers:
        if not folder.s3.is_dir():
            raise ConfigError(f"the run in {folder.path} cannot be resumed: {folder.s3} with its data is gone")
        cloud = own_cloud(stack, config, folder, observer)
        cloud.keep_data = True  # until it is known how it ends
        return cloud
    if str(LOCAL_FOLDER.resolve()) != parts.servers or not lasting_servers_run():
        raise ConfigError(
            f"the data of the run in {folder.path} are with the servers of `peerless local up` in "
            f"{Path(parts.servers).parents[1]}; start those there, and resume from that folder"
        )
    return lasting_cloud(config, observer)


def told(point: ResumePoint) -> str:
    """A line for the user."""
    text = f"going on with round {point.origin.round + 1}"
    if point.replayed_rounds:
        text += f"; {point.replayed_rounds} rounds since the checkpoint are applied again from their contributions"
    if point.repeated_rounds:
        text += f"; {point.repeated_rounds} completed rounds are computed again, because they cannot be replayed"
    return text
