"""The real gradient worker with faults: a handler for worker processes of the local Lambda service.

The file that `FAULTS` names says what befalls whom: `{"<batch>": {"kind": ..., "times": n}}`. An attempt of the state
machine after the n-th one goes well.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from contract.env import WorkerEnv
from contract.errors import ModelError
from contract.store import S3Store
from contract.tasks import GradientTask
from lambdas.gradient_worker.handler import handler as real


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answers as the real one does, unless the batch has a fault."""
    index = event["batch"]["index"]
    fault = json.loads(Path(os.environ["FAULTS"]).read_text()).get(str(index))
    if fault is None or event["retries"] >= fault["times"]:
        return real(event, context)
    match fault["kind"]:
        case "raise":
            raise ModelError(f"batch {index} of rank 0 in round 3: the model's own mistake")
        case "exit":
            os._exit(7)
        case "hang":
            signal.pause()
        case "hoard":
            held = b"x" * (fault["mb"] * 2**20)
            signal.pause()
            print(len(held))
        case "slow":
            threading.Event().wait(fault["seconds"])
        case "corrupt":
            answer = real(event, context)
            _damage(GradientTask.from_event(event))
            return answer
    return real(event, context)


def _damage(task: GradientTask) -> None:
    """Change the last byte of a result that is in S3."""
    env = WorkerEnv.read(os.environ)
    store = S3Store(region=env.region, endpoint_url=env.endpoint_url)
    blob = bytearray(store.get(task.output))
    blob[-1] ^= 1
    store.put(task.output, bytes(blob))
    store.close()
