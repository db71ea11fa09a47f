"""Several batches in one invocation: their mean, streamed; and both gradient services dividing a round."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from contract import wire
from contract.averaging import WeightedMean
from contract.clock import SystemClock
from contract.codec import codec
from contract.env import WorkerEnv
from contract.errors import CorruptObject, GradientFailed, ObjectMissing
from contract.gradients import GradientMean
from contract.keys import Place
from contract.modelspec import ModelSpec
from contract.tasks import GradientTask
from contract.tensors import flatten, read_buffers, unpack_buffers
from lambdas.gradient_worker.gradient import Weights, gradient_frame
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from tests.fakes import gradient_run
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_round import PLAIN, SPEC, GradientRound, prepare
from tests.fakes.gradient_run import COUNTS, RANK
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

Gets = list[str]
ENV = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)


@pytest.fixture
def gets() -> Gets:
    """Keys of the objects that were read, in order."""
    return []


@pytest.fixture
def store(gets: Gets) -> MemoryStore:
    return MemoryStore(before=lambda operation, place: gets.append(place.key) if "get" in operation else None)


@pytest.fixture
def worker(store: MemoryStore) -> GradientWorker:
    return GradientWorker(ENV, store, SystemClock())


def frame_of(store: MemoryStore, made: GradientRound, task: GradientTask) -> wire.Frame:
    return wire.decode(
        store.get(task.output),
        expected_elements=made.layout.elements,
        expected_buffers_bytes=made.layout.buffers_bytes,
    )


def torch_gradient(made: GradientRound, index: int) -> np.ndarray:
    """Gradient (n,) of one batch by nothing but torch; for models without dropout."""
    made.model.zero_grad()
    made.model.train()
    x, y = made.samples[index]
    functional.cross_entropy(made.model(x), y).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in made.model.parameters()]).numpy().copy()


def together(made: GradientRound) -> GradientTask:
    """One task over all batches of a round."""
    return replace(made.tasks[0], more=made.batches[1:])


@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["with_norm", "plain"])
def test_several_batches_come_back_as_their_mean(worker: GradientWorker, store: MemoryStore, spec: ModelSpec) -> None:
    made = prepare(store, spec)
    total = sum(batch.samples for batch in made.batches)
    gradient, loss = np.zeros(made.layout.elements), 0.0
    mean = WeightedMean(made.layout, total)
    for task in made.tasks:
        answer = worker(task.to_event())
        frame = frame_of(store, made, task)
        gradient += answer.samples / total * codec("none").decode(frame.payload, made.layout.elements).astype(float)
        mean.add(frame.payload, codec("none"), unpack_buffers(made.layout, frame.buffers), answer.samples)
        loss += answer.samples / total * answer.loss
    _, buffers = mean.result(read_buffers(made.model, made.layout))
    answer = worker(together(made).to_event())
    frame = frame_of(store, made, made.tasks[0])
    found = codec("none").decode(frame.payload, made.layout.elements)
    # float32 has 24 bits, and three products are added up.
    assert np.linalg.norm(found - gradient) < 2e-7 * np.linalg.norm(gradient)
    assert np.abs(found - gradient).max() > 0, "sums of float32 that are exact by chance would prove little"
    assert (frame.header.samples, answer.samples, answer.batch) == (total, total, 0)
    assert frame.header.loss == pytest.approx(loss, rel=1e-12)
    came = unpack_buffers(made.layout, frame.buffers)
    assert all(came[name].tobytes() == buffers[name].tobytes() for name in buffers)
    assert bool(buffers) == (spec is SPEC)


def test_a_batch_counts_by_its_samples(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN, sizes=(15, 1))
    worker(together(made).to_event())
    found = codec("none").decode(frame_of(store, made, made.tasks[0]).payload, made.layout.elements)
    first, second = (torch_gradient(made, index) for index in (0, 1))
    weighted, unweighted = 15 / 16 * first + 1 / 16 * second, (first + second) / 2
    assert np.linalg.norm(found - weighted) < 1e-6 * np.linalg.norm(weighted)
    assert np.linalg.norm(found - unweighted) > 0.1 * np.linalg.norm(weighted)


def test_a_fault_in_a_later_batch_names_it(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN)
    task = together(made)
    wrong = replace(task, more=(replace(task.more[0], sha256="0" * 64), task.more[1]))
    with pytest.raises(CorruptObject, match=r"^batch 1 of rank 0 in round 3: "):
        worker(wrong.to_event())
    gone = replace(task, more=(task.more[0], replace(task.more[1], key="gone")))
    with pytest.raises(ObjectMissing, match=r"^batch 2 of rank 0 in round 3: .*gone"):
        worker(gone.to_event())
    assert (task.output.bucket, task.output.key) not in store.objects


def test_batches_are_fetched_one_ahead_of_the_computation(
    worker: GradientWorker, store: MemoryStore, gets: Gets, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(store, PLAIN, sizes=(2,) * 20)
    begun: list[int] = []
    add = GradientMean.add

    def noting(self: GradientMean, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> None:
        begun.append(len(gets) - 1)  # the weights were read before
        add(self, x, y, seed=seed)

    monkeypatch.setattr(GradientMean, "add", noting)
    worker(together(made).to_event())
    assert len(begun) == 20
    assert all(fetched <= position + 2 for position, fetched in enumerate(begun))
    assert len(gets) == 21


def test_the_frame_tells_what_the_worker_measured(worker: GradientWorker, store: MemoryStore) -> None:
    made = prepare(store, PLAIN)
    told = []
    for _ in range(2):
        answer = worker(together(made).to_event())
        measured = frame_of(store, made, made.tasks[0]).header.measured
        assert measured is not None
        assert measured.step_seconds == answer.step_seconds > 0
        assert 50 * 2**20 < measured.peak_bytes <= answer.peak_bytes
        told.append((measured.cold_start, measured.weights_fetched, answer.cold_start, answer.weights_fetched))
    assert told == [(True, True, True, True), (False, False, False, False)]


def on_lambda(run: gradient_run.GradientRun, store: MemoryStore, client: Any) -> StepFunctionsGradientService:
    return StepFunctionsGradientService(
        run.spec, RANK, store=store, endpoint_url="http://127.0.0.1:1", clock=FakeClock(), client=client
    )


def workers(store: MemoryStore) -> Callable[[dict[str, Any]], dict[str, Any]]:
    made = GradientWorker(ENV, store=store, clock=SystemClock())
    return lambda event: made(event).to_dict()


def services(
    store: MemoryStore, mode: str, per_worker: int | str, model: str = "mobilenet_v3_small", **compute: Any
) -> tuple[Any, Any, Any]:
    """A run, its execution's client, and the gradients of both services."""
    settings = {"state_machine": mode, "batches_per_worker": per_worker, **compute}
    run = gradient_run.prepare(store, model, machine=MACHINE, **settings)
    client = MemoryStepFunctions(store, workers(store))
    found = on_lambda(run, store, client).compute(**run.arguments())
    local = LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())
    return run, client, (found, local)


