"""Rounds whose gradients reducers add up: to the bits of the peer's own process, and whatever happens to them."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from contract import wire
from contract.clock import SystemClock
from contract.env import ReducerEnv, WorkerEnv
from contract.errors import CorruptObject, GradientFailed, ObjectMissing, StoreUnavailable, WeightsMismatch
from contract.reduce_tasks import Group, ReduceTask
from lambdas.gradient_reducer.handler import GradientReducer
from lambdas.gradient_reducer.mean import inputs, mean_frame
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from peer_agent.membership import FIRST_INCARNATION
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_round import PLACES
from tests.fakes.gradient_run import INCARNATION, RANK, ROUND, GradientRun, prepare
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

#: Has buffers: statistics and counters of BatchNorm.
WITH_BUFFERS = "mobilenet_v3_small"
#: Eleven batches make two groups and a second level; of unequal sizes, so that an unweighted mean is wrong.
COUNTS = (8, 5, 3, 2, 7, 4, 6, 2, 3, 5, 4)
MODES = ["inline_map", "distributed_map", "parallel"]
Event = dict[str, Any]


@pytest.fixture
def gets() -> list[str]:
    return []


@pytest.fixture
def store(gets: list[str]) -> MemoryStore:
    return MemoryStore(before=lambda operation, place: gets.append(place.key) if operation == "get" else None)


class Functions:
    """The real worker and the real reducer over a store. Batches in `broken` fail; `spoil` may do anything before a
    group is added up, and raise."""

    def __init__(self, store: MemoryStore) -> None:
        env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
        self._worker = GradientWorker(env, store=store, clock=SystemClock())
        self._reducer = GradientReducer(ReducerEnv(endpoint_url=None, region="us-east-1"), store, SystemClock())
        self.broken: set[int] = set()
        self.spoil: Callable[[Event], None] = lambda event: None
        self.groups: list[tuple[int, int]] = []

    def work(self, event: Event) -> Event:
        if event["batch"]["index"] in self.broken:
            raise StoreUnavailable(f"batch {event['batch']['index']} of rank 0 in round 3: S3 does not answer")
        return self._worker(event).to_dict()

    def reduce(self, event: Event) -> Event:
        self.groups.append((event["group"]["level"], event["group"]["number"]))
        self.spoil(event)
        return self._reducer(event).to_dict()


@dataclasses.dataclass
class Round:
    run: GradientRun
    client: MemoryStepFunctions
    functions: Functions
    store: MemoryStore

    def service(self) -> StepFunctionsGradientService:
        return StepFunctionsGradientService(
            self.run.spec, RANK, store=self.store, endpoint_url="http://127.0.0.1:1", clock=FakeClock(),
            client=self.client,
        )  # fmt: skip

    def compute(self, **changes: Any) -> Any:
        return self.service().compute(**{**self.run.arguments(), **changes})

    def local(self) -> Any:
        return LocalGradientService(self.run.spec, RANK, store=self.store).compute(**self.run.arguments())


@pytest.fixture
def make(store: MemoryStore) -> Callable[..., Round]:
    def made(mode: str = "inline_map", model: str = "cnn", counts: Sequence[int] = COUNTS, **compute: Any) -> Round:
        settings = {"state_machine": mode, "reduce": "always", **compute}
        run = prepare(store, model, machine=MACHINE, counts=counts, **settings)
        functions = Functions(store)
        client = MemoryStepFunctions(store, functions.work)
        client.reducer = functions.reduce
        tolerated = compute.get("tolerated_failures", 0)
        client.tolerated = (int(tolerated) or 1) if tolerated else None
        return Round(run, client, functions, store)

    return made


def equal(found: Any, other: Any) -> bool:
    """To the bit."""
    assert found.buffers.keys() == other.buffers.keys()
    buffers = all(
        found.buffers[name].tobytes() == other.buffers[name].tobytes()
        and found.buffers[name].dtype == other.buffers[name].dtype
        for name in other.buffers
    )
    return buffers and (found.gradient.tobytes(), found.samples, found.loss) == (
        other.gradient.tobytes(), other.samples, other.loss,
    )  # fmt: skip


def left(store: MemoryStore) -> list[str]:
    return [key for _, key in store.objects if any(f"/{kind}/" in key for kind in ("gradients", "items", "partials"))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("per_worker", "counts", "reducers"), [(1, COUNTS, 3), (2, COUNTS, 1), (1, (4,) * 2, 1)])
def test_the_peer_reads_one_mean_equal_to_the_bit_with_its_own_process(
    make: Callable[..., Round],
    store: MemoryStore,
    gets: list[str],
    mode: str,
    per_worker: int,
    counts: Sequence[int],
    reducers: int,
) -> None:
    made = make(mode, WITH_BUFFERS if mode == "inline_map" else "cnn", counts, batches_per_worker=per_worker)
    found = made.compute()
    assert equal(found, made.local())
    assert gets.count(next(key for key in gets if "/partials/" in key)) == 1
    items = -(-len(counts) // per_worker)
    read = [key for key in gets if "/gradients/" in key]
    assert len(read) == len(set(read)) == items, "each gradient was read by a reducer, and by nobody else"
    assert (found.invocations, found.reducers, found.executions) == (items + reducers, reducers, 1)
    assert found.not_reduced == ""
    assert left(store) == []


def test_the_mean_is_the_flat_one_but_for_rounding(make: Callable[..., Round]) -> None:
    made = make(model=WITH_BUFFERS)
    found, flat = made.compute(), make(model=WITH_BUFFERS, reduce="never").compute()
    distance = np.linalg.norm(found.gradient - flat.gradient) / np.linalg.norm(flat.gradient)
    assert 0 < distance < 1e-6
    assert found.loss == pytest.approx(flat.loss, rel=1e-12)
    for name, value in flat.buffers.items():
        np.testing.assert_allclose(found.buffers[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    gradient, _, loss = made.run.torch_gradient()
    assert np.linalg.norm(found.gradient - gradient) < 1e-5 * np.linalg.norm(gradient)
    assert found.loss == pytest.approx(loss, rel=1e-6)


def test_counters_advance_by_one_and_what_nobody_changed_stays(make: Callable[..., Round]) -> None:
    made = make(model=WITH_BUFFERS)
    counters = {name for name, value in made.run.buffers.items() if value.dtype == np.int64}
    found = made.compute()
    assert counters
    assert all(found.buffers[name] == made.run.buffers[name] + 1 for name in counters)


def test_half_precision_gradients_are_added_up_as_float32(make: Callable[..., Round]) -> None:
    plain, half = make("inline_map").compute(), make("inline_map", gradient_codec="fp16").compute()
    distance = np.linalg.norm(half.gradient - plain.gradient) / np.linalg.norm(plain.gradient)
    assert 0 < distance < 1e-3
    assert half.not_reduced == ""


def test_what_the_workers_measured_comes_home(make: Callable[..., Round]) -> None:
    made = make(batches_per_worker=2)
    work = made.compute().work
    assert (work.batches_per_worker, work.cold_starts, work.weights_fetched) == (2, 1, 1)
    assert work.step_seconds > 0
    assert work.peak_bytes > 50 * 2**20


def test_auto_leaves_a_small_round_alone(make: Callable[..., Round]) -> None:
    made = make(reduce="auto")
    found = made.compute()
    assert "reduce" not in made.client.inputs[0]
    assert (found.reducers, found.not_reduced, made.functions.groups) == (0, "", [])
    assert equal(found, make(reduce="never").compute())


def test_one_gradient_is_none_to_add_up(make: Callable[..., Round]) -> None:
    made = make(batches_per_worker=len(COUNTS))
    assert made.compute().reducers == 0


@pytest.mark.parametrize("mode", MODES)
def test_where_reducing_fails_the_peer_adds_up_itself_to_the_same_bits(
    make: Callable[..., Round], store: MemoryStore, mode: str
) -> None:
    made = make(mode)

    def fail(event: Event) -> None:
        if event["group"]["level"] == 2:
            raise StoreUnavailable("group 0 of level 2 of rank 0 in round 3: S3 does not answer")

    made.functions.spoil = fail
    found = made.compute()
    assert equal(found, made.local())
    assert found.not_reduced == "group 0 of level 2 of rank 0 in round 3: S3 does not answer (StoreUnavailable)"
    assert (found.executions, found.failures) == (1, ())
    assert found.work is not None
    assert left(store) == []


def test_a_machine_without_reducers_costs_the_peer_its_downloads(make: Callable[..., Round]) -> None:
    made = make()
    made.client.reducer = None
    found = made.compute()
    assert equal(found, made.local())
    assert (found.not_reduced, found.invocations) == ("the state machine has no reducers", len(COUNTS))


def rewritten(**changes: Any) -> Callable[[bytes], bytes]:
    def changed(blob: bytes) -> bytes:
        frame = wire.decode(blob, expected_elements=None, expected_buffers_bytes=None)
        return wire.encode(dataclasses.replace(frame.header, **changes), frame.payload, frame.buffers)

    return changed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), "does not match its own digest"),
        (lambda blob: blob[:100], "CorruptObject"),
        (rewritten(samples=48), "samples is 48, asked was for 49"),
        (rewritten(base_weights="0" * 64), "computed at weights 000000000000…"),
        (rewritten(round=ROUND + 1), "round is 4, asked was for 3"),
        (rewritten(extensions=()), "no mean over the 11 gradients"),
    ],
)
def test_a_mean_that_does_not_fit_is_not_used(
    make: Callable[..., Round], store: MemoryStore, change: Callable[[bytes], bytes], told: str
) -> None:
    made = make()
    reduce = made.functions.reduce

    def spoiled(event: Event) -> Event:
        answer = reduce(event)
        if event["group"]["level"] == 2:
            place = made.run.spec.places.partial(RANK, ROUND, INCARNATION, 2, 0)
            store.put(place, change(store.get(place)))
        return answer

    made.client.reducer = spoiled
    found = made.compute()
    assert told in found.not_reduced
    assert equal(found, made.local())


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (lambda blob: None, ObjectMissing, "batch 9: s3://peer-bucket/expiring/one-round/peers/0000/gradients/"),
        (lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]), CorruptObject, "batch 9: a frame of"),
        (rewritten(base_weights="0" * 64), WeightsMismatch, "batch 9: the gradient was computed at weights 0000"),
        (rewritten(samples=6), CorruptObject, "batch 9: s3://"),
        (rewritten(rank=1), CorruptObject, "whose rank is 1, asked was for 0"),
    ],
)
def test_a_reducer_names_the_gradient_that_is_of_no_use(
    make: Callable[..., Round], store: MemoryStore, damage: Callable[[bytes], bytes | None], error: Any, told: str
) -> None:
    made = make()
    place = made.run.spec.places.gradient(RANK, ROUND, INCARNATION, 9)

    def spoil(event: Event) -> None:
        if event["group"]["number"] == 1:
            blob = damage(store.get(place))
            store.delete([place]) if blob is None else store.put(place, blob)

    made.functions.spoil = spoil
    caught: list[Exception] = []
    reduce = made.functions.reduce

    def noting(event: Event) -> Event:
        try:
            return reduce(event)
        except Exception as error:
            caught.append(error)
            raise

    made.client.reducer = noting
    with pytest.raises(GradientFailed, match="batch 9 of rank 0 in round 3"):  # the peer meets it, too
        made.compute()
    (raised,) = caught
    assert type(raised) is error
    assert str(raised).startswith("group 1 of level 1 of rank 0 in round 3: ")
    assert told in str(raised)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [{4}, {6, 7, 8, 9, 10}])
def test_failures_that_are_tolerated_are_left_out(
    make: Callable[..., Round], store: MemoryStore, mode: str, broken: set[int]
) -> None:
    """One of a group, and all of the second."""
    model = WITH_BUFFERS if mode == "inline_map" else "cnn"
    made = make(mode, model, tolerated_failures=len(broken))
    made.functions.broken = broken
    found = made.compute()
    assert (found.not_reduced, len(found.failures)) == ("", len(broken))
    others = [batch for batch in made.run.batches if batch.index not in broken]
    flat = LocalGradientService(make(model=model, reduce="never").run.spec, RANK, store=store)
    expected = flat.compute(**made.run.arguments(others))
    assert found.samples == expected.samples
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert np.linalg.norm(found.gradient - expected.gradient) < 1e-6 * np.linalg.norm(expected.gradient)
    for name, value in expected.buffers.items():
        np.testing.assert_allclose(found.buffers[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    made.client.reducer = None
    assert equal(found, made.compute()), "the peer's own way to the same mean"
    assert left(store) == []


def test_tolerance_finds_the_gradient_that_reducers_could_not_use(
    make: Callable[..., Round], store: MemoryStore
) -> None:
    made = make(tolerated_failures=1)
    place = made.run.spec.places.gradient(RANK, ROUND, INCARNATION, 9)
    made.functions.spoil = lambda event: store.put(place, b"no frame")
    found = made.compute()
    assert found.samples == sum(COUNTS) - COUNTS[9]
    assert "batch 9: 8 bytes are too few for a frame" in found.not_reduced
    assert len(found.failures) == 1


@pytest.mark.parametrize("mode", MODES)
def test_after_a_part_was_computed_again_all_are_added_up(
    make: Callable[..., Round], store: MemoryStore, mode: str
) -> None:
    """By a successor, which finds gradients of its predecessor."""
    made = make(mode, tolerated_failures=1)
    made.functions.broken = {1, 2}
    with pytest.raises(GradientFailed):
        made.compute(incarnation=FIRST_INCARNATION)
    made.functions.broken, made.functions.groups = set(), []
    found = made.compute(incarnation=FIRST_INCARNATION + 1)
    computed = 11 if mode == "parallel" else 2
    assert len(made.client.inputs[-1].get("batches", [0, 0])) == computed
    assert made.functions.groups == [(1, 0), (1, 1), (2, 0)]
    assert (found.not_reduced, found.samples) == ("", sum(COUNTS))
    assert equal(found, made.local())
    assert [key for key in left(store) if "/partials/" not in key and "/items/" not in key] == []


def test_a_reducer_reads_its_group_and_nothing_more(make: Callable[..., Round], gets: list[str]) -> None:
    made = make()
    before: list[int] = []
    made.functions.spoil = lambda event: before.append(len(gets))
    made.compute()
    first, second, third = before
    assert (second - first, third - second) == (6, 5)
    assert all("/gradients/" in key for key in gets[first:third])


def test_a_reducer_holds_its_mean_and_one_frame() -> None:
    """NumPy's memory and bytes, where eight gradients are added up; the last frame goes before the mean is encoded."""
    elements = 500_000
    blob = gradient_frame_of(elements)
    task = ReduceTask(
        places=PLACES, rank=0, round=ROUND, incarnation=0, weights_sha256="0" * 64, codec="none", elements=elements,
        buffers=(), tolerant=False,
        group=Group(level=1, number=0, samples=80, items=tuple((index, 10, 0) for index in range(8))),
    )  # fmt: skip
    tracemalloc.start(1)
    try:
        made = mean_frame(task, ((source, bytes(bytearray(blob))) for source in inputs(task)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made is not None
    assert (made.items, made.samples) == (8, 80)
    assert 2 * len(blob) < peak < 3.2 * len(blob), "copying a frame takes two for a moment"


def gradient_frame_of(elements: int) -> bytes:
    """A gradient of ten samples."""
    header = wire.FrameHeader(
        kind=wire.Kind.GRADIENT, run=PLACES.run, round=ROUND, base_round=ROUND, base_weights="0" * 64, rank=0,
        incarnation=0, samples=10, loss=1.0, codec="none", seed=0, elements=elements,
    )  # fmt: skip
    return wire.encode(header, np.ones(elements, "<f4").data.cast("B"))
