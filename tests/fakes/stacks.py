"""A CloudFormation with the stacks of deployments, as infra/stacks names their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra import outputs
from infra.settings import Settings
from peerless.launch.deployed import stack_names


def stack_outputs(settings: Settings) -> dict[str, dict[str, str]]:
    """Outputs by stack, as infra/stacks names them."""
    prefix, made = settings.prefix, {name: {} for name in stack_names(settings)}
    made[f"{prefix}-{outputs.STORAGE}"] = {outputs.SETTINGS: settings.to_json(), outputs.RUN_BUCKET: "run"}
    for number, ranks in enumerate(settings.groups):

        def each(text: str, ranks: range = ranks) -> str:
            return ",".join(f"{text}-{rank}" for rank in ranks)

        made[f"{prefix}-{outputs.STORAGE}"][f"{outputs.PEER_BUCKETS}{number}"] = each("peer")
        if settings.workers:
            made[f"{prefix}-{outputs.WORKERS}{number}"] = {
                outputs.FUNCTIONS: each("function"),
                outputs.FUNCTION_ARNS: each("arn:function"),
                outputs.INLINE_MACHINES: each("arn:inline"),
                outputs.DISTRIBUTED_MACHINES: each("arn:distributed"),
                outputs.MACHINE_ROLES: each("arn:role"),
            }
            if settings.reduce:
                reducers = {outputs.REDUCERS: each("reducer"), outputs.REDUCER_ARNS: each("arn:reducer")}
                made[f"{prefix}-{outputs.WORKERS}{number}"] |= reducers
        if not settings.local:
            peers = {outputs.AUTO_SCALING_GROUPS: each("group"), outputs.PEER_LOG_GROUP: f"/peers/{number}"}
            made[f"{prefix}-{outputs.PEERS}{number}"] = peers
    if settings.broker and not settings.local:
        made[f"{prefix}-{outputs.BROKER}"] = {outputs.BROKER_ENDPOINT: "amqps://broker:5671"}
    return made


def cloud(made: dict[str, dict[str, str]], statuses: dict[str, str] | None = None) -> Callable[[str], Any]:
    """A CloudFormation with these stacks, those of a neighbour, and a stack of somebody else's."""
    rows = [
        {
            "StackName": name,
            "StackStatus": (statuses or {}).get(name, "CREATE_COMPLETE"),
            "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in values.items()],
        }
        for name, values in {**made, **stack_outputs(Settings(name="mine-too", peers=2)), "Other-Storage": {}}.items()
    ]

    class Paginator:
        def paginate(self) -> list[dict[str, Any]]:
            return [{"Stacks": rows[::2]}, {"Stacks": rows[1::2]}]

    class Client:
        def get_paginator(self, operation: str) -> Paginator:
            assert operation == "describe_stacks"
            return Paginator()

    return {"cloudformation": Client()}.__getitem__
