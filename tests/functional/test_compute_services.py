"""Both gradient services against each other and against plain torch; and what they say when something is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from contract.ahead import fetched_ahead
from contract.errors import ConfigError, GradientFailed, ObjectMissing
from contract.keys import Place
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService, gradient_service
from peer_agent.ports import RoundGradient
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import COUNTS, RANK, prepare
from tests.fakes.gradient_service import on_lambda, worker
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions, Worker
from tests.fakes.store import MemoryStore

#: float32 has 24 bits; sums over a few thousand terms in another order differ in the last few of them.
ROUNDING = {"rtol": 2e-5, "atol": 2e-7}
WITH_NORM, WITHOUT_NORM = "mobilenet_v3_small", "cnn"


def only(compute: Callable[[dict[str, Any]], dict[str, Any]], batches: set[int]) -> Worker:
    """A worker that leaves nothing of other batches, and says nothing about it."""
    return lambda event: compute(event) if event["batch"]["index"] in batches else {}


def gradients(store: MemoryStore) -> list[str]:
    """Keys of per-batch gradients and items in the peer's bucket."""
    return [key for bucket, key in store.objects if "/gradients/" in key or "/items/" in key]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestOneGradient:
    @pytest.mark.parametrize("model", [WITH_NORM, WITHOUT_NORM])
    def test_lambda_local_and_torch_agree(self, store: MemoryStore, model: str) -> None:
        run = prepare(store, model, machine=MACHINE)
        assert bool(run.buffers) == (model == WITH_NORM)
        ours = [
            on_lambda(run, store).compute(**run.arguments()),
            LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments()),
        ]
        gradient, buffers, loss = run.torch_gradient()
        assert np.abs(gradient).max() > 1e-3, "a gradient of zeros would prove nothing"
        scale = float(np.abs(gradient).max())
        for found in ours:
            np.testing.assert_allclose(found.gradient, gradient, rtol=2e-5, atol=2e-6 * scale)
            assert found.gradient.dtype == np.float32
            assert found.loss == pytest.approx(loss, rel=1e-6)
            assert found.samples == sum(COUNTS)
            assert found.buffers.keys() == buffers.keys()
            for name, expected in buffers.items():
                np.testing.assert_allclose(found.buffers[name], expected, **ROUNDING, err_msg=name)
                assert found.buffers[name].dtype == expected.dtype
        # Same code, same seeds, same order of additions: not only close, but equal.
        assert ours[0].gradient.tobytes() == ours[1].gradient.tobytes()
        assert all(ours[0].buffers[name].tobytes() == ours[1].buffers[name].tobytes() for name in buffers)

    def test_an_unweighted_mean_would_be_noticed(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM)
        local = LocalGradientService(run.spec, RANK, store=store)
        weighted = local.compute(**run.arguments()).gradient
        alone = [local.compute(**run.arguments([batch])).gradient for batch in run.batches]
        assert np.abs(weighted - np.mean(alone, axis=0)).max() > 1e-3 * np.abs(weighted).max()

    def test_fp16_between_worker_and_peer_stays_close(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE, gradient_codec="fp16")
        found = on_lambda(run, store).compute(**run.arguments())
        gradient, _, _ = run.torch_gradient()
        # fp16 keeps 11 bits of each batch's element; where batches cancel, that error is large beside their mean.
        np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=2**-11 * np.abs(gradient).max())
        assert np.abs(found.gradient - gradient).max() > 0
        assert found.bytes_in < 0.6 * len(COUNTS) * 4 * run.layout.elements

    @pytest.mark.parametrize(("name", "bound", "share"), [("qsgd8", 0.03, 0.3), ("qsgd4", 0.5, 0.2)])
    def test_qsgd_between_worker_and_peer_is_unbiased(
        self, store: MemoryStore, name: str, bound: float, share: float
    ) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE, gradient_codec=name)
        service = on_lambda(run, store)
        gradient, _, _ = run.torch_gradient()
        size = np.linalg.norm(gradient)
        found = [service.compute(**run.arguments() | {"seed": seed}) for seed in range(16)]
        assert all(0 < np.linalg.norm(each.gradient - gradient) < bound * size for each in found)
        mean = np.mean([each.gradient for each in found], axis=0)
        assert np.linalg.norm(mean - gradient) < 0.4 * np.linalg.norm(found[0].gradient - gradient)  # 1/4 is expected
        assert found[0].bytes_in < share * len(COUNTS) * 4 * run.layout.elements + 3 * 1_000


