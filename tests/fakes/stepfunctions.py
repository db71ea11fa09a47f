"""Step Functions in memory: a start runs the real worker once per batch, in this process."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from contract.keys import Place
from contract.store import ObjectStore

#: A worker: event in, answer's dict out; raises as the real handler does.
Worker = Callable[[dict[str, Any]], dict[str, Any]]
MACHINE = "arn:aws:states:us-east-1:000000000000:stateMachine:gradients-0"


class _AlreadyExists(ClientError):
    pass


class _Exceptions:
    ExecutionAlreadyExists = _AlreadyExists


class MemoryStepFunctions:
    """The calls of boto3's client that a gradient service makes. `asks` questions are answered with RUNNING first.

    A worker's exception fails the execution as AWS reports it: the class name as error, Lambda's JSON as cause, and a
    history that leads back to the task's input. With `tolerated` failures it does not: they stand in the output, or,
    of a distributed map, in its children, of which more than `tolerated` fail the execution after all. Before each
    end of an item, good or bad, `retries` attempts came to nothing. `reducer` adds
    gradients up afterwards, as the input says; its exception stands in the output.
    """

    exceptions = _Exceptions

    def __init__(self, store: ObjectStore, worker: Worker, *, asks: int = 2) -> None:
        self._store, self.worker, self._asks = store, worker, asks
        self.executions: dict[str, dict[str, Any]] = {}
        self.inputs: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.sync_starts = 0
        self.retries = 0
        self.reducer: Worker | None = None
        self.tolerated: int | None = None
        self.kept_causes = 60
        self.sync_status: str | None = None  # with which an Express execution ends whatever its workers did
        self._left: dict[str, int] = {}

    def start_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        arn = f"{stateMachineArn.replace(':stateMachine:', ':execution:')}:{name}"
        if arn in self.executions:
            answer: Any = {"Error": {"Code": "ExecutionAlreadyExists", "Message": arn}}
            raise _AlreadyExists(answer, "StartExecution")
        begun = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        execution = {"executionArn": arn, "input": input, "startDate": begun, "events": []}
        self.executions[arn] = execution
        self._left[arn] = self._asks
        given = json.loads(input)
        self.inputs.append(given)
        if "items" in given:
            items = json.loads(self._store.get(Place(given["items"]["bucket"], given["items"]["key"])))
        else:
            items = given["batches"]
        execution["status"] = "SUCCEEDED"
        outcomes: list[Any] = []
        for position, batch in enumerate(items):
            event = {"common": given["common"], "batch": batch, "retries": self.retries}
            try:
                self.worker(json.loads(json.dumps(event)))
                self._record(execution, position, event, None)
                outcomes.append(self.retries)
            except Exception as error:
                if self.tolerated is None:
                    self._fail(execution, position, event, error)
                    break
                outcomes.append(self._tolerate(arn, position, event, error, "items" in given))
        else:
            execution["output"] = json.dumps({"retries": outcomes, **self._reduce(given)})
        if self.tolerated is not None and len(self.children(arn)) > self.tolerated:
            execution.update(status="FAILED", error="States.ExceedToleratedFailureThreshold", cause="")
            del execution["output"]
        execution["stopDate"] = begun + datetime.timedelta(seconds=1)
        return {"executionArn": arn, "startDate": begun}

    def _reduce(self, given: dict[str, Any]) -> dict[str, Any]:
        """What a machine's further states add to the output."""
        if self.reducer is None or "reduce" not in given:
            return {}
        reduce, ends = given["reduce"], {}
        for level in ("level1", "level2", "level3"):
            groups = reduce.get(level)
            if groups is None:
                groups = json.loads(self._store.get(Place(reduce["groups"]["bucket"], reduce["groups"]["key"])))
            ends[level] = []
            for group in groups:
                event = {"common": given["common"], "shared": reduce["shared"], "group": group, "retries": 0}
                try:
                    ends[level].append(self.reducer(json.loads(json.dumps(event)))["retries"])
                except Exception as error:
                    cause = json.dumps({"errorMessage": str(error), "errorType": type(error).__name__})
                    return {"not_reduced": {"Error": type(error).__name__, "Cause": cause}}
        return {"reducers": ends}

    def start_sync_execution(self, *, stateMachineArn: str, name: str, input: str) -> dict[str, Any]:
        """An Express execution: it leaves nothing that could be asked for, and names may come again."""
        arn = self.start_execution(stateMachineArn=stateMachineArn, name=name, input=input)["executionArn"]
        execution = self.executions.pop(arn)
        del execution["events"]
        self.sync_starts += 1
        if self.sync_status is not None:
            execution.update(status=self.sync_status)
            execution.pop("output", None)
        return execution

    def describe_execution(self, *, executionArn: str) -> dict[str, Any]:
        execution = dict(self.executions[executionArn])
        if self._left[executionArn] > 0 and executionArn not in self.stopped:
            self._left[executionArn] -= 1
            return {**execution, "status": "RUNNING", "stopDate": None}
        return execution

    def stop_execution(self, *, executionArn: str, error: str, cause: str) -> None:
        self.stopped.append(executionArn)
        self.executions[executionArn].update(status="ABORTED", error=error, cause=cause)

    def get_execution_history(
        self,
        *,
        executionArn: str,
        maxResults: int,
        reverseOrder: bool = False,
        includeExecutionData: bool = True,
        nextToken: str = "0",
    ) -> dict[str, Any]:
        """In pages of at most seven events, so that whoever wants all of them has to turn one."""
        events = self.executions[executionArn]["events"]
        begin, size = int(nextToken), min(maxResults, maxResults if reverseOrder else 7)
        page = json.loads(json.dumps((events[::-1] if reverseOrder else events)[begin : begin + size]))
        for event in page if not includeExecutionData else ():
            event.get("stateEnteredEventDetails", {}).pop("input", None)
        more = {"nextToken": str(begin + size)} if begin + size < len(events) else {}
        return {"events": page, **more}

    def children(self, arn: str) -> list[str]:
        """Failed children of an execution's distributed map."""
        return [name for name in self.executions if name.startswith(f"{arn}/")]

    def list_map_runs(self, *, executionArn: str) -> dict[str, Any]:
        return {"mapRuns": [{"mapRunArn": executionArn}]}

    def list_executions(self, *, mapRunArn: str, statusFilter: str, maxResults: int) -> dict[str, Any]:
        """Of failed children alone: this distributed map makes no others."""
        found = self.children(mapRunArn) if statusFilter == "FAILED" else []
        return {"executions": [{"executionArn": name} for name in found[:maxResults]]}

    def _tolerate(
        self, arn: str, position: int, event: dict[str, Any], error: Exception, distributed: bool
    ) -> dict[str, Any] | None:
        """What stands in the output in the place of a failed item."""
        told = {"Error": type(error).__name__, "Cause": _cause(error)}
        if not distributed:
            self._record(self.executions[arn], position, event, error)
            return told if position < self.kept_causes else {"Error": told["Error"]}
        name = f"{arn}/{event['batch']['index']}"
        failed = {"status": "FAILED", "error": told["Error"], "cause": told["Cause"], "input": json.dumps(event)}
        self.executions[name] = {"executionArn": name, "events": [], **failed}
        self._record(self.executions[name], 0, event, error)
        self._left[name] = 0
        return None

    def _fail(self, execution: dict[str, Any], position: int, event: dict[str, Any], error: Exception) -> None:
        self._record(execution, position, event, error)
        execution.update(status="FAILED", error=type(error).__name__, cause=_cause(error))
        execution["events"].append({"id": len(execution["events"]) + 1, "type": "ExecutionFailed"})

    def _record(self, execution: dict[str, Any], position: int, event: dict[str, Any], error: Exception | None) -> None:
        """An item's events, as AWS writes them of a branch: each names the one before."""
        events = execution["events"]

        def add(type: str, **details: Any) -> None:
            number = len(events) + 1
            events.append({"id": number, "type": type, "previousEventId": number - 1, **details})

        entered = {"name": f"Gradient {position}", "input": json.dumps(event)}
        add("TaskStateEntered", stateEnteredEventDetails=entered)
        for _ in range(self.retries):
            add("TaskScheduled")
            add("TaskFailed", taskFailedEventDetails={"error": "Lambda.TooManyRequestsException", "cause": "later"})
        add("TaskScheduled")
        if error is None:
            add("TaskSucceeded")
        else:
            add("TaskFailed", taskFailedEventDetails={"error": type(error).__name__, "cause": _cause(error)})


def _cause(error: Exception) -> str:
    return json.dumps({"errorMessage": str(error), "errorType": type(error).__name__})
