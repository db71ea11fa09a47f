"""Histories as AWS writes them: how often workers were asked, whose failure it was, and what is not known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from contract.batches import BatchRef
from contract.tasks import Failure
from peer_agent.compute import attempts
from peer_agent.compute.attempts import CHILDREN, PAGE, History
from peer_agent.compute.diagnosis import CHILD_FAILED, Ending
from statemachines.reduce import after

EXECUTION = "arn:aws:states:us-east-1:000000000000:execution:gradients-0:r-r3-p0-i0-a0"
#: An item goes by the index of its first batch.
ITEMS = [BatchRef(index=index, key="k", samples=1, sha256="0" * 64) for index in (10, 20, 30)]
THROTTLED = ("Lambda.TooManyRequestsException", "Rate Exceeded.")
KILLED = ("Runtime.ExitError", "RequestId: 7 Error: Runtime exited with error: signal: killed")


@dataclass
class Events:
    """A history under way; gives ids."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, type: str, before: int = 0, **details: Any) -> int:
        self.events.append({"id": len(self.events) + 1, "type": type, "previousEventId": before, **details})
        return len(self.events)

    def attempt(self, before: int, failure: tuple[str, str] | None = None, *, late: bool = False) -> int:
        before = self.add("TaskStarted", self.add("TaskScheduled", before))
        if failure is None:
            return self.add("TaskSucceeded", before)
        kind = "TaskTimedOut" if late else "TaskFailed"
        told = {"error": failure[0], "cause": failure[1]}
        return self.add(kind, before, **{f"{kind[0].lower()}{kind[1:]}EventDetails": told})


@dataclass
class Client:
    """Answers in pages of `page` events, and knows the children of one map run by status."""

    histories: dict[str, list[dict[str, Any]]]
    children: dict[str, list[str]] = field(default_factory=dict)
    page: int = PAGE
    asked: list[str] = field(default_factory=list)

    def get_execution_history(
        self, *, executionArn: str, maxResults: int, includeExecutionData: bool, nextToken: str = "0"
    ) -> dict[str, Any]:
        assert not includeExecutionData, "inputs of ten thousand events are many megabytes"
        self.asked.append(executionArn)
        return self._page("events", self.histories[executionArn], nextToken, min(maxResults, self.page))

    def list_map_runs(self, *, executionArn: str) -> dict[str, Any]:
        return {"mapRuns": [{"mapRunArn": "run"}]}

    def list_executions(
        self, *, mapRunArn: str, statusFilter: str, maxResults: int, nextToken: str = "0"
    ) -> dict[str, Any]:
        found = [{"executionArn": name} for name in self.children.get(statusFilter, ())]
        return self._page("executions", found, nextToken, min(maxResults, self.page))

    def _page(self, name: str, entries: list[Any], token: str, size: int) -> dict[str, Any]:
        begin = int(token)
        more = {"nextToken": str(begin + size)} if begin + size < len(entries) else {}
        return {name: entries[begin : begin + size], **more}


def inline() -> list[dict[str, Any]]:
    """Three items side by side: one goes well at the third attempt, one is killed three times, one is late."""
    events = Events()
    begun = events.add("MapStateStarted", events.add("MapStateEntered", stateEnteredEventDetails={"name": "Gradients"}))
    last = [
        events.add("MapIterationStarted", begun, mapIterationStartedEventDetails={"name": "Gradients", "index": place})
        for place in range(3)
    ]
    last = [events.add("TaskStateEntered", before, stateEnteredEventDetails={"name": "Gradient"}) for before in last]
    for _ in range(2):
        last = [
            events.attempt(before, failure) for before, failure in zip(last, (THROTTLED, KILLED, KILLED), strict=True)
        ]
    events.attempt(last[0])
    events.attempt(last[1], KILLED)
    events.attempt(last[2], ("States.Timeout", ""), late=True)
    return events.events


@pytest.mark.parametrize("page", [PAGE, 3])
def test_attempts_are_counted_and_failures_led_back_to_their_items(page: int) -> None:
    history = History.read(Client({EXECUTION: inline()}, page=page), EXECUTION, ITEMS)
    assert history.attempts == 9
    assert history.failures == {
        10: Failure(*THROTTLED), 20: Failure(*KILLED), 30: Failure("States.Timeout", "")
    }  # fmt: skip