@pytest.mark.parametrize("mode", ["inline_map", "distributed_map", "parallel"])
@pytest.mark.parametrize(("per_worker", "invocations"), [(1, 3), (2, 2), (3, 1), (100, 1)])
def test_both_services_agree_to_the_bit_however_a_round_is_divided(
    store: MemoryStore, mode: str, per_worker: int, invocations: int
) -> None:
    run, client, (found, local) = services(store, mode, per_worker)
    assert found.gradient.tobytes() == local.gradient.tobytes()
    assert all(found.buffers[name].tobytes() == local.buffers[name].tobytes() for name in run.buffers)
    assert found.loss == local.loss
    gradient, buffers, loss = run.torch_gradient()
    assert np.linalg.norm(found.gradient - gradient) < 1e-5 * np.linalg.norm(gradient)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    for name, expected in buffers.items():
        np.testing.assert_allclose(found.buffers[name], expected, rtol=2e-5, atol=2e-7, err_msg=name)
    assert (found.invocations, found.samples, len(client.inputs)) == (invocations, sum(COUNTS), 1)
    assert not [key for _, key in store.objects if "/gradients/" in key or "/items/" in key]


def test_one_batch_per_worker_is_what_it_was_before_there_were_several(store: MemoryStore) -> None:
    """Item by item, and to the last bit: batches added one by one in the order of the round."""
    run, client, (found, _) = services(store, "inline_map", 1)
    assert client.inputs[0]["batches"] == [batch.to_dict() for batch in run.batches]
    mean = WeightedMean(run.layout, sum(COUNTS))
    worker = workers(store)
    for batch in run.batches:
        worker({"common": client.inputs[0]["common"], "batch": batch.to_dict()})
        blob = store.get(run.spec.places.gradient(RANK, gradient_run.ROUND, gradient_run.INCARNATION, batch.index))
        frame = wire.decode(blob, expected_elements=None, expected_buffers_bytes=None)
        mean.add(frame.payload, codec("none"), unpack_buffers(run.layout, frame.buffers), frame.header.samples)
    gradient, buffers = mean.result(run.buffers)
    assert found.gradient.tobytes() == gradient.tobytes()
    assert all(found.buffers[name].tobytes() == buffers[name].tobytes() for name in buffers)


