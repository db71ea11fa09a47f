"""Taking away what costs money while nothing runs; the data and what costs nothing stay, for `deploy` to come back."""

from __future__ import annotations

from collections.abc import Callable

from botocore.exceptions import ClientError

from contract.clock import Clock
from contract.errors import DeploymentMissing
from infra import outputs
from infra.settings import Settings
from peerless.launch import parallel, stacks
from peerless.launch.account import Clients, code, told
from peerless.launch.groups import Groups
from peerless.launch.stacks import Stack

#: Kinds of stacks with a price by the hour, and those that need them. The network goes with its NAT gateway.
_COSTS_IDLE = (outputs.WATCH, outputs.PEERS, outputs.BROKER, outputs.NETWORK)


def found_or_missing(clients: Clients, name: str) -> list[Stack]:
    """The stacks of a deployment, whole or not. Raises DeploymentMissing where there is none."""
    found = stacks.find(clients, Settings(name=name).prefix)
    if not found:
        raise DeploymentMissing(f"there is no deployment {name!r} here; `peerless deploy CONFIG` makes one")
    return found


def to_stop(found: list[Stack], settings: Settings | None) -> list[Stack]:
    """The stacks that `stop` deletes: gradient workers too where their snapshots cost by the month."""
    kinds = [*_COSTS_IDLE, *([outputs.WORKERS] if settings is not None and settings.snap_start else [])]
    return [stack for stack in found if stack.kind in kinds]


def switch_off(clients: Clients, found: list[Stack]) -> int:
    """Ask for no instance in any group; how many were asked for. Raises what `told` raises."""
    groups = Groups(clients, stacks.joined(found, outputs.PEERS, outputs.AUTO_SCALING_GROUPS))
    wanted = groups.desired() if groups.names else 0
    groups.stop()
    return wanted


def stop(clients: Clients, name: str, doomed: list[Stack], note: Callable[[str], None], clock: Clock) -> None:
    """Switch the peers off and delete the stacks `doomed` and what else costs. Raises DeployFailed where one stays."""
    found = found_or_missing(clients, name)
    prefix = Settings(name=name).prefix
    if switch_off(clients, found):
        note("switched the peers off")
    parallel.remove(clients, prefix)
    old = delete_old_versions(clients, [stack for stack in found if stack not in doomed])
    if old:
        note(f"deleted {old} old versions of gradient workers")
    stacks.delete(clients, doomed, note, clock)


def delete_old_versions(clients: Clients, found: list[Stack]) -> int:
    """Delete versions of the workers' functions that no alias names; how many there were.

    An old version with a snapshot costs by the month, and every version takes a place in the account's storage.
    """
    functions, gone = clients("lambda"), 0
    for name in dict.fromkeys(stacks.joined(found, outputs.WORKERS, outputs.FUNCTIONS)):
        with told(f"list the versions of {name}"):
            try:
                versions = [
                    row["Version"]
                    for page in functions.get_paginator("list_versions_by_function").paginate(FunctionName=name)
                    for row in page["Versions"]
                ]
                aliases = [
                    row["FunctionVersion"]
                    for page in functions.get_paginator("list_aliases").paginate(FunctionName=name)
                    for row in page["Aliases"]
                ]
            except ClientError as error:
                if code(error) == "ResourceNotFoundException":
                    continue
                raise
        # Without an alias (as on the local AWS) nobody says which one is in use.
        for version in versions if aliases else ():
            if version not in ("$LATEST", *aliases):
                with told(f"delete version {version} of {name}"):
                    functions.delete_function(FunctionName=name, Qualifier=version)
                gone += 1
    return gone
