"""The states that add a round's gradients up, level by level, after they have been computed.

Input, beside what the gradients need:
`{"reduce": {"shared": {...}, "level1": [...], "level2": [...], "level3": [...]}}`, an array of groups per level, the
higher ones perhaps empty. Of a distributed map the first level lies in S3: in place of `level1` stands
`"groups": {"bucket": "...", "key": "..."}`. Without `reduce` nothing is added up.
Output: `{"retries": [...], "reducers": {"level1": [0, ...], "level2": [...], "level3": [...]}}`, one number of retries
per invocation. Adding up never fails an execution, because the peer can do it itself: then `"not_reduced"` stands in
place of `reducers`, `{"Error": ..., "Cause": ...}`.

Every state's output replaces what it was made from, so that no payload holds a round's batches and their results both.
Maps over empty arrays do nothing; a choice at every level would cost the same transition.
"""

from __future__ import annotations

from typing import Any

from statemachines.retry import rules

#: Levels of the largest tree; whoever makes the input knows its groups (contract/tree.py).
LEVELS = 3
_DECIDES, _DONE, _REDUCED, _GAVE_UP = "Reduce?", "Done", "Reduced", "Not reduced"


def after(
    gradients: dict[str, Any],
    function_arn: str,
    *,
    distributed: bool,
    inline_concurrency: int,
    concurrency: int,
    timeout_seconds: int,
) -> dict[str, Any]:
    """All states of a machine, by name, whose first one is `gradients`; that ends no more but goes on.

    `function_arn` is the reducer. `distributed`: the first level is a distributed map, of `concurrency` invocations at
    once, 0 for the service's own limit; the other levels have `inline_concurrency`. `timeout_seconds` is a task's time
    limit, waiting included.
    """
    computed = "$.items" if distributed else "$.batches"
    first = {name: value for name, value in gradients.items() if name != "End"}
    states: dict[str, Any] = {
        "Gradients": {**first, "ResultPath": computed, "Next": _DECIDES},
        _DECIDES: {
            "Type": "Choice",
            "Choices": [{"Variable": "$.reduce", "IsPresent": True, "Next": _name(1)}],
            "Default": _DONE,
        },
        _DONE: {"Type": "Pass", "OutputPath": computed, "End": True},
    }
    for level in range(1, LEVELS + 1):
        children = distributed and level == 1
        most = concurrency if children else inline_concurrency
        states[_name(level)] = _level(level, function_arn, children, most, timeout_seconds)
    states[_REDUCED] = {
        "Type": "Pass",
        "Parameters": {
            "retries.$": f"{computed}.retries",
            "reducers": {f"level{level}.$": f"$.level{level}.retries" for level in range(1, LEVELS + 1)},
        },
        "End": True,
    }
    states[_GAVE_UP] = {
        "Type": "Pass",
        "Parameters": {"retries.$": f"{computed}.retries", "not_reduced.$": "$.failure"},
        "End": True,
    }
    return states


def _name(level: int) -> str:
    return f"Reduce {level}"


def _level(level: int, function_arn: str, children: bool, concurrency: int, timeout_seconds: int) -> dict[str, Any]:
    """A map over the groups of a level; `children`: over items in S3, a child execution each."""
    items: dict[str, Any] = {"ItemsPath": f"$.reduce.level{level}"}
    if children:
        items = {
            "ItemReader": {
                "Resource": "arn:aws:states:::s3:getObject",
                "ReaderConfig": {"InputType": "JSON"},
                "Parameters": {"Bucket.$": "$.reduce.groups.bucket", "Key.$": "$.reduce.groups.key"},
            }
        }
    task = f"Mean {level}"
    mode = {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"} if children else {"Mode": "INLINE"}
    return {
        "Type": "Map",
        **items,
        **({"MaxConcurrency": concurrency} if concurrency else {}),
        "ItemSelector": {"common.$": "$.common", "shared.$": "$.reduce.shared", "group.$": "$$.Map.Item.Value"},
        "ItemProcessor": {
            "ProcessorConfig": mode,
            "StartAt": task,
            "States": {
                task: {
                    "Type": "Task",
                    "Resource": "arn:aws:states:::lambda:invoke",
                    "Parameters": {
                        "FunctionName": function_arn,
                        "Payload": {
                            "common.$": "$.common",
                            "shared.$": "$.shared",
                            "group.$": "$.group",
                            "retries.$": "$$.State.RetryCount",
                        },
                    },
                    "TimeoutSeconds": timeout_seconds,
                    "Retry": rules(),
                    "ResultSelector": {"retries.$": "$.Payload.retries"},
                    "OutputPath": "$.retries",
                    "End": True,
                }
            },
        },
        "ResultSelector": {"retries.$": "$"},
        "ResultPath": f"$.level{level}",
        "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.failure", "Next": _GAVE_UP}],
        "Next": _name(level + 1) if level < LEVELS else _REDUCED,
    }
