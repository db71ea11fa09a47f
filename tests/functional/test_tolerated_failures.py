"""Rounds of which some batches fail: who goes on, with what mean, what is computed again, and what is said."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from contract import wire
from contract.clock import SystemClock
from contract.env import WorkerEnv
from contract.errors import GradientFailed, StoreUnavailable
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from peer_agent.compute.stepfunctions import MOST_EXECUTIONS
from peer_agent.membership import FIRST_INCARNATION
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import COUNTS, INCARNATION, RANK, ROUND, GradientRun, prepare
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

MODES = ["inline_map", "distributed_map", "parallel"]


class Workers:
    """The real worker over a store, failing for the batches in `broken`; counts what it was asked."""

    def __init__(self, store: MemoryStore) -> None:
        env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
        self._worker = GradientWorker(env, store=store, clock=SystemClock())
        self.broken: set[int] = set()
        self.asked: Counter[int] = Counter()

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        index = event["batch"]["index"]
        self.asked[index] += 1
        if index in self.broken:
            raise StoreUnavailable(f"batch {index} of rank 0 in round 3: S3 does not answer")
        return self._worker(event).to_dict()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def workers(store: MemoryStore) -> Workers:
    return Workers(store)


Made = tuple[GradientRun, MemoryStepFunctions, StepFunctionsGradientService]


@pytest.fixture
def make(store: MemoryStore, workers: Workers) -> Callable[..., Made]:
    def made(mode: str = "inline_map", tolerated: float = 0) -> Made:
        run = prepare(store, "cnn", machine=MACHINE, state_machine=mode, tolerated_failures=tolerated)
        client = MemoryStepFunctions(store, workers)
        client.tolerated = (int(tolerated) or 1) if tolerated else None
        return run, client, service(run, store, client)

    return made


def service(run: GradientRun, store: MemoryStore, client: MemoryStepFunctions) -> StepFunctionsGradientService:
    return StepFunctionsGradientService(
        run.spec, RANK, store=store, endpoint_url="http://127.0.0.1:1", clock=FakeClock(), client=client
    )


def left(store: MemoryStore) -> list[str]:
    return [key for _, key in store.objects if "/gradients/" in key]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tolerated", [1, 0.34])
def test_a_round_goes_on_with_the_mean_of_what_came(
    store: MemoryStore, workers: Workers, make: Callable[..., Made], mode: str, tolerated: float
) -> None:
    run, _, computing = make(mode, tolerated)
    workers.broken = {1}
    found = computing.compute(**run.arguments())
    others = [run.batches[0], run.batches[2]]
    alone = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments(others))
    assert found.gradient.tobytes() == alone.gradient.tobytes(), "weighted by the samples that came"
    assert np.abs(found.gradient).max() > 1e-3
    assert (found.samples, found.loss) == (COUNTS[0] + COUNTS[2], alone.loss)
    assert found.failures == ("no gradient for batch 1 of rank 0 in round 3: S3 does not answer (StoreUnavailable)",)
    assert (found.executions, found.invocations) == (1, 3)
    assert left(store) == []


@pytest.mark.parametrize("mode", MODES)
def test_beyond_the_tolerance_it_fails_and_names_batch_and_cause(
    workers: Workers, make: Callable[..., Made], mode: str
) -> None:
    run, _, computing = make(mode, 1)
    workers.broken = {1, 2}
    told = (
        "no gradient for batch 1 of rank 0 in round 3: S3 does not answer (StoreUnavailable); 2 of 3 batches failed "
        "(1, 2), and compute.tolerated_failures = 1 bears 1"
    )
    with pytest.raises(GradientFailed, match=f"^{re.escape(told)}$"):
        computing.compute(**run.arguments())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tolerated", [0, 1])
def test_what_failed_for_good_is_on_the_bill_with_its_retries(
    workers: Workers, make: Callable[..., Made], mode: str, tolerated: int
) -> None:
    run, client, computing = make(mode, tolerated)
    workers.broken, client.retries = {2}, 2
    if tolerated:
        found = computing.compute(**run.arguments())
        assert (found.invocations, found.executions, found.batches_failed) == (3 * 3, 1, 1)
        return
    with pytest.raises(GradientFailed) as failed:
        computing.compute(**run.arguments())
    # A distributed map that failed answers for none of its items, and this one has no children that succeeded.
    assert (failed.value.invocations, failed.value.executions) == (3 if mode == "distributed_map" else 9, 1)


@pytest.mark.parametrize("mode", ["inline_map", "parallel"])
def test_a_cause_that_the_output_has_no_room_for_is_in_the_history(
    workers: Workers, make: Callable[..., Made], mode: str
) -> None:
    run, client, computing = make(mode, 1)
    workers.broken, client.kept_causes = {1}, 0
    found = computing.compute(**run.arguments())
    assert found.failures == ("no gradient for batch 1 of rank 0 in round 3: S3 does not answer (StoreUnavailable)",)


def test_the_history_decides_nothing(workers: Workers, make: Callable[..., Made]) -> None:
    run, client, computing = make("inline_map", 1)
    workers.broken, client.kept_causes = {1}, 0

    def refused(**_: Any) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "GetExecutionHistory")

    client.get_execution_history = refused  # type: ignore[method-assign]
    found = computing.compute(**run.arguments())
    assert (found.samples, found.invocations) == (COUNTS[0] + COUNTS[2], 3), "as far as the output tells"
    assert found.failures == ("no gradient for batch 1 of rank 0 in round 3: StoreUnavailable",)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("restarted", [False, True])
def test_only_what_failed_is_computed_again(
    store: MemoryStore, workers: Workers, make: Callable[..., Made], mode: str, restarted: bool
) -> None:
    """By the same process, and by one that has taken its place under the next incarnation."""
    run, client, computing = make(mode, 1)
    workers.broken = {1, 2}
    first = {**run.arguments(), "incarnation": FIRST_INCARNATION}
    with pytest.raises(GradientFailed):
        computing.compute(**first)
    workers.broken, again = set(), first
    if restarted:
        computing, again = service(run, store, client), {**first, "incarnation": FIRST_INCARNATION + 1}
    found = computing.compute(**again)
    asked = workers.asked
    assert (asked[0], asked[1]) == (1, 2), "what was there is never computed again"
    assert asked[2] == (3 if mode == "parallel" else 2), "a third branch has to compute something"
    local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
    assert found.gradient.tobytes() == local.gradient.tobytes()
    assert (found.samples, found.failures) == (sum(COUNTS), ())
    assert left(store) == [], "the predecessor's are removed as well"


def test_results_of_other_weights_are_no_results(
    store: MemoryStore, workers: Workers, make: Callable[..., Made]
) -> None:
    run, client, computing = make()
    workers.broken = {2}
    with pytest.raises(GradientFailed):
        computing.compute(**run.arguments())
    where = run.spec.places.gradient(RANK, ROUND, INCARNATION, 0)
    frame = wire.decode(store.get(where), expected_elements=None, expected_buffers_bytes=None)
    other = dataclasses.replace(frame.header, base_weights="ab" * 32)
    store.put(where, wire.encode(other, frame.payload, frame.buffers))
    workers.broken = set()
    assert computing.compute(**run.arguments()).samples == sum(COUNTS)
    assert [batch["index"] for batch in client.inputs[-1]["batches"]] == [0, 2]


@pytest.mark.parametrize("tolerated", [0, 1])
def test_a_damaged_result_is_left_out_or_computed_again(
    store: MemoryStore, workers: Workers, make: Callable[..., Made], tolerated: int
) -> None:
    run, client, computing = make("inline_map", tolerated)
    place = run.spec.places.gradient(RANK, ROUND, INCARNATION, 1)
    whole = client.worker

    def damaging(event: dict[str, Any]) -> dict[str, Any]:
        answer = whole(event)
        if event["batch"]["index"] == 1:
            blob = bytearray(store.get(place))
            blob[-1] ^= 1
            store.put(place, bytes(blob))
        return answer

    client.worker = damaging
    if tolerated:
        found = computing.compute(**run.arguments())
        assert (found.samples, len(found.failures)) == (COUNTS[0] + COUNTS[2], 1)
        assert "(CorruptObject)" in found.failures[0]
        return
    with pytest.raises(GradientFailed, match=r"batch 1 .*\(CorruptObject\)$"):
        computing.compute(**run.arguments())
    client.worker = whole
    assert computing.compute(**run.arguments()).samples == sum(COUNTS)
    assert dict(workers.asked) == {0: 1, 1: 2, 2: 1}


def test_a_round_without_any_batch_fails_however_much_is_tolerated(workers: Workers, make: Callable[..., Made]) -> None:
    run, _, computing = make("inline_map", 100)
    workers.broken = {0, 1, 2}
    with pytest.raises(GradientFailed, match=r"3 of 3 batches failed \(0, 1, 2\), .* = 100 bears 2$"):
        computing.compute(**run.arguments())


class TestExecutionsThatFailAsAWhole:
    """Not for an item's sake: what is missing is asked of another one, as long as something comes of it."""

    def failing(self, client: MemoryStepFunctions, workers: Workers, each: int) -> None:
        """Executions compute `each` further batches and fail."""
        describe = client.describe_execution

        def limited(event: dict[str, Any]) -> dict[str, Any]:
            begun = len(client.executions) * each
            return workers(event) if event["batch"]["index"] < begun else {}

        def failed(*, executionArn: str) -> dict[str, Any]:
            described = describe(executionArn=executionArn)
            if described["status"] != "SUCCEEDED" or len(client.executions) * each >= len(COUNTS):
                return described
            return {**described, "status": "FAILED", "error": "States.DataLimitExceeded", "cause": "too much"}

        client.worker = limited
        client.describe_execution = failed  # type: ignore[method-assign]

    def test_the_rest_is_computed_by_others(self, workers: Workers, make: Callable[..., Made]) -> None:
        run, client, computing = make()
        self.failing(client, workers, each=1)
        found = computing.compute(**run.arguments())
        assert (found.executions, found.invocations, found.samples) == (3, 3 + 2 + 1, sum(COUNTS))
        assert dict(workers.asked) == {0: 1, 1: 1, 2: 1}
        assert [len(given["batches"]) for given in client.inputs] == [3, 2, 1]

    @pytest.mark.parametrize("tolerated", [0, 2])
    def test_one_of_which_nothing_came_is_the_end(
        self, workers: Workers, make: Callable[..., Made], tolerated: int
    ) -> None:
        run, client, computing = make("inline_map", tolerated)
        self.failing(client, workers, each=0)
        told = r"^no gradient for rank 0 in round 3: too much \(States\.DataLimitExceeded\)$"
        with pytest.raises(GradientFailed, match=told):
            computing.compute(**run.arguments())
        assert len(client.executions) == 1

    def test_there_is_an_end_to_it(self, store: MemoryStore, workers: Workers, make: Callable[..., Made]) -> None:
        run, client, computing = make()
        describe = client.describe_execution

        def forgotten(*, executionArn: str) -> dict[str, Any]:
            describe(executionArn=executionArn)
            return {"executionArn": executionArn, "status": "FORGOTTEN"}

        client.worker = lambda event: {}
        client.describe_execution = forgotten  # type: ignore[method-assign]
        with pytest.raises(GradientFailed, match="its execution forgotten"):
            computing.compute(**run.arguments())
        assert len(client.executions) == MOST_EXECUTIONS