class TestStepFunctions:
    @pytest.mark.parametrize("mode", ["inline_map", "distributed_map", "parallel"])
    def test_every_mode_gives_the_same_and_leaves_nothing(self, store: MemoryStore, mode: str) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE, state_machine=mode)
        client = MemoryStepFunctions(store, worker(store))
        found = on_lambda(run, store, client).compute(**run.arguments())
        local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
        assert found.gradient.tobytes() == local.gradient.tobytes()
        assert (found.invocations, found.executions) == (3, 1)
        assert gradients(store) == []
        assert ("items" in client.inputs[0]) == (mode == "distributed_map")

    def test_bytes_are_those_that_travelled(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client = MemoryStepFunctions(store, worker(store))
        found = on_lambda(run, store, client).compute(**run.arguments())
        (arn,) = client.executions
        assert found.bytes_out == len(client.executions[arn]["input"])
        assert 4 * run.layout.elements * 3 < found.bytes_in < 4 * run.layout.elements * 3 + 3 * 1_000
        assert found.bytes_out < 2_000, "weights and gradients go by S3"
        local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
        assert local.bytes_in == sum(len(store.get(Place("peer-bucket", batch.key))) for batch in run.batches)
        assert (local.bytes_out, local.invocations, local.executions) == (0, 0, 0)

    def test_retried_invocations_are_counted(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client = MemoryStepFunctions(store, worker(store))
        client.retries = 2
        assert on_lambda(run, store, client).compute(**run.arguments()).invocations == 3 + 3 * 2

    def test_a_parallel_round_with_fewer_batches_fills_its_branches(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE, state_machine="parallel")
        client = MemoryStepFunctions(store, worker(store))
        found = on_lambda(run, store, client).compute(**run.arguments(run.batches[:2]))
        local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments(run.batches[:2]))
        assert [batch["index"] for batch in client.inputs[0]["batches"]] == [0, 1, 1]
        assert found.gradient.tobytes() == local.gradient.tobytes()
        assert (found.invocations, found.samples) == (3, 13)

    def test_waits_follow_the_last_durations(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        clock = FakeClock()
        service = on_lambda(run, store, MemoryStepFunctions(store, worker(store), asks=3), clock)
        service.compute(**run.arguments())
        first, clock.slept = list(clock.slept), []
        service.compute(**run.arguments())
        assert first == [0.02, 0.02, 0.02, 0.02]
        # The service said 1 s, we saw it after 0.08 s: the shorter one counts.
        assert clock.slept[0] == pytest.approx(0.97 * 0.08)

    def test_a_repeated_start_goes_on_with_the_running_execution(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client = MemoryStepFunctions(store, worker(store))
        start = client.start_execution

        def answer_lost(**arguments: Any) -> dict[str, Any]:
            start(**arguments)
            return start(**arguments)  # what botocore does after a connection that broke

        client.start_execution = answer_lost  # type: ignore[method-assign]
        found = on_lambda(run, store, client).compute(**run.arguments())
        assert len(client.executions) == 1
        assert found.samples == sum(COUNTS)

    def test_a_round_computed_again_gets_another_name(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client = MemoryStepFunctions(store, worker(store))
        service = on_lambda(run, store, client)
        assert service.compute(**run.arguments()).loss == service.compute(**run.arguments()).loss
        names = [arn.rpartition(":")[2] for arn in client.executions]
        assert names == ["one-round-r3-p0-i0-a0", "one-round-r3-p0-i0-a1"]

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", None])
    def test_a_local_service_that_has_forgotten_is_asked_for_the_rest(
        self, store: MemoryStore, endpoint: str | None
    ) -> None:
        """As MiniStack has, once it was killed and started again; on AWS it is what it says."""
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client = MemoryStepFunctions(store, only(worker(store), {0}))
        codes = ["ExecutionDoesNotExist", "StateMachineDoesNotExist", "StateMachineDoesNotExist"]
        describe, start = client.describe_execution, client.start_execution

        def forgotten(call: Callable[..., dict[str, Any]], wanted: str) -> Callable[..., dict[str, Any]]:
            def answer(**arguments: Any) -> dict[str, Any]:
                if codes and codes[0] == wanted:
                    client.executions.clear()
                    client.worker = worker(store)
                    raise ClientError({"Error": {"Code": codes.pop(0), "Message": "gone"}}, "Call")
                return call(**arguments)

            return answer

        client.describe_execution = forgotten(describe, "ExecutionDoesNotExist")  # type: ignore[method-assign]
        client.start_execution = forgotten(start, "StateMachineDoesNotExist")  # type: ignore[method-assign]
        service = StepFunctionsGradientService(
            run.spec, RANK, store=store, endpoint_url=endpoint, clock=FakeClock(), client=client
        )
        if endpoint is None:
            with pytest.raises(GradientFailed, match="ExecutionDoesNotExist"):
                service.compute(**run.arguments())
            return
        found = service.compute(**run.arguments())
        assert (found.samples, found.executions) == (sum(COUNTS), 2)
        assert [arn.rpartition(":")[2] for arn in client.executions] == ["one-round-r3-p0-i0-a0"]
        assert [batch["index"] for batch in client.inputs[-1]["batches"]] == [1, 2], "the first was there"

    @pytest.mark.parametrize(("reached", "seconds"), [(False, 5), (True, 60)])
    def test_a_machine_that_was_never_reached_is_asked_for_briefly(
        self, store: MemoryStore, reached: bool, seconds: int
    ) -> None:
        """It probably was never there; one that was is being made anew by whoever started the service again."""
        run = prepare(store, WITHOUT_NORM, machine=MACHINE)
        client, clock = MemoryStepFunctions(store, worker(store)), FakeClock()
        service = StepFunctionsGradientService(
            run.spec, RANK, store=store, endpoint_url="http://127.0.0.1:1", clock=clock, client=client
        )
        if reached:
            service.compute(**run.arguments())

        def gone(**arguments: Any) -> dict[str, Any]:
            raise ClientError({"Error": {"Code": "StateMachineDoesNotExist", "Message": "gone"}}, "StartExecution")

        client.start_execution = gone  # type: ignore[method-assign]
        begun = clock.monotonic()
        with pytest.raises(GradientFailed, match="Step Functions said StateMachineDoesNotExist"):
            service.compute(**run.arguments())
        assert seconds < clock.monotonic() - begun < seconds + 1

    def test_auto_must_have_been_resolved(self, store: MemoryStore) -> None:
        run = prepare(store, WITHOUT_NORM, machine=MACHINE, state_machine="auto")
        with pytest.raises(ConfigError, match=r"names no state machine for rank 0 .*auto"):
            gradient_service(run.spec, RANK, store=store, endpoint_url=None, clock=FakeClock())

    def test_the_configuration_chooses_the_service(self, store: MemoryStore) -> None:
        for machine, kind in ((MACHINE, StepFunctionsGradientService), ("", LocalGradientService)):
            run = prepare(store, WITHOUT_NORM, machine=machine)
            assert type(gradient_service(run.spec, RANK, store=store, endpoint_url=None, clock=FakeClock())) is kind


@pytest.mark.parametrize("ahead", [0, 1, 3, 99])
def test_so_many_gradients_are_on_their_way_at_once_and_no_more_in_memory(ahead: int) -> None:
    fetched: list[int] = []
    together = threading.Barrier(min(ahead, 50) or 1)

    def fetch(item: int) -> int:
        fetched.append(item)
        if item < together.parties:
            together.wait(timeout=60)  # ends only where so many are on their way
        return item * item

    for position, (item, value) in enumerate(fetched_ahead(fetch, range(50), ahead=ahead)):
        assert (item, value) == (position, position * position)
        assert len(fetched) <= position + 1 + ahead


def test_what_a_fetch_raises_comes_at_its_item_and_ends_the_others() -> None:
    fetched: list[int] = []

    def fetch(item: int) -> int:
        fetched.append(item)
        if item == 2:
            raise ObjectMissing("2")
        return item

    found = fetched_ahead(fetch, range(50), ahead=4)
    assert [next(found), next(found)] == [(0, 0), (1, 1)]
    with pytest.raises(ObjectMissing, match="2"):
        next(found)
    assert len(fetched) <= 6


def test_round_gradient_is_what_the_port_says(store: MemoryStore) -> None:
    run = prepare(store, WITHOUT_NORM)
    found = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
    assert isinstance(found, RoundGradient)
    assert found.gradient.shape == (run.layout.elements,)
    assert json.loads(json.dumps(found.loss)) > 0
