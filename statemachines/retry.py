"""Which errors of a gradient worker are tried again, and how.

Step Functions takes the first rule that names the error, so the errors that never go away stand first. AWS reports a
Python exception by its class name and adds the names of the Lambda service and of the sandbox
(https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html). MiniStack calls every error of a
handler `Runtime.HandlerError`, so a rule for `States.TaskFailed` stands last and tries only twice.
"""

from __future__ import annotations

from typing import Any

from contract.errors import PERMANENT_NAMES, TRANSIENT_NAMES

#: More invocations at once than the account or the function may have: they pass when others end.
THROTTLED = ("Lambda.TooManyRequestsException",)
#: Failures of the Lambda service or of the way to it.
SERVICE = (
    "Lambda.AWSLambdaException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.SdkClientException",
    "Lambda.ServiceException",
)
#: The sandbox died (out of memory, exit), ran into the function's time limit, or its answer was lost. A warm process
#: that ran out of memory may have held more than a fresh one needs.
SANDBOX = ("Lambda.Unknown", "Runtime.ExitError", "Runtime.OutOfMemory", "Sandbox.Timedout", "States.Timeout")


def rules() -> list[dict[str, Any]]:
    """The `Retry` field of a gradient task. Intervals in seconds; jitter is FULL, so that peers don't march in step."""
    return [
        {"ErrorEquals": list(PERMANENT_NAMES), "MaxAttempts": 0},
        _rule(THROTTLED, interval=1, attempts=10, longest=30),
        _rule((*TRANSIENT_NAMES, *SERVICE), interval=1, attempts=5, longest=30),
        _rule(SANDBOX, interval=1, attempts=2, longest=10),
        _rule(("States.TaskFailed",), interval=1, attempts=2, longest=10),
    ]


def _rule(names: tuple[str, ...], *, interval: int, attempts: int, longest: int) -> dict[str, Any]:
    return {
        "ErrorEquals": list(names),
        "IntervalSeconds": interval,
        "MaxAttempts": attempts,
        "BackoffRate": 2.0,
        "MaxDelaySeconds": longest,
        "JitterStrategy": "FULL",
    }