@pytest.mark.parametrize(
    "state",
    [
        name
        for name in after({}, "arn", distributed=False, inline_concurrency=1, concurrency=0, timeout_seconds=1)
        if name.startswith("Reduce ")
    ]
    + ["Mean 1"],
)
def test_what_adds_gradients_up_is_no_attempt_at_one(state: str) -> None:
    events = Events()
    last = events.attempt(events.add("TaskStateEntered", stateEnteredEventDetails={"name": "Gradient"}))
    entered = events.add("MapStateEntered", last, stateEnteredEventDetails={"name": state})
    events.attempt(entered, KILLED)
    history = History.read(Client({EXECUTION: events.events}), EXECUTION, ITEMS)
    assert (history.attempts, history.failures) == (1, {})


def test_a_branch_is_known_by_its_states_name() -> None:
    events = Events()
    for branch in (0, 1):
        entered = events.add("TaskStateEntered", 1, stateEnteredEventDetails={"name": f"Gradient {branch}"})
        events.attempt(entered, KILLED if branch else None)
    history = History.read(Client({EXECUTION: events.events}), EXECUTION, ITEMS)
    assert (history.attempts, history.failures) == (2, {20: Failure(*KILLED)})


def test_where_nothing_leads_back_the_workers_words_do() -> None:
    events = Events()
    told = json.dumps({"errorMessage": "batch 30 of rank 0 in round 3: lost", "errorType": "ObjectMissing"})
    events.attempt(0, ("Runtime.HandlerError", told))
    events.attempt(0, KILLED)
    history = History.read(Client({EXECUTION: events.events}), EXECUTION, ITEMS)
    assert history.attempts == 2
    assert history.failures == {30: Failure("ObjectMissing", "batch 30 of rank 0 in round 3: lost")}


def test_what_the_output_counts_and_names_is_made_whole() -> None:
    output = json.dumps(
        {"retries": [2, {"Error": "Runtime.ExitError", "Cause": "signal: killed"}, {"Error": "States.Timeout"}]}
    )
    description = {"executionArn": EXECUTION, "status": "SUCCEEDED", "output": output}
    ending = Ending.of(description, ITEMS)
    assert (ending.invocations, ending.silent, ending.complete) == (5, 2, False)
    made = attempts.completed(ending, Client({EXECUTION: inline()}), description, ITEMS, distributed=False)
    assert made.invocations == 9
    assert made.failures[20] == Failure("Runtime.ExitError", "signal: killed"), "the output's own word stands"
    assert made.failures[30] == Failure("States.Timeout", "")


def test_a_history_that_says_nothing_changes_nothing() -> None:
    description = {"executionArn": EXECUTION, "status": "FAILED", "error": "ModelError"}
    ending = Ending.of(description, ITEMS)
    assert attempts.completed(ending, Client({EXECUTION: []}), description, ITEMS, distributed=False) == ending
    assert attempts.completed(ending, Client({}), description, ITEMS, distributed=True) == ending
    assert ending.invocations == 3


def child(count: int) -> list[dict[str, Any]]:
    events = Events()
    before = events.add("TaskStateEntered", stateEnteredEventDetails={"name": "Gradient"})
    for _ in range(count):
        before = events.attempt(before, KILLED)
    return events.events


def test_children_of_a_distributed_map_have_histories_of_their_own() -> None:
    histories = {"a": child(3), "b": child(6), "c": child(1)}
    client = Client(histories, {"FAILED": ["a", "b"], "SUCCEEDED": ["c"]}, page=1)
    output = json.dumps({"retries": [None, 4, None]})
    description = {"executionArn": EXECUTION, "status": "SUCCEEDED", "output": output}
    made = attempts.completed(Ending.of(description, ITEMS), client, description, ITEMS, distributed=True)
    assert made.invocations == 5 + 3 + 6, "what succeeded is in the output"
    description = {"executionArn": EXECUTION, "status": "FAILED", "error": CHILD_FAILED}
    made = attempts.completed(Ending.of(description, ITEMS), client, description, ITEMS, distributed=True)
    assert made.invocations == 1 + 3 + 6, "without an output its child is asked, too"


def test_of_many_children_some_stand_for_all() -> None:
    count = 3 * CHILDREN
    client = Client({f"c{n}": child(1 + n % 2) for n in range(count)}, {"FAILED": [f"c{n}" for n in range(count)]})
    items = [BatchRef(index=n, key="k", samples=1, sha256="0" * 64) for n in range(count)]
    description = {"executionArn": EXECUTION, "status": "FAILED", "error": CHILD_FAILED}
    made = attempts.completed(Ending.of(description, items), client, description, items, distributed=True)
    assert made.invocations == 1.5 * count
    assert len(client.asked) == CHILDREN
