"""Why an execution of a state machine, or some of its items, failed: in sentences for the user.

The workers name the batch in their own errors. Where the sandbox died instead (out of memory, time limit, exit), the
execution's output, its history, or the map run's child executions tell which batch it was. An item is a batch or what
goes by its first batch's index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from contract.config import ComputeConfig
from contract.tasks import Failure
from peer_agent.compute.batches import name_batch
from peer_agent.compute.causes import cause

#: Events looked at, from the end: a failure stands near it.
HISTORY_EVENTS = 200
#: Failed children of a distributed map that are asked why. Which items failed is seen in S3.
CHILDREN = 5
#: The name of a branch's state in a `parallel` definition: its number is the item's place in the input.
BRANCH = re.compile(r"Gradient (\d+)\Z")
#: Types of the history's events about a task that came to nothing.
FAILED_TASK = ("TaskFailed", "TaskTimedOut", "LambdaFunctionFailed", "LambdaFunctionTimedOut")
#: What a distributed map says of failed children; their own words stand in their own executions.
CHILD_FAILED = "States.ExceedToleratedFailureThreshold"
#: Errors in the name of the whole machine that are of one item all the same.
OF_AN_ITEM = (CHILD_FAILED, "States.TaskFailed", "States.Timeout", "States.MapFailed", "States.BranchFailed")


class Item(Protocol):
    """What one invocation computes."""

    @property
    def index(self) -> int: ...


@dataclass(frozen=True)
class Ending:
    """How an execution ended, from `describe_execution`'s answer."""

    succeeded: bool
    complete: bool
    """It succeeded, and every item has answered: there is nothing to look for."""
    whole: bool
    """It failed for none of its items' sake, so that those without a result may succeed in another execution."""
    invocations: int
    """As far as the output tells: of an item that does not answer, one."""
    silent: int
    """Items that have not answered with a number of retries."""
    failures: Mapping[int, Failure]
    """Why items failed, by index, as far as the output says."""

    @classmethod
    def of(cls, description: Mapping[str, Any], items: Sequence[Item]) -> Ending:
        """`items` are those of the execution's input, in order; branches beyond them repeat the last one."""
        status, error = str(description["status"]), str(description.get("error") or "")
        outcomes = _outcomes(description) if status == "SUCCEEDED" else []
        failures = {
            items[min(place, len(items) - 1)].index: Failure.parse(str(told["Error"]), str(told.get("Cause") or ""))
            for place, told in enumerate(outcomes)
            if isinstance(told, dict) and "Error" in told
        }
        numbers = [told for told in outcomes if type(told) is int]
        count = max(len(items), len(outcomes))
        return cls(
            succeeded=status == "SUCCEEDED",
            complete=status == "SUCCEEDED" and len(items) <= len(outcomes) == len(numbers),
            whole=status not in ("SUCCEEDED", "ABORTED")
            and (status != "FAILED" or (error.startswith("States.") and error not in OF_AN_ITEM)),
            invocations=count + sum(numbers),
            silent=count - len(numbers),
            failures=failures,
        )


def _outcomes(description: Mapping[str, Any]) -> list[Any]:
    """What the output says of each item: a number of retries, or an object with Error and Cause."""
    try:
        outcomes = json.loads(description["output"])["retries"]
    except (KeyError, TypeError, ValueError):
        return []
    return outcomes if isinstance(outcomes, list) else []


def why(client: Any, description: Mapping[str, Any], items: Sequence[Item]) -> dict[int, Failure]:
    """The failure of the one item that ended an execution, by its index; empty where nothing tells. Raises what
    `client` raises."""
    if description["status"] != "FAILED":
        return {}
    failure = Failure.parse(str(description.get("error") or ""), str(description.get("cause") or ""))
    if failure.name == CHILD_FAILED:
        return of_children(client, description)
    index = _batch_in_history(client, str(description["executionArn"]), items)
    return {} if index is None else {index: failure}


