"""What the history of an execution tells that its output does not: how often workers were asked, and why items failed
of which the output has no more than the error's name.

Each attempt is scheduled once, whether Lambda takes it, refuses it (429) or a worker dies over it. An execution that
went well is never asked, as its output has the retries of each item.

What cannot be known: an Express execution has no history, so that an item that failed for good in one counts as one
invocation. Of a distributed map's children a few of each status are asked, and the others taken to be like them. What
a local Step Functions had done before it was started again is forgotten with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from contract.tasks import Failure
from peer_agent.compute.diagnosis import BRANCH, Ending, Item

#: Events and executions of one answer, which is the most that there can be.
PAGE = 1_000
#: Children of each status whose history is asked for.
CHILDREN = 10
ENDED_BADLY = ("FAILED", "TIMED_OUT", "ABORTED")
#: How a worker begins what it says of its batch; a history that does not lead back to the item still has that.
NAMED = re.compile(r"batch (\d+) ")
#: The states of what adds gradients up, after all of them have been computed; that is counted by its own output.
REDUCES = re.compile(r"(Reduce|Mean) \d+\Z")


@dataclass
class History:
    """Of one execution."""

    attempts: int = 0
    failures: dict[int, Failure] = field(default_factory=dict)
    """The last failed attempt of each item, by its index, where the history says whose it was."""

    @classmethod
    def read(cls, client: Any, execution: str, items: Sequence[Item] = ()) -> History:
        """`items` are those of the execution's input, in order. Raises what `client` raises."""
        made, places = cls(), dict[int, int]()
        asked = {"executionArn": execution, "maxResults": PAGE, "includeExecutionData": False}
        for event in _pages(client.get_execution_history, "events", asked):
            if REDUCES.match(_entered(event)):
                break
            place = _place(event, places.get(event.get("previousEventId", 0)))
            if place is not None:
                places[event["id"]] = place
            made.attempts += event["type"] == "TaskScheduled"
            told = event.get("taskFailedEventDetails") or event.get("taskTimedOutEventDetails")
            if told is None:
                continue
            failure = Failure.parse(str(told.get("error") or ""), str(told.get("cause") or ""))
            named = NAMED.match(failure.message)
            if place is not None and place < len(items):
                made.failures[items[place].index] = failure
            elif named is not None:
                made.failures[int(named[1])] = failure
        return made


def completed(
    ending: Ending, client: Any, description: Mapping[str, Any], items: Sequence[Item], *, distributed: bool
) -> Ending:
    """`ending` with what the histories say of items that have not answered. Raises what `client` raises."""
    execution = str(description["executionArn"])
    if distributed:
        statuses = ENDED_BADLY if ending.succeeded else ("SUCCEEDED", *ENDED_BADLY)
        attempts = sum(_of_children(client, execution, status) for status in statuses)
        return replace(ending, invocations=ending.invocations - ending.silent + attempts) if attempts else ending
    history = History.read(client, execution, items)
    failures = {
        index: failure if failure.message else history.failures.get(index, failure)
        for index, failure in ending.failures.items()
    }
    return replace(ending, invocations=history.attempts or ending.invocations, failures=failures)


def _of_children(client: Any, execution: str, status: str) -> int:
    """Attempts of all children of an execution's distributed map with this status."""
    attempts = 0
    for run in client.list_map_runs(executionArn=execution)["mapRuns"]:
        asked = {"mapRunArn": run["mapRunArn"], "statusFilter": status, "maxResults": PAGE}
        children = [child["executionArn"] for child in _pages(client.list_executions, "executions", asked)]
        some = children[:CHILDREN]
        counted = sum(History.read(client, child).attempts for child in some)
        attempts += math.ceil(counted / max(1, len(some)) * len(children))
    return attempts


def _pages(call: Any, name: str, asked: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All entries of an answer that comes in pages."""
    more: dict[str, str] = {}
    while True:
        answer = call(**asked, **more)
        yield from answer[name]
        if not answer.get("nextToken"):
            return
        more = {"nextToken": answer["nextToken"]}


def _place(event: Mapping[str, Any], before: int | None) -> int | None:
    """The item's place in the input to which an event belongs; `before` is that of the event before it."""
    iteration = event.get("mapIterationStartedEventDetails")
    if iteration is not None:
        return int(iteration["index"])
    branch = BRANCH.match(_entered(event))
    return before if branch is None else int(branch[1])


def _entered(event: Mapping[str, Any]) -> str:
    """The name of the state that is entered, if one is."""
    return str(event.get("stateEnteredEventDetails", {}).get("name", ""))