def test_the_batch_without_a_result_is_named_where_nothing_else_tells(
    store: MemoryStore, workers: Workers, make: Callable[..., Made]
) -> None:
    """As in a local Step Functions, whose history of a map does not lead back to the item."""

    class ExitError(Exception):
        pass

    run, client, computing = make()

    def dying(event: dict[str, Any]) -> dict[str, Any]:
        if event["batch"]["index"] == 2:
            raise ExitError("Runtime exited with error: exit status 1")
        return workers(event)

    client.worker = dying
    client.get_execution_history = lambda **_: {"events": []}  # type: ignore[method-assign]
    told = r"^no gradient for batch 2 of rank 0 in round 3: Runtime exited with error: exit status 1 \(ExitError\)$"
    with pytest.raises(GradientFailed, match=told):
        computing.compute(**run.arguments())


def test_a_first_round_looks_for_nothing(store: MemoryStore, workers: Workers, make: Callable[..., Made]) -> None:
    """A round that goes well costs no request more than it would without tolerance."""
    run, _, computing = make("distributed_map", 1)
    listed: list[str] = []
    store.before = lambda operation, place: listed.append(operation)
    for round in (ROUND, ROUND + 1):
        computing.compute(**{**run.arguments(), "round": round, "incarnation": FIRST_INCARNATION})
    assert "list" not in listed
    assert "get_range" not in listed
