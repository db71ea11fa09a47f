"""The Lambda service of gradients with the real worker, in this process: Step Functions and S3 in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contract.clock import SystemClock
from contract.env import WorkerEnv
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import StepFunctionsGradientService
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import RANK, GradientRun
from tests.fakes.stepfunctions import MemoryStepFunctions
from tests.fakes.store import MemoryStore


def worker(store: MemoryStore) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The real Lambda worker over `store`."""
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    made = GradientWorker(env, store=store, clock=SystemClock())
    return lambda event: made(event).to_dict()


def on_lambda(
    run: GradientRun, store: MemoryStore, client: Any = None, clock: Any = None
) -> StepFunctionsGradientService:
    return StepFunctionsGradientService(
        run.spec,
        RANK,
        store=store,
        endpoint_url="http://127.0.0.1:1",
        clock=clock or FakeClock(),
        client=client or MemoryStepFunctions(store, worker(store)),
    )
