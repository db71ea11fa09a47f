"""The state machine that computes one peer's gradients of one round: one Lambda task per batch.

Input, `inline_map` and `parallel`: `{"common": {...}, "batches": [{...}, ...]}`.
Input, `distributed_map`:           `{"common": {...}, "items": {"bucket": "...", "key": "..."}}`, a JSON array in S3.
Output, all modes:                  `{"retries": [0, 0, 1, ...]}`, one number of retries per batch.

Where there is a reducer, gradients are then added up, if the input says in which groups (statemachines/reduce.py).

Where failures are tolerated, a failed batch does not end the others. In `inline_map` and `parallel` it is caught, and
`{"Error": ..., "Cause": ...}` stands in its place in the output; from the batch KEPT_CAUSES on `{"Error": ...}`, so
that the output fits a payload however many fail, and the history has the cause. A distributed map knows tolerance by
itself and ends early beyond it; then null, or nothing, stands there, and the child executions say why.

No state ever carries a tensor: workers read weights and batches from S3 and write gradients there. Only JSONPath is
used, and neither ItemBatcher nor ResultWriter, so that AWS, moto and MiniStack execute the same definition alike.

Limits of Step Functions (https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html): 1 MB per
definition, 256 KiB per payload, 25,000 history events per Standard execution, 40 iterations of an inline map at once.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

from contract.errors import ConfigError
from statemachines import reduce
from statemachines.retry import rules


class Mode(StrEnum):
    """Form of the definition."""

    INLINE_MAP = "inline_map"
    """A map inside the execution; at most 40 workers at once."""
    DISTRIBUTED_MAP = "distributed_map"
    """A map of child executions over items in S3; up to 10,000 workers at once."""
    PARALLEL = "parallel"
    """One branch per batch, as in the paper."""


DEFINITION_LIMIT_BYTES = 1_000_000
#: `auto` takes the inline map where no more may run at once, because beyond it batches would wait for one another.
INLINE_CONCURRENCY = 40
#: Seven events per item make 25,000 last for some 3,500 items; a quarter of that leaves every item room for retries,
#: and the descriptions of so many batches (some 200 bytes each) still fit one payload of 256 KiB.
INLINE_LIMIT = 900
#: Some 1,350 bytes per branch keep the definition under 1 MB, and some 1,550 where its failure is caught.
PARALLEL_LIMIT, CAUGHT_PARALLEL_LIMIT = 700, 600
#: A child's output is one small number, so that ten thousand of them stay far below 256 KiB.
DISTRIBUTED_LIMIT = 10_000
#: An output of 256 KiB holds so many causes of 2.6 KB each (Lambda's error object with a message and a stack trace),
#: and the names alone of 840 errors more, with room for what states carry beside it.
KEPT_CAUSES = 60
#: An invocation may wait for a free worker (a local service queues where AWS throttles) before its own time counts.
QUEUE_SECONDS = 900

LIMITS = {Mode.INLINE_MAP: INLINE_LIMIT, Mode.PARALLEL: PARALLEL_LIMIT, Mode.DISTRIBUTED_MAP: DISTRIBUTED_LIMIT}
#: The same where failures are tolerated.
CAUGHT_LIMITS = {**LIMITS, Mode.PARALLEL: CAUGHT_PARALLEL_LIMIT}


def choose_mode(setting: str, batches: int, tolerated: float = 0, concurrency: int = 0) -> Mode:
    """The mode for `batches` a round: `setting` itself, or for `auto` the simplest that runs as many of them at once as
    `concurrency` lets.

    `tolerated` and `concurrency` as in `definition`. Raises ConfigError for an unknown setting, or for more batches
    than the mode takes.
    """
    if setting == "auto":
        at_once = min(batches, concurrency or batches)
        inline = at_once <= INLINE_CONCURRENCY and batches <= INLINE_LIMIT
        mode = Mode.INLINE_MAP if inline else Mode.DISTRIBUTED_MAP
    else:
        try:
            mode = Mode(setting)
        except ValueError as error:
            raise ConfigError(f"compute.state_machine {setting!r} is none of auto, {', '.join(Mode)}") from error
    _check_count(mode, batches, tolerated)
    return mode


def definition(
    mode: Mode,
    *,
    function_arn: str,
    batches: int | None,
    concurrency: int,
    timeout_seconds: int,
    tolerated: float = 0,
    reducer_arn: str = "",
) -> dict[str, Any]:
    """The definition as a JSON-ready dict.

    `batches` is the count per execution; a map takes any, so None will do, while `parallel` needs it to make its
    branches. `concurrency` is the number of workers at once, 0 for the service's own limit; `parallel` has none.
    `timeout_seconds` is the function's time limit. `tolerated` failed batches do not fail an execution: a share of them
    below 1, a count from 1 on. The peer that started it knows the round's other executions and has the last word; only
    a distributed map counts by itself. `reducer_arn` is the function that adds gradients up; without one nothing does.
    Raises ConfigError beyond the limits of the mode.
    """
    mode = Mode(mode)
    if batches is not None:
        _check_count(mode, batches, tolerated)
    if mode is Mode.PARALLEL:
        if batches is None:
            raise ConfigError("a parallel state machine has one branch per batch, so it needs the count of batches")
        state = _parallel(function_arn, batches, timeout_seconds, tolerated > 0)
    elif mode is Mode.INLINE_MAP:
        state = _inline_map(function_arn, concurrency, timeout_seconds, tolerated > 0)
    else:
        state = _distributed_map(function_arn, concurrency, timeout_seconds, tolerated)
    states = {"Gradients": state}
    if reducer_arn:
        states = reduce.after(
            state,
            reducer_arn,
            distributed=mode is Mode.DISTRIBUTED_MAP,
            inline_concurrency=_at_once(concurrency),
            concurrency=concurrency,
            timeout_seconds=QUEUE_SECONDS + timeout_seconds,
        )
    made = {
        "Comment": f"Gradients of one peer's batches in one round ({mode}).",
        "StartAt": "Gradients",
        "States": states,
    }
    size = len(render(made).encode())
    if size > DEFINITION_LIMIT_BYTES:
        raise ConfigError(
            f"a {mode} state machine for {batches} batches has {size:,} bytes, but Step Functions takes "
            f"{DEFINITION_LIMIT_BYTES:,}; use compute.state_machine = distributed_map"
        )
    return made


def render(made: dict[str, Any]) -> str:
    """A definition as compact JSON text, as Step Functions takes it."""
    return json.dumps(made, separators=(",", ":"))


def _check_count(mode: Mode, batches: int, tolerated: float) -> None:
    if batches < 1:
        raise ConfigError(f"a round needs at least one batch, not {batches}")
    limit = (CAUGHT_LIMITS if tolerated > 0 else LIMITS)[mode]
    if batches > limit:
        larger = "" if mode is Mode.DISTRIBUTED_MAP else ", or compute.state_machine = distributed_map"
        why = " with compute.tolerated_failures" if limit < LIMITS[mode] else ""
        raise ConfigError(
            f"a {mode} state machine{why} takes at most {limit:,} batches a round, not {batches:,}; "
            f"use a larger batch_size, fewer batches_per_round{larger}"
        )


def _at_once(concurrency: int) -> int:
    """Iterations of an inline map at the same time."""
    return min(concurrency or INLINE_CONCURRENCY, INLINE_CONCURRENCY)


def _task(function_arn: str, batch: str, timeout_seconds: int) -> dict[str, Any]:
    """One invocation. `batch` is the JSONPath of the batch's description in the state's input."""
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Parameters": {
            "FunctionName": function_arn,
            "Payload": {"common.$": "$.common", "batch.$": batch, "retries.$": "$$.State.RetryCount"},
        },
        "TimeoutSeconds": QUEUE_SECONDS + timeout_seconds,
        "Retry": rules(),
        # The peer reads gradients from S3 by key; of the answer only the retries are kept, to count invocations.
        "ResultSelector": {"retries.$": "$.Payload.retries"},
        "OutputPath": "$.retries",
        "End": True,
    }


def _machine(name: str, task: dict[str, Any], caught: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The states of one batch. `caught`: what its failure goes to, once the retries are spent; the first one first."""
    if caught is None:
        return {"StartAt": name, "States": {name: task}}
    catch = [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.failure", "Next": next(iter(caught))}]
    return {"StartAt": name, "States": {name: {**task, "Catch": catch}, **caught}}


def _told(cause: bool) -> dict[str, Any]:
    """The failure that stands under `$.failure` becomes the output, with its cause or without."""
    if cause:
        return {"Type": "Pass", "OutputPath": "$.failure", "End": True}
    return {"Type": "Pass", "Parameters": {"Error.$": "$.failure.Error"}, "End": True}


def _results() -> dict[str, Any]:
    """How a map or parallel state ends: an array with one number per batch."""
    return {"ResultSelector": {"retries.$": "$"}, "End": True}


def _inline_map(function_arn: str, concurrency: int, timeout_seconds: int, catching: bool) -> dict[str, Any]:
    task = _task(function_arn, "$.batch", timeout_seconds)
    item = {"common.$": "$.common", "batch.$": "$$.Map.Item.Value"}
    caught = None
    if catching:
        item["place.$"] = "$$.Map.Item.Index"
        early = {"Variable": "$.place", "NumericLessThan": KEPT_CAUSES, "Next": "Failure"}
        caught = {
            "Failed": {"Type": "Choice", "Choices": [early], "Default": "Error"},
            "Failure": _told(cause=True),
            "Error": _told(cause=False),
        }
    return {
        "Type": "Map",
        "ItemsPath": "$.batches",
        "MaxConcurrency": _at_once(concurrency),
        "ItemSelector": item,
        "ItemProcessor": {"ProcessorConfig": {"Mode": "INLINE"}, **_machine("Gradient", task, caught)},
        **_results(),
    }


def _distributed_map(function_arn: str, concurrency: int, timeout_seconds: int, tolerated: float) -> dict[str, Any]:
    limit: dict[str, float] = {}
    if tolerated >= 1:
        limit = {"ToleratedFailureCount": int(tolerated)}
    elif tolerated > 0:
        # moto reads a number without a point as something else.
        limit = {"ToleratedFailurePercentage": round(100.0 * tolerated, 6)}
    return {
        "Type": "Map",
        "ItemReader": {
            "Resource": "arn:aws:states:::s3:getObject",
            "ReaderConfig": {"InputType": "JSON"},
            "Parameters": {"Bucket.$": "$.items.bucket", "Key.$": "$.items.key"},
        },
        **({"MaxConcurrency": concurrency} if concurrency else {}),
        **limit,
        "ItemSelector": {"common.$": "$.common", "batch.$": "$$.Map.Item.Value"},
        "ItemProcessor": {
            "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"},
            **_machine("Gradient", _task(function_arn, "$.batch", timeout_seconds)),
        },
        **_results(),
    }


def _parallel(function_arn: str, batches: int, timeout_seconds: int, catching: bool) -> dict[str, Any]:
    def branch(index: int) -> dict[str, Any]:
        task = _task(function_arn, f"$.batches[{index}]", timeout_seconds)
        caught = {f"Gradient {index} failed": _told(cause=index < KEPT_CAUSES)} if catching else None
        return _machine(f"Gradient {index}", task, caught)

    return {"Type": "Parallel", "Branches": [branch(index) for index in range(batches)], **_results()}
