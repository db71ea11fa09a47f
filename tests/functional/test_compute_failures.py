"""What gradient services say when something is wrong, and which of them is to blame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from contract import wire
from contract.batches import BatchRef
from contract.errors import GradientFailed, NonFiniteGradient, StoreUnavailable, TransientError
from contract.keys import Place
from peer_agent.compute import LocalGradientService
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import INCARNATION, RANK, ROUND, prepare
from tests.fakes.gradient_service import on_lambda, worker
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

WITHOUT_NORM = "cnn"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_worker_that_raises_names_its_batch_once(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    store.delete([Place("peer-bucket", run.batches[1].key)])
    with pytest.raises(GradientFailed) as error:
        on_lambda(run, store).compute(**run.arguments())
    assert str(error.value) == (
        f"no gradient for batch 1 of rank 0 in round 3: s3://peer-bucket/{run.batches[1].key} does not exist "
        "(ObjectMissing)"
    )


@pytest.mark.parametrize("mode", ["inline_map", "parallel"])
def test_a_sandbox_that_dies_is_found_in_the_history(store: MemoryStore, mode: str) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE, state_machine=mode)

    class ExitError(Exception):
        pass

    def dying(event: dict[str, Any]) -> dict[str, Any]:
        if event["batch"]["index"] == 2:
            raise ExitError("RequestId: 1 Error: Runtime exited with error: signal: killed")
        return {}

    with pytest.raises(
        GradientFailed,
        match=r"^no gradient for batch 2 of rank 0 in round 3: .*killed \(ExitError\); its log: .*, request 1$",
    ):
        on_lambda(run, store, MemoryStepFunctions(store, dying)).compute(**run.arguments())


def test_non_finite_gradients_name_the_batch_in_both_services(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    broken = replace(run, flat=np.full_like(run.flat, np.nan))
    with pytest.raises(GradientFailed, match=r"batch 0 of rank 0 in round 3: the loss .* nan.*\(NonFiniteGradient\)"):
        LocalGradientService(run.spec, RANK, store=store).compute(**broken.arguments())

    def nan(event: dict[str, Any]) -> dict[str, Any]:
        raise NonFiniteGradient("batch 0 of rank 0 in round 3: the loss is nan")

    with pytest.raises(GradientFailed, match=r"batch 0 of rank 0 in round 3: the loss is nan \(NonFiniteGradient\)"):
        on_lambda(run, store, MemoryStepFunctions(store, nan)).compute(**run.arguments())


def test_gradients_of_other_weights_are_refused(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    right = worker(store)
    where = run.spec.places.gradient(RANK, ROUND, INCARNATION, 1)

    def stale(event: dict[str, Any]) -> dict[str, Any]:
        answer = right(event)
        if event["batch"]["index"] == 1:
            frame = wire.decode(store.get(where), expected_elements=None, expected_buffers_bytes=None)
            header = replace(frame.header, base_weights="ab" * 32)
            store.put(where, wire.encode(header, frame.payload, frame.buffers))
        return answer

    with pytest.raises(GradientFailed, match=r"batch 1 .*computed at weights abababababab.*\(WeightsMismatch\)"):
        on_lambda(run, store, MemoryStepFunctions(store, stale)).compute(**run.arguments())


def test_a_damaged_or_missing_gradient_is_refused(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    right = worker(store)

    def damaging(event: dict[str, Any]) -> dict[str, Any]:
        answer = right(event)
        place = run.spec.places.gradient(RANK, ROUND, INCARNATION, 0)
        blob = bytearray(store.get(place))
        blob[-1] ^= 1
        store.put(place, bytes(blob))
        return answer

    with pytest.raises(GradientFailed, match=r"batch 0 .*\(CorruptObject\)"):
        on_lambda(run, store, MemoryStepFunctions(store, damaging)).compute(**run.arguments())
    with pytest.raises(GradientFailed, match=r"batch 0 .* does not exist \(ObjectMissing\)"):
        on_lambda(
            prepare(MemoryStore(), WITHOUT_NORM, machine=MACHINE),
            MemoryStore(),
            MemoryStepFunctions(store, lambda event: {}),
        ).compute(**run.arguments())


def test_an_altered_batch_is_refused_locally(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM)
    store.put(Place("peer-bucket", run.batches[2].key), b"something else")
    with pytest.raises(GradientFailed, match=r"batch 2 of rank 0 in round 3: .*\(CorruptObject\)"):
        LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())


def test_an_outage_of_s3_stays_what_it_is(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM)

    def away(operation: str, place: Place) -> None:
        raise StoreUnavailable("S3 at memory does not answer")

    store.before = away
    with pytest.raises(StoreUnavailable):
        LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())


def test_step_functions_out_of_reach_is_no_fault_of_the_gradient(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    client = MemoryStepFunctions(store, worker(store))

    def unreachable(**arguments: Any) -> dict[str, Any]:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1/")

    client.describe_execution = unreachable  # type: ignore[method-assign]
    with pytest.raises(TransientError, match=r"^Step Functions at http://127\.0\.0\.1:1 does not answer: "):
        on_lambda(run, store, client).compute(**run.arguments())


def test_a_refusal_of_step_functions_is_quoted(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    client = MemoryStepFunctions(store, worker(store))

    def refused(**arguments: Any) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not yours"}}, "StartExecution")

    client.start_execution = refused  # type: ignore[method-assign]
    told = "no gradient for rank 0 in round 3: Step Functions said AccessDeniedException: not yours"
    with pytest.raises(GradientFailed, match=f"^{told}$"):
        on_lambda(run, store, client).compute(**run.arguments())


def test_more_batches_than_an_input_holds_name_the_remedy(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    many = [BatchRef(index=n, key="k" * 100, samples=1, sha256="0" * 64) for n in range(1_200)]
    with pytest.raises(GradientFailed, match=r"Step Functions takes 262,144.*distributed_map"):
        on_lambda(run, store).compute(**run.arguments(many))


def test_closing_stops_the_running_execution(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM, machine=MACHINE)
    client = MemoryStepFunctions(store, worker(store), asks=1_000)
    clock = FakeClock()
    service = on_lambda(run, store, client, clock)
    sleep = clock.sleep

    def close_meanwhile(seconds: float) -> None:
        sleep(seconds)
        if len(clock.slept) == 5:
            service.close()

    clock.sleep = close_meanwhile  # type: ignore[method-assign]
    with pytest.raises(GradientFailed, match="the peer was stopped"):
        service.compute(**run.arguments())
    assert client.stopped == list(client.executions)
    with pytest.raises(GradientFailed, match="the peer was stopped"):
        service.compute(**{**run.arguments(), "round": ROUND + 1})
    assert len(client.executions) == 1
