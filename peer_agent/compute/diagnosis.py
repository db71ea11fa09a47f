"""Why an execution of a state machine failed, in one sentence for the user.

The workers name the batch in their own errors. Where the sandbox died instead (out of memory, time limit, exit), only
the execution's history, or the map run's child executions, tell which batch it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from contract.batches import BatchRef
from contract.tasks import Failure
from peer_agent.compute.batches import name_batch

#: Events looked at, from the end: a failure stands near it.
HISTORY_EVENTS = 200
#: The name of a branch's state in a `parallel` definition: its number is the batch's place in the input.
BRANCH = re.compile(r"Gradient (\d+)\Z")
#: Types of the history's events about a task that came to nothing.
FAILED_TASK = ("TaskFailed", "TaskTimedOut", "LambdaFunctionFailed", "LambdaFunctionTimedOut")
#: What a distributed map says of a failed child; the child's own words stand in the child's execution.
CHILD_FAILED = "States.ExceedToleratedFailureThreshold"


def explain(client: Any, description: Mapping[str, Any], batches: Sequence[BatchRef], rank: int, round: int) -> str:
    """One sentence from `describe_execution`'s answer and, where it says too little, further questions to `client`.

    `client` is None where nothing further can be asked. Raises what `client` raises.
    """
    failure = Failure.parse(str(description.get("error") or ""), str(description.get("cause") or ""))
    batch: int | None = None
    if failure.name == CHILD_FAILED and client is not None:
        child = _failed_child(client, str(description["executionArn"]))
        if child is not None:
            failure = Failure.parse(str(child.get("error") or ""), str(child.get("cause") or ""))
            batch = _batch_in(child.get("input"))
    if failure.message.startswith("batch "):
        return f"no gradient for {failure.message} ({failure.name})"
    if batch is None and client is not None:
        batch = _batch_in_history(client, str(description["executionArn"]), batches)
    where = f"rank {rank} in round {round}" if batch is None else name_batch(batch, rank, round)
    status = str(description.get("status", "FAILED")).lower().replace("_", " ")
    cause = " ".join(failure.message.split()) or f"its execution {status}"
    return f"no gradient for {where}: {cause}{f' ({failure.name})' if failure.name else ''}"


def _failed_child(client: Any, execution: str) -> Mapping[str, Any] | None:
    """Description of a failed child of the execution's distributed map."""
    for run in client.list_map_runs(executionArn=execution)["mapRuns"]:
        for status in ("FAILED", "TIMED_OUT"):
            found = client.list_executions(mapRunArn=run["mapRunArn"], statusFilter=status, maxResults=1)["executions"]
            if found:
                child: Mapping[str, Any] = client.describe_execution(executionArn=found[0]["executionArn"])
                return child
    return None


def _batch_in_history(client: Any, execution: str, batches: Sequence[BatchRef]) -> int | None:
    """Index of the batch whose task failed: from the failure back to the state that was entered for it."""
    answer = client.get_execution_history(executionArn=execution, reverseOrder=True, maxResults=HISTORY_EVENTS)
    events: dict[int, Mapping[str, Any]] = {event["id"]: event for event in answer["events"]}
    for event in events.values():
        iteration = event.get("mapIterationFailedEventDetails")
        if iteration is not None and iteration.get("index", len(batches)) < len(batches):
            return batches[int(iteration["index"])].index
        if event["type"].endswith(FAILED_TASK):
            before: Mapping[str, Any] | None = event
            while before is not None and "stateEnteredEventDetails" not in before:
                before = events.get(before.get("previousEventId", 0))
            if before is not None:
                return _batch_of_state(before["stateEnteredEventDetails"], batches)
    return None


def _batch_of_state(entered: Mapping[str, Any], batches: Sequence[BatchRef]) -> int | None:
    branch = BRANCH.match(str(entered.get("name", "")))
    if branch is not None and int(branch[1]) < len(batches):
        return batches[int(branch[1])].index
    return _batch_in(entered.get("input"))


def _batch_in(text: object) -> int | None:
    """Index of the batch in a task's input."""
    try:
        return int(json.loads(str(text))["batch"]["index"])
    except (ValueError, KeyError, TypeError):
        return None
