"""What is made of the reports of workers that ended badly; as AWS words them, and as the local Lambda service does."""

from __future__ import annotations

import json

import pytest

from contract.config import ComputeConfig
from contract.tasks import Failure
from peer_agent.compute.causes import cause
from peer_agent.compute.diagnosis import sentence

COMPUTE = ComputeConfig(memory_mb=3_008, timeout_seconds=45)
REQUEST = "4f6c1d0e-8a54-4a5e-9d37-0e3f6c1b2a99"
RAISE = "raise it (at most 10,240), or lower batch_size"


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            Failure("Runtime.ExitError", f"RequestId: {REQUEST} Error: Runtime exited with error: signal: killed"),
            "the worker was killed, as Lambda does with one that runs out of memory: it had compute.memory_mb = 3008 "
            f"and needed more; {RAISE} (Runtime.ExitError)",
        ),
        (
            Failure("Runtime.OutOfMemory", f"RequestId: {REQUEST} Error: Runtime exited with error: signal: killed"),
            f"the worker ran out of memory: it had compute.memory_mb = 3008 and needed more; {RAISE} "
            "(Runtime.OutOfMemory)",
        ),
        (
            Failure("Runtime.OutOfMemory", "x signal: killed (out of memory: it took 3,100 MB of 3,008 MB)"),
            f"the worker ran out of memory: it had compute.memory_mb = 3008 and took 3,100 MB; {RAISE} "
            "(Runtime.OutOfMemory)",
        ),
        (
            Failure("MemoryError", ""),
            f"the worker ran out of memory: it had compute.memory_mb = 3008 and needed more; {RAISE} (MemoryError)",
        ),
        (
            Failure("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            f"the worker ran out of memory: it had compute.memory_mb = 3008 and needed more; {RAISE} (RuntimeError)",
        ),
        (
            Failure("Sandbox.Timedout", f"RequestId: {REQUEST} Error: Task timed out after 45.00 seconds"),
            "the worker was not done within compute.timeout_seconds = 45; raise it (at most 900), give workers more "
            "processor (compute.memory_mb), or lower batch_size (Sandbox.Timedout)",
        ),
        (
            Failure("Runtime.ExitError", "Runtime exited with error: exit status 1"),
            "Runtime exited with error: exit status 1 (Runtime.ExitError)",
        ),
        (
            Failure("Sandbox.Timedout", "Initialisation timed out after 180.00 seconds"),
            "Initialisation timed out after 180.00 seconds (Sandbox.Timedout)",
        ),
        (Failure("States.Timeout", ""), "States.Timeout"),
        (Failure("ModelError", "line one\n  line two"), "line one line two (ModelError)"),
    ],
)
def test_what_befell_a_worker_names_the_setting(failure: Failure, told: str) -> None:
    assert cause(failure, COMPUTE) == told


def test_the_log_is_named_by_its_file_or_by_the_request() -> None:
    message = f"RequestId: {REQUEST} Error: Runtime exited with error: exit status 1"
    on_aws = Failure.parse("Runtime.ExitError", json.dumps({"errorType": "Runtime.ExitError", "errorMessage": message}))
    local = json.dumps({"errorType": "Runtime.ExitError", "errorMessage": message, "log": "/logs/gradient-1.log"})
    of_ministack = Failure.parse(
        "Runtime.HandlerError", json.dumps({"errorType": "X", "errorMessage": f"502: {local}"})
    )
    raised = Failure.parse("ModelError", json.dumps({"errorMessage": "batch 3: no", "requestId": REQUEST}))
    where = "batch 3 of rank 0 in round 1"
    assert sentence(on_aws, where, COMPUTE).endswith(
        f"(Runtime.ExitError); its log: `peerless logs --workers`, request {REQUEST}"
    )
    assert sentence(of_ministack, where, COMPUTE).endswith("(Runtime.ExitError); its log: /logs/gradient-1.log")
    assert sentence(raised, where, COMPUTE) == (
        f"no gradient for batch 3: no (ModelError); its log: `peerless logs --workers`, request {REQUEST}"
    )
