"""What a deployment is doing: its stacks, its peers, its run, and what it costs at this moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

from contract.clock import Clock
from contract.errors import ConfigError, CorruptObject, ObjectMissing
from contract.keys import Places, spec_place
from contract.runspec import RunSpec
from contract.store import ObjectStore
from infra import outputs
from infra.settings import Settings
from peerless import cost
from peerless.launch import stacks
from peerless.launch.account import Account
from peerless.launch.current import CurrentRun
from peerless.launch.groups import Groups
from peerless.launch.stacks import Stack
from peerless.launch.stop import found_or_missing


def status(account: Account, name: str, clock: Clock) -> dict[str, Any]:
    """JSON-ready. Raises DeploymentMissing where there is no deployment, and what `told` raises."""
    found = found_or_missing(account.client, name)
    settings = settings_of(found)
    groups = Groups(account.client, stacks.joined(found, outputs.PEERS, outputs.AUTO_SCALING_GROUPS))
    wanted = groups.desired() if groups.names else 0
    hourly = _hourly_now(settings, found, wanted)
    return {
        "deployment": name,
        "region": account.region,
        "stacks": {stack.title: stack.status for stack in found},
        "peers": settings.peers if settings else None,
        "peers_wanted": wanted,
        "peers_in_service": groups.in_service() if groups.names else [],
        "run": _run(account, found, wanted, clock),
        "usd_per_hour": round(sum(hourly.values()), 4),
        "usd_per_hour_by_part": {part: round(usd, 4) for part, usd in hourly.items()},
        "price_unknown": cost.unpriced(settings) if settings else [],
    }


def settings_of(found: list[Stack]) -> Settings | None:
    """The settings that the deployment was made with; None where they cannot be read."""
    texts = [stack.outputs[outputs.SETTINGS] for stack in found if outputs.SETTINGS in stack.outputs]
    with contextlib.suppress(ConfigError, ValueError, AttributeError):
        return Settings.from_mapping(json.loads(texts[0])) if texts else None
    return None


def _hourly_now(settings: Settings | None, found: list[Stack], wanted: int) -> dict[str, float]:
    """By part, for the stacks that are there and the instances that are asked for."""
    if settings is None:
        return {}
    kinds = {stack.kind for stack in found}
    idle = cost.hourly(settings, training=False, stacks=kinds)
    if not wanted:
        return idle
    running = cost.hourly(dataclasses.replace(settings, peers=wanted), stacks=kinds & {outputs.PEERS})
    return {**idle, **running}


def _run(account: Account, found: list[Stack], wanted: int, clock: Clock) -> dict[str, Any] | None:
    """The current or last run; None before the first one."""
    bucket = stacks.joined(found, outputs.STORAGE, outputs.RUN_BUCKET)
    if not bucket:
        return None
    owner, store = account.identity().account, account.store(clock)
    try:
        current = CurrentRun(store, bucket[0], owner).read()
        if current is None:
            return None
        spec_blob = store.get(spec_place(current.run, bucket[0], owner))
        spec = RunSpec.from_json(spec_blob)
    except (ObjectMissing, CorruptObject) as error:
        return {"id": None, "state": f"cannot be read: {error}"}
    reported = _reported(store, spec.places, spec.config.peers)
    return {
        "id": current.run,
        "state": "running" if wanted and reported < spec.config.peers else "ended",
        "rounds": _rounds(store, spec.places),
        "rounds_limit": spec.rounds_limit,
        "peers": spec.config.peers,
        "peers_reported": reported,
        "seconds": round(clock.now() - current.created),
    }


def _reported(store: ObjectStore, places: Places, peers: int) -> int:
    prefix = places.report(0).key.rpartition("/")[0] + "/"
    return len(store.list(places.run_bucket, prefix, places.account))


def _rounds(store: ObjectStore, places: Places) -> int:
    """How many rounds were committed."""
    prefix = places.commit(0).key.rpartition("/")[0] + "/"
    return len(store.list(places.run_bucket, prefix, places.account))