def test_a_short_parallel_round_fills_its_branches_with_shares(store: MemoryStore) -> None:
    run = gradient_run.prepare(store, "cnn", machine=MACHINE, state_machine="parallel", batches_per_worker=2)
    client = MemoryStepFunctions(store, workers(store))
    found = on_lambda(run, store, client).compute(**run.arguments(run.batches[:1]))
    assert [batch["index"] for batch in client.inputs[0]["batches"]] == [0, 0]
    assert found.samples == COUNTS[0]


def test_what_the_workers_measured_comes_home(store: MemoryStore) -> None:
    _, _, (found, local) = services(store, "inline_map", 2)
    assert found.work is not None
    assert (found.work.batches_per_worker, found.work.cold_starts, found.work.weights_fetched) == (2, 1, 1)
    assert found.work.step_seconds > 0
    assert found.work.peak_bytes > 50 * 2**20
    assert local.work is None


def test_channels_last_gives_the_same_gradient_but_for_rounding(store: MemoryStore) -> None:
    _, _, (plain, _) = services(store, "inline_map", 2, model="cnn")
    _, client, (found, local) = services(store, "inline_map", 2, model="cnn", channels_last=True)
    assert client.inputs[0]["common"]["channels_last"] is True
    assert found.gradient.tobytes() == local.gradient.tobytes()
    apart = np.linalg.norm(found.gradient - plain.gradient) / np.linalg.norm(plain.gradient)
    assert 0 < apart < 1e-5, "other kernels round otherwise, within what exactness allows"


def test_a_worker_holds_one_gradient_and_one_frame(store: MemoryStore) -> None:
    """NumPy's memory and bytes; torch's own (weights, activations, the backward pass) is not traced."""
    made = prepare(store, replace(PLAIN, options={"hidden": 20_000}))
    size = 4 * made.layout.elements
    task = together(made)
    weights = Weights(flatten(made.model, made.layout), read_buffers(made.model, made.layout))
    blobs = [(batch, store.get_range(task.place_of(batch), batch.offset, batch.length or 0)) for batch in task.batches]
    tracemalloc.start(1)
    try:
        result = gradient_frame(
            task, made.model, made.layout, weights, blobs,
            clock=FakeClock(), peak_bytes=lambda: 0, cold_start=False, weights_fetched=False,
        )  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(result.frame) > size
    assert 2 * size < peak < 2.2 * size


def test_auto_begins_with_a_batch_each_and_then_gives_a_second_of_work(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    run = gradient_run.prepare(store, "cnn", machine=MACHINE, batches_per_worker="auto")
    client = MemoryStepFunctions(store, workers(store))
    service = on_lambda(run, store, client)
    found = [service.compute(**run.arguments()) for _ in range(2)]
    assert [each.invocations for each in found] == [3, 1], "these batches take milliseconds"
    assert [each.work.batches_per_worker for each in found if each.work] == [1, 3]
    difference = np.linalg.norm(found[0].gradient - found[1].gradient)
    assert difference < 1e-6 * np.linalg.norm(found[0].gradient)


def test_an_error_names_the_batch_and_not_its_share(store: MemoryStore) -> None:
    run = gradient_run.prepare(store, "cnn", machine=MACHINE, batches_per_worker=3)
    store.put(Place("peer-bucket", run.batches[2].key), b"something else")
    with pytest.raises(GradientFailed, match=r"no gradient for batch 2 of rank 0 in round 3: .*\(CorruptObject\)"):
        on_lambda(run, store, MemoryStepFunctions(store, workers(store))).compute(**run.arguments())
    with pytest.raises(GradientFailed, match=r"batch 2 of rank 0 in round 3: .*\(CorruptObject\)"):
        LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments())


def test_large_gradients_are_read_one_at_a_time(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gradient_run.prepare(store, "cnn", machine=MACHINE)
    order: list[str] = []
    add = WeightedMean.add

    def noting(self: WeightedMean, *arguments: Any) -> None:
        order.append("add")
        add(self, *arguments)

    monkeypatch.setattr(WeightedMean, "add", noting)
    monkeypatch.setattr("contract.ahead.AHEAD_BYTES", 0)
    client = MemoryStepFunctions(store, workers(store))
    start = client.start_execution

    def then_watch(**arguments: Any) -> dict[str, Any]:
        answer = start(**arguments)
        store.before = lambda operation, place: order.append(operation) if operation == "get" else None
        return answer

    client.start_execution = then_watch  # type: ignore[method-assign]
    on_lambda(run, store, client).compute(**run.arguments())
    assert order == ["get", "add"] * 3
