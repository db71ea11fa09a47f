"""What a peer says that its round used, against what real workers and reducers asked of a store that counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.env import ReducerEnv, WorkerEnv
from contract.tree import reducers
from lambdas.gradient_reducer.handler import GradientReducer
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.bill import Bill
from peer_agent.compute import StepFunctionsGradientService
from statemachines import Mode
from statemachines.transitions import transitions
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import RANK, prepare
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

#: Eleven batches: a tree of two groups and a second level, or three invocations of four at most.
COUNTS = (4, 5, 3, 2, 4, 4, 3, 2, 3, 5, 4)


def beside(store: MemoryStore) -> MemoryStore:
    """The same objects, with counts of its own."""
    other = MemoryStore()
    other.objects = store.objects
    return other


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("per_worker", "reduce"), [(1, "never"), (1, "always"), (4, "never"), (4, "always")])
def test_requests_of_workers_are_what_they_asked_for(mode: Mode, per_worker: int, reduce: str) -> None:
    peers = MemoryStore()
    workers, machine = beside(peers), beside(peers)
    compute = {"state_machine": mode.value, "batches_per_worker": per_worker, "reduce": reduce}
    run = prepare(peers, "mlp", machine=MACHINE, counts=COUNTS, **compute)
    worker = GradientWorker(WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None), workers, SystemClock())
    reducer = GradientReducer(ReducerEnv(endpoint_url=None, region="us-east-1"), workers, SystemClock())
    client = MemoryStepFunctions(machine, lambda event: worker(event).to_dict())
    client.reducer = lambda event: reducer(event).to_dict()
    clock = FakeClock()
    ports: Any = SimpleNamespace(clock=clock, store=peers)
    bill = Bill(run.spec, ports)
    service = StepFunctionsGradientService(
        run.spec, RANK, store=peers, endpoint_url="http://127.0.0.1:1", clock=clock, client=client
    )
    bill.begin(len(COUNTS))
    gradient = service.compute(**run.arguments())
    bill.charge_round(gradient, len(COUNTS))
    used = bill.used
    items = -(-len(COUNTS) // per_worker)
    assert used.worker_gets == workers.counts.gets + machine.counts.gets
    assert used.worker_puts == workers.counts.puts
    assert used.store_gets == peers.counts.gets
    assert used.store_puts == peers.counts.puts + peers.counts.lists
    assert used.store_bytes == peers.counts.bytes_out
    assert used.reducers == (reducers(items) if reduce == "always" else 0)
    assert used.cold_starts == 1, "one process did all"
    assert gradient.work is not None
    assert used.worker_seconds == pytest.approx(len(COUNTS) * gradient.work.step_seconds)
    distributed = mode is Mode.DISTRIBUTED_MAP
    first_level = -(-items // 8) if reduce == "always" else 0
    assert used.children == (items + first_level if distributed else 0)
    billed = transitions(
        mode,
        executions=bill.executions,
        invocations=bill.invocations,
        children=used.children,
        reducer=reduce == "always",
        reductions=used.reductions,
    )
    entered = 1 + items * (1 + distributed)
    if reduce == "always":
        entered += 1 + 3 + 1 + reducers(items) + first_level * distributed
    assert billed == entered


def test_attempts_that_come_again_read_again() -> None:
    """Each of three invocations was tried twice before; what they read meanwhile nobody has seen, so all is assumed."""
    store = MemoryStore()
    run = prepare(store, "mlp", machine=MACHINE, reduce="never")
    worker = GradientWorker(WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None), store, SystemClock())
    client = MemoryStepFunctions(store, lambda event: worker(event).to_dict())
    client.retries = 2
    ports: Any = SimpleNamespace(clock=FakeClock(), store=store)
    bill = Bill(run.spec, ports)
    service = StepFunctionsGradientService(
        run.spec, RANK, store=store, endpoint_url="http://127.0.0.1:1", clock=FakeClock(), client=client
    )
    bill.charge_round(service.compute(**run.arguments()), 3)
    assert (bill.invocations, bill.executions) == (9, 1)
    assert bill.used.worker_gets == 1 + 9, "the weights once, as the workers told, and a batch each time"
    assert bill.used.worker_puts == 9
