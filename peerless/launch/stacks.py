"""The CloudFormation stacks of a deployment: found by the prefix of their names, and deleted in an order that holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from contract.clock import Clock
from contract.errors import DeployFailed
from infra import outputs
from peerless.launch.account import Clients, told

#: What stacks are called after the deployment's prefix; those that use others come before them, and what stands in one
#: row does not use each other. A shared worker stands in Workers0.
DELETE_ORDER = tuple(
    re.compile(row)
    for row in (
        outputs.WATCH,
        rf"{outputs.PEERS}\d+",
        rf"{outputs.WORKERS}[1-9]\d*|{outputs.BROKER}",
        rf"{outputs.WORKERS}0",
        f"{outputs.NETWORK}|{outputs.IMAGES}",
        outputs.STORAGE,
    )
)
#: Between two looks at a stack that is being deleted: the first and the longest wait.
_FIRST_SECONDS, _POLL_SECONDS = 0.2, 5.0
#: A broker takes some minutes to go, and network interfaces of a function in a VPC up to forty.
DELETE_SECONDS = 75 * 60.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack as CloudFormation has it."""

    name: str
    title: str
    """What follows the prefix: `Peers0`."""
    status: str
    """For example CREATE_COMPLETE."""
    outputs: Mapping[str, str]

    @property
    def kind(self) -> str:
        """The title without the number of the group of peers: `Peers`."""
        return self.title.rstrip("0123456789")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource of a stack: CloudFormation's type, and its physical name."""

    stack: str
    type: str
    name: str


def find(clients: Clients, prefix: str) -> list[Stack]:
    """All stacks whose names start with `prefix` and a hyphen, by name. Raises what `told` raises."""
    found = []
    with told("list the stacks"):
        for page in clients("cloudformation").get_paginator("describe_stacks").paginate():
            for stack in page["Stacks"]:
                name = stack["StackName"]
                title = name.removeprefix(f"{prefix}-")
                if title == name or not any(row.fullmatch(title) for row in DELETE_ORDER):
                    continue
                values = {item["OutputKey"]: item["OutputValue"] for item in stack.get("Outputs", ())}
                status = stack["StackStatus"]
                found.append(Stack(name=name, title=title, status=status, outputs=values))
    return sorted((stack for stack in found if stack.status != "DELETE_COMPLETE"), key=lambda stack: stack.name)


def resources(clients: Clients, stacks: Iterable[Stack]) -> list[Resource]:
    """What these stacks are made of."""
    cloudformation = clients("cloudformation")
    found = []
    with told("list what the stacks are made of"):
        for stack in stacks:
            for page in cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack.name):
                for item in page["StackResourceSummaries"]:
                    if name := item.get("PhysicalResourceId"):
                        found.append(Resource(stack=stack.name, type=item["ResourceType"], name=name))
    return found


def delete(clients: Clients, stacks: Sequence[Stack], note: Callable[[str], None], clock: Clock) -> None:
    """Delete these stacks, users before used, and wait until they are gone. Raises DeployFailed with CloudFormation's
    reason where one stays."""
    for pattern in DELETE_ORDER:
        row = [stack for stack in stacks if pattern.fullmatch(stack.title)]
        for stack in row:
            note(f"deleting {stack.name}{_slow(stack.kind)}")
            with told(f"delete stack {stack.name}"):
                clients("cloudformation").delete_stack(StackName=stack.name)
        deadline = clock.monotonic() + DELETE_SECONDS
        for stack in row:
            _wait_gone(clients, stack.name, deadline, clock)


def joined(stacks: Iterable[Stack], kind: str, output: str) -> tuple[str, ...]:
    """The entries of a list output over all stacks of a kind, in rank order."""
    return tuple(_entries(stacks, kind, output))


def _entries(stacks: Iterable[Stack], kind: str, output: str) -> Iterator[str]:
    chosen = [stack for stack in stacks if stack.kind == kind]
    for stack in sorted(chosen, key=lambda stack: (len(stack.name), stack.name)):
        numbered = [name for name in stack.outputs if name.rstrip("0123456789") == output]
        for name in sorted(numbered, key=lambda name: (len(name), name)):
            yield from filter(None, stack.outputs[name].split(","))


def _slow(kind: str) -> str:
    return " (a broker takes some ten minutes)" if kind == outputs.BROKER else ""


def _wait_gone(clients: Clients, name: str, deadline: float, clock: Clock) -> None:
    cloudformation, wait = clients("cloudformation"), _FIRST_SECONDS
    while True:
        try:
            with told(f"look at stack {name}"):
                status = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
        except DeployFailed as error:
            if isinstance(error.__cause__, ClientError) and "does not exist" in str(error.__cause__):
                return
            raise
        if status == "DELETE_COMPLETE":
            return
        if status == "DELETE_FAILED":
            raise DeployFailed(f"stack {name} could not be deleted: {_reason(cloudformation, name)}")
        if clock.monotonic() > deadline:
            raise DeployFailed(f"stack {name} is still {status} after {DELETE_SECONDS / 60:.0f} minutes; try again")
        clock.sleep(wait)
        wait = min(2 * wait, _POLL_SECONDS)


def _reason(cloudformation: Any, name: str) -> str:
    """The newest reason in the stack's events that names a resource."""
    with told(f"read the events of stack {name}"):
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    failed = [e for e in events if e.get("ResourceStatus") == "DELETE_FAILED" and e["LogicalResourceId"] != name]
    return " ".join(str(failed[0].get("ResourceStatusReason", "no reason")).split()) if failed else "no reason given"
