"""State machines of the form `parallel`: their definitions name every batch, so each run makes its own."""

from __future__ import annotations

from collections.abc import Sequence

from contract.config import RunConfig
from infra import outputs
from peerless.launch.account import Clients, told
from peerless.launch.deployed import Deployment
from statemachines import Mode, definition, render


def create(
    clients: Clients, deployment: Deployment, config: RunConfig, run: str, batches: Sequence[int]
) -> tuple[str, ...]:
    """One machine per peer for `batches` of a round, by rank; gives their ARNs. Raises what `told` raises."""
    made = []
    for rank, count in enumerate(batches):
        machine = definition(
            Mode.PARALLEL,
            function_arn=deployment.function_arns[rank],
            batches=count,
            concurrency=config.compute.concurrency,
            timeout_seconds=config.compute.timeout_seconds,
            tolerated=config.compute.tolerated_failures,
            reducer_arn="" if config.compute.reduce == "never" else deployment.reducer_arns[rank],
        )
        with told(f"create the state machine of peer {rank}"):
            answer = clients("stepfunctions").create_state_machine(
                name=outputs.parallel_machine(deployment.settings.prefix, rank, run),
                definition=render(machine),
                roleArn=deployment.machine_roles[rank],
                tags=[{"key": "peerless:deployment", "value": deployment.settings.name}],
            )
        made.append(answer["stateMachineArn"])
    return tuple(made)


def remove(clients: Clients, prefix: str, run: str | None = None) -> int:
    """Delete the machines of `run`, or of all runs (None); how many there were. Raises what `told` raises."""
    stepfunctions, start = clients("stepfunctions"), outputs.parallel_machine(prefix, 0, "").partition("0000")[0]
    gone = 0
    with told("delete the state machines of runs"):
        for page in stepfunctions.get_paginator("list_state_machines").paginate():
            for machine in page["stateMachines"]:
                name = machine["name"]
                rank = name.removeprefix(start)[:4]
                ours = name.startswith(start) and rank.isdigit()
                if ours and (run is None or name == outputs.parallel_machine(prefix, int(rank), run)):
                    stepfunctions.delete_state_machine(stateMachineArn=machine["stateMachineArn"])
                    gone += 1
    return gone