def of_children(client: Any, description: Mapping[str, Any]) -> dict[int, Failure]:
    """Failures of some children of the execution's distributed map, by the index of their item. Raises what `client`
    raises."""
    found: dict[int, Failure] = {}
    for given, failure in failed_children(client, description):
        index = _batch_in(given)
        if index is not None and len(found) < CHILDREN:
            found[index] = failure
    return found


def failed_children(client: Any, description: Mapping[str, Any]) -> Iterator[tuple[str, Failure]]:
    """Inputs and failures of some children of the execution's distributed maps. Raises what `client` raises."""
    for run in client.list_map_runs(executionArn=description["executionArn"])["mapRuns"]:
        for status in ("FAILED", "TIMED_OUT"):
            page = client.list_executions(mapRunArn=run["mapRunArn"], statusFilter=status, maxResults=CHILDREN)
            for listed in page["executions"]:
                child = client.describe_execution(executionArn=listed["executionArn"])
                failure = Failure.parse(str(child.get("error") or ""), str(child.get("cause") or ""))
                yield str(child.get("input")), failure


def explain(
    client: Any,
    description: Mapping[str, Any],
    items: Sequence[Item],
    rank: int,
    round: int,
    compute: ComputeConfig,
    missing: Callable[[], Sequence[Item]] = tuple,
) -> str:
    """One sentence from `describe_execution`'s answer and, where it says too little, further questions to `client`.

    `client` is None where nothing further can be asked; `missing` tells of which items there is no result, where one of
    them is to blame. Raises what `client` raises.
    """
    failure = Failure.parse(str(description.get("error") or ""), str(description.get("cause") or ""))
    index: int | None = None
    if client is not None and not failure.message.startswith("batch "):
        index, failure = next(iter(why(client, description, items).items()), (None, failure))
    if index is None and not failure.message.startswith("batch "):
        left = missing()
        index = left[0].index if len(left) == 1 else None
    where = f"rank {rank} in round {round}" if index is None else name_batch(index, rank, round)
    if not failure.name and not failure.message:
        status = str(description.get("status", "FAILED")).lower().replace("_", " ")
        return f"no gradient for {where}: its execution {status}"
    return sentence(failure, where, compute)


def sentence(failure: Failure, where: str, compute: ComputeConfig) -> str:
    """What failed, why, and where the worker's log is. The worker's own words name the batch, where they are known."""
    told = cause(failure, compute)
    text = f"no gradient for {told}" if failure.message.startswith("batch ") else f"no gradient for {where}: {told}"
    if not failure.log:
        return text
    # A local worker writes to a file; on AWS the lines of all are in one place, and carry the request.
    file = "/" in failure.log
    return f"{text}; its log: {failure.log if file else f'`peerless logs --workers`, request {failure.log}'}"


def _batch_in_history(client: Any, execution: str, items: Sequence[Item]) -> int | None:
    """Index of the item whose task failed: from the failure back to the state that was entered for it."""
    answer = client.get_execution_history(executionArn=execution, reverseOrder=True, maxResults=HISTORY_EVENTS)
    events: dict[int, Mapping[str, Any]] = {event["id"]: event for event in answer["events"]}
    for event in events.values():
        iteration = event.get("mapIterationFailedEventDetails")
        if iteration is not None and iteration.get("index", len(items)) < len(items):
            return items[int(iteration["index"])].index
        if event["type"].endswith(FAILED_TASK):
            before: Mapping[str, Any] | None = event
            while before is not None and "stateEnteredEventDetails" not in before:
                before = events.get(before.get("previousEventId", 0))
            if before is not None:
                return _batch_of_state(before["stateEnteredEventDetails"], items)
    return None


def _batch_of_state(entered: Mapping[str, Any], items: Sequence[Item]) -> int | None:
    branch = BRANCH.match(str(entered.get("name", "")))
    if branch is not None and int(branch[1]) < len(items):
        return items[int(branch[1])].index
    return _batch_in(entered.get("input"))


def _batch_in(text: object) -> int | None:
    """Index of the batch in a task's input."""
    try:
        return int(json.loads(str(text))["batch"]["index"])
    except (ValueError, KeyError, TypeError):
        return None
