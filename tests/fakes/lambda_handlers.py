"""Handlers that worker processes of the local Lambda service load in tests; free of torch, so that they start fast."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from contract import errors


def echo(event: Any, context: Any) -> dict[str, Any]:
    """What the handler was given."""
    return {
        "event": event,
        "pid": os.getpid(),
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "environment": {name: os.environ.get(name) for name in ("PROBE", "AWS_LAMBDA_FUNCTION_NAME")},
    }


def speak(event: Any, context: Any) -> None:
    """Write `event["text"]` to standard output."""
    print(event["text"])


def fail(event: Any, context: Any) -> None:
    """Raise the class of contract.errors that `event["error"]` names."""
    raise getattr(errors, event["error"])(event["message"])


def leave(event: Any, context: Any) -> None:
    """End the process as a crash does."""
    if "signal" in event:
        os.kill(os.getpid(), event["signal"])
    os._exit(event["status"])


def hang(event: Any, context: Any) -> None:
    """Never return."""
    signal.pause()


def hoard(event: Any, context: Any) -> None:
    """Take so many megabytes, and keep them."""
    held = b"x" * (event["mb"] * 2**20)
    signal.pause()
    print(len(held))


def gate(event: Any, context: Any) -> dict[str, Any]:
    """Say in the pipe `event["in"]` that it is here, and return once something arrives through `event["out"]`."""
    Path(event["in"]).write_text(str(event["number"]))
    Path(event["out"]).read_text()
    return {"number": event["number"], "pid": os.getpid()}


def large(event: Any, context: Any) -> str:
    """So many characters."""
    return "x" * int(event["bytes"])


def item(event: Any, context: Any) -> dict[str, Any]:
    """One task of a state machine: fails like `common["failures"][<batch>]` = [error, times] says, then answers.

    Like a gradient worker, it answers more than the state machine may keep.
    """
    index, retries = event["batch"]["index"], event["retries"]
    error, times = event["common"].get("failures", {}).get(str(index), ("", 0))
    if retries < times:
        if error == "crash":
            os._exit(1)
        raise getattr(errors, error)(f"batch {index} failed as it was told")
    return {"batch": index, "key": event["batch"]["key"], "retries": retries, "padding": "x" * 100_000}


def group(event: Any, context: Any) -> dict[str, Any]:
    """One reducer's task: fails like `shared["failures"][<level>]` = [error, times] says, then answers as above."""
    level, retries = event["group"]["level"], event["retries"]
    error, times = event["shared"].get("failures", {}).get(str(level), ("", 0))
    if retries < times:
        raise getattr(errors, error)(f"group of level {level} failed as it was told")
    return {"level": level, "retries": retries, "padding": "x" * 100_000}
