"""Whole runs of every training algorithm with real gradients and steps, over an object store and a broker in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from contract import models
from contract.algorithms import local_steps
from contract.batches import decode_batch, share_count
from contract.clock import SystemClock
from contract.config import AlgorithmConfig, RunConfig
from contract.env import WorkerEnv
from contract.errors import GradientFailed
from contract.local_steps import LocalUpdate, local_update
from contract.runspec import Origin, RunSpec
from contract.seeds import public_seed
from contract.tasks import gradient_seed
from contract.tensors import Layout, decode_weights
from lambdas.gradient_worker.handler import GradientWorker
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from peer_agent.compute.moments import WorkerMoments
from peerless.launch.workload import batches_per_round, resolve_mode
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_run import COUNTS, RANK, prepare
from tests.fakes.peers import Cast
from tests.fakes.stepfunctions import MACHINE, MemoryStepFunctions
from tests.fakes.store import MemoryStore

LR = 0.05
SAMPLES = (40, 33, 17)
FEDAVG = {"name": "local_sgd", "local_epochs": 2}
DILOCO = {"name": "diloco", "local_steps": 5}


def configuration(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "peers": 3,
        "epochs": 3,
        "batch_size": 8,
        "batches_per_round": 2,
        "algorithm": FEDAVG,
        "optimizer": {"name": "adam", "lr": LR},
        "exchange": {"codec": "none", "poll_seconds": 1.0, "start_timeout_seconds": 20.0},
        "compute": {"service": "local"},
    }
    return RunConfig.model_validate({**values, **changes})


def diloco(**changes: Any) -> RunConfig:
    return configuration(**{"algorithm": DILOCO, "optimizer": {"name": "adamw", "lr": LR}, **changes})


def local(spec: RunSpec, store: MemoryStore, rank: int) -> LocalGradientService:
    return LocalGradientService(spec, rank, store=store)


def played(config: RunConfig, **options: Any) -> Cast:
    cast = Cast(config, SAMPLES, gradients=local, **options)
    cast.play()
    cast.close()
    return cast


def updates(cast: Cast, round: int, lr: float, flat: np.ndarray, buffers: Any) -> list[LocalUpdate]:
    """What each peer's worker makes of a round, without any of the services."""
    spec, model = cast.spec, models.build(cast.spec.model)
    work, found = local_steps(spec.config, lr), []
    assert work is not None
    for rank in range(spec.config.peers):
        indices = spec.batches_for_round(rank, round)
        data = [decode_batch(cast.store.get(spec.places.batch(rank, index))) for index in indices]
        seed = gradient_seed(public_seed(spec.config.seed, "batches", rank, round), indices[0])
        layout = Layout.of(model)
        found.append(local_update(model, layout, spec.config.loss, flat, buffers, data, work, seed=seed))
    return found


def outer_steps(cast: Cast, step: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The final weights by a plain loop: local updates, their mean by samples in float64, then `step`."""
    spec = cast.spec
    layout = cast.peers[0].actions.layout
    place = spec.places.weights(spec.initial_weights)
    flat, buffers = decode_weights(layout, cast.store.get(place), spec.initial_weights)
    for round in range(spec.rounds_limit):
        made = updates(cast, round, LR, flat, buffers)
        total = sum(update.samples for update in made)
        mean = sum(update.gradient.astype(np.float64) * (update.samples / total) for update in made)
        flat = step(flat, np.asarray(mean)).astype(np.float32)
    return flat


def one_hash(cast: Cast) -> str:
    (found,) = {report.weights_sha256 for report in cast.reports()}
    return found


def losses(cast: Cast) -> list[float]:
    """Each peer's validation losses, which are the run's."""
    best = {report.best_validation_loss for report in cast.reports()}
    assert None not in best
    return sorted(best)  # type: ignore[type-var]


class TestSynchronous:
    def test_local_sgd_averages_weights_by_samples(self) -> None:
        cast = played(configuration())
        one_hash(cast)
        expected = outer_steps(cast, lambda flat, mean: flat - mean)
        # float32 over nine rounds of Adam, whose steps are as large for small gradients as for large ones.
        np.testing.assert_allclose(cast.peers[0].actions.update.flat, expected, rtol=0, atol=2e-5)

    def test_averaged_updates_go_through_the_outer_optimizer(self) -> None:
        outer = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "nesterov": False}
        cast = played(configuration(algorithm={**FEDAVG, "average": "updates"}, outer=outer))
        expected = outer_steps(cast, lambda flat, mean: flat - 0.5 * mean)
        np.testing.assert_allclose(cast.peers[0].actions.update.flat, expected, rtol=0, atol=2e-5)

    def test_diloco_is_a_nesterov_step_on_the_averaged_update(self) -> None:
        cast = played(diloco())
        velocity = np.zeros(cast.peers[0].actions.layout.elements)

        def nesterov(flat: np.ndarray, mean: np.ndarray) -> np.ndarray:
            nonlocal velocity
            velocity = 0.9 * velocity + mean
            return flat - 0.7 * (mean + 0.9 * velocity)

        expected = outer_steps(cast, nesterov)
        np.testing.assert_allclose(cast.peers[0].actions.update.flat, expected, rtol=0, atol=5e-5)

    @pytest.mark.parametrize("topology", ["all_gather", "reduce_scatter"])
    @pytest.mark.parametrize("algorithm", ["local_sgd", "diloco"])
    def test_updates_travel_as_gradients_do(self, algorithm: str, topology: str) -> None:
        """Compressed, with error feedback, cut into shards; the same on all peers, and as good as uncompressed."""
        make = diloco if algorithm == "diloco" else configuration
        coded = {"codec": "qsgd8", "error_feedback": True, "topology": topology, "poll_seconds": 1.0}
        plain, cast = played(make()), played(make(exchange={**coded, "start_timeout_seconds": 20.0}))
        assert one_hash(cast) != one_hash(plain)
        assert losses(cast) == pytest.approx(losses(plain), rel=0.1)
        first, last = plain.peers[0].actions.update.flat, cast.peers[0].actions.update.flat
        assert np.linalg.norm(first - last) < 0.1 * np.linalg.norm(first)

    def test_local_steps_learn_faster_per_round_than_one_gradient(self) -> None:
        plain = {"name": "gradient_averaging"}
        one = played(configuration(algorithm=plain, optimizer={"name": "sgd", "lr": LR, "momentum": 0.0}))
        many = played(configuration(optimizer={"name": "sgd", "lr": LR, "momentum": 0.0}))
        assert losses(many)[0] < losses(one)[0]
        assert one.spec.rounds_limit == many.spec.rounds_limit

    def test_buffers_come_home(self) -> None:
        cast = played(configuration(), norm=True)
        one_hash(cast)
        buffers = cast.peers[0].actions.update.buffers
        assert buffers["0.num_batches_tracked"] == cast.spec.rounds_limit
        assert abs(float(buffers["0.running_mean"][0])) > 1e-3

    def test_the_schedule_is_the_workers(self) -> None:
        """Their rate follows the round; the outer step has its own."""
        seen: list[tuple[int, float]] = []

        class Watched(LocalGradientService):
            def compute(self, **given: Any) -> Any:
                seen.append((given["round"], given["steps"].optimizer.lr))
                return super().compute(**given)

        config = diloco(scheduler={"name": "linear", "warmup_rounds": 1, "min_lr": 0.0})
        cast = Cast(config, SAMPLES, gradients=lambda spec, store, rank: Watched(spec, rank, store=store))
        cast.play()
        cast.close()
        rounds = cast.spec.rounds_limit
        expected = [LR / 2, *(LR * (1 - t / (rounds - 1)) for t in range(rounds - 1))]
        assert [lr for _, lr in sorted(seen)[::3]] == pytest.approx(expected)
        assert cast.peers[0].actions.update.optimizer.param_groups[0]["lr"] == 0.7


def kept_rounds(store: MemoryStore, rank: int) -> list[int]:
    """Rounds for which a peer's workers have left moments."""
    found = [key for _, key in store.objects if f"/peers/{rank:04d}/moments/" in key]
    return sorted(int(key.split("/")[-2]) for key in found)


class TestRecovery:
    """Every process dies at once and new ones come: they end with the bits of a run that nothing happened to."""

    CASES: ClassVar[dict[str, dict[str, Any]]] = {
        "gradients, cosine": {"algorithm": {"name": "gradient_averaging"}, "scheduler": {"name": "cosine"}},
        "gradients, rmsprop, clipped": {
            "algorithm": {"name": "gradient_averaging"},
            "optimizer": {"name": "rmsprop", "lr": 0.01, "options": {"momentum": 0.5}, "clip_norm": 0.1},
            "scheduler": {"name": "linear", "warmup_rounds": 3},
        },
        "local_sgd, moments reset": {},
        "local_sgd, moments kept": {"algorithm": {**FEDAVG, "keep_state": True}},
        "diloco, moments kept": {
            "algorithm": {**DILOCO, "keep_state": True},
            "optimizer": {"name": "adamw", "lr": LR},
            "scheduler": {"name": "step", "step_rounds": 2, "warmup_rounds": 2},
        },
    }

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("every", [3, 20])
    def test_a_run_goes_on_to_the_same_bits(self, case: str, every: int) -> None:
        config = configuration(**self.CASES[case], checkpoint={"every_rounds": every})
        expected = one_hash(played(config))
        cast, died = Cast(config, SAMPLES, gradients=local), False

        def die(turn: int) -> None:
            nonlocal died
            if died or cast.peers[0].runner.machine.round < 5:
                return
            died = True
            for rank, peer in enumerate(cast.peers):
                peer.actions.close()
                cast.memory_broker.revive(rank)
            cast.peers = [cast.add(rank) for rank in range(config.peers)]
            for rank in range(config.peers):
                cast.advance(rank, cast.peers[rank].runner.start)

        cast.play(each_turn=die)
        cast.close()
        assert died
        assert one_hash(cast) == expected

    def test_kept_moments_change_a_run_and_leave_few_objects(self) -> None:
        config = configuration(algorithm={**FEDAVG, "keep_state": True}, checkpoint={"every_rounds": 3})
        cast = played(config)
        assert one_hash(cast) != one_hash(played(configuration()))
        rounds = cast.spec.rounds_limit
        assert rounds == 9
        assert kept_rounds(cast.store, 0) == [3, 6, 7, 8, 9]
        assert kept_rounds(played(configuration()).store, 0) == []

    def test_a_run_that_goes_on_from_another_begins_with_its_moments(self) -> None:
        cast = played(configuration(algorithm={**FEDAVG, "keep_state": True}))
        cast.store.put(cast.spec.places.spec(), cast.spec.to_json())
        origin = Origin(run=cast.spec.run, round=8)
        later = replace(cast.spec, run="later", places=cast.spec.places.of_run("later"), origin=origin)
        moments, steps = WorkerMoments(later, 1, cast.store), local_steps(later.config, LR)
        assert steps is not None
        first = moments.place(steps, 8)
        assert first.begins_with == cast.spec.places.moments(1, 8), (
            "what came of the round that is computed again is not"
        )
        assert first.leaves == later.places.moments(1, 9)
        cast.store.put(later.places.moments(1, 9), b"later")
        assert moments.place(steps, 9).begins_with == later.places.moments(1, 9)


class TestAsynchronous:
    @pytest.mark.parametrize("algorithm", ["local_sgd", "diloco"])
    def test_updates_of_others_are_used_as_they_come(self, algorithm: str) -> None:
        if algorithm == "diloco":
            config = diloco(mode="async", outer={"lr": 0.3, "momentum": 0.5}, epochs=4)
        else:
            outer = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "nesterov": False}
            config = configuration(mode="async", algorithm={**FEDAVG, "average": "updates"}, outer=outer, epochs=4)
        cast = Cast(config, SAMPLES, gradients=local)
        start = cast.peers[0].actions.validator.evaluate(
            cast.peers[0].actions.update.flat, cast.peers[0].actions.update.buffers
        )
        cast.play(order=lambda turn: [rank for rank, pace in enumerate((1, 1, 2)) if turn % pace == 0])
        cast.close()
        one_hash(cast)
        assert losses(cast)[0] < 0.7 * start.loss


class TestServices:
    def worker(self, store: MemoryStore) -> Callable[[dict[str, Any]], dict[str, Any]]:
        env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
        made = GradientWorker(env, store=store, clock=SystemClock())
        return lambda event: made(event).to_dict()

    def on_lambda(self, run: Any, store: MemoryStore, client: Any) -> StepFunctionsGradientService:
        return StepFunctionsGradientService(
            run.spec, RANK, store=store, endpoint_url="http://127.0.0.1:1", clock=FakeClock(), client=client
        )

    @pytest.mark.parametrize("mode", ["inline_map", "distributed_map"])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"precision": "bfloat16"},
            {"precision": "bfloat16", "batches_per_worker": 2},
            {"channels_last": True},
        ],
        ids=str,
    )
    def test_one_invocation_takes_all_batches_and_local_gives_the_same_bits(
        self, mode: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("contract.precision.has_bfloat16", lambda: True)
        store = MemoryStore()
        run = prepare(store, "mobilenet_v3_small", machine=MACHINE, state_machine=mode, **settings)
        client = MemoryStepFunctions(store, self.worker(store))
        steps = local_steps(configuration(), LR)
        service = self.on_lambda(run, store, client)
        far = service.compute(**run.arguments(), steps=steps)
        here = LocalGradientService(run.spec, RANK, store=store)
        near = here.compute(**run.arguments(), steps=steps)
        assert far.work is not None
        assert far.work.batches_per_worker == len(COUNTS)
        assert (far.invocations, far.executions, far.samples) == (1, 1, sum(COUNTS))
        assert far.gradient.tobytes() == near.gradient.tobytes()
        assert far.loss == near.loss
        assert all(far.buffers[name].tobytes() == near.buffers[name].tobytes() for name in run.buffers)
        assert not [key for _, key in store.objects if "/gradients/" in key or "/items/" in key]
        plain = service.compute(**run.arguments())
        assert plain.invocations == share_count(len(COUNTS), settings.get("batches_per_worker", 1))
        assert plain.gradient.tobytes() == here.compute(**run.arguments()).gradient.tobytes()
        assert np.linalg.norm(plain.gradient - far.gradient) > 0.1 * np.linalg.norm(far.gradient)

    def test_moments_are_kept_alike(self) -> None:
        """Rounds on Lambda, with moments from S3 to S3, to the bits of the same rounds in process."""
        config = configuration(algorithm={**FEDAVG, "keep_state": True})
        steps, found = local_steps(config, LR), []
        for where in ("lambda", "local"):
            store = MemoryStore()
            run = prepare(store, "cnn", machine=MACHINE)
            service: Any = LocalGradientService(run.spec, RANK, store=store)
            if where == "lambda":
                service = self.on_lambda(run, store, MemoryStepFunctions(store, self.worker(store)))
            rounds = [service.compute(**{**run.arguments(), "round": round}, steps=steps) for round in (3, 4, 5)]
            found.append([made.gradient.tobytes() for made in rounds])
            assert kept_rounds(store, RANK) == [4, 5, 6]
        assert found[0] == found[1]
        assert len(set(found[0])) == 3, "equal weights, batches and seed: the moments alone differ"

    @pytest.mark.parametrize("damage", [b"", b"not a safetensors file"])
    def test_damaged_moments_are_told(self, damage: bytes) -> None:
        store = MemoryStore()
        run = prepare(store, "cnn")
        steps = local_steps(configuration(algorithm={**FEDAVG, "keep_state": True}), LR)
        store.put(run.spec.places.moments(RANK, 3), damage)
        with pytest.raises(GradientFailed, match="holds no moments of an optimizer"):
            LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments(), steps=steps)

    def test_thousands_of_batches_fit_an_input(self) -> None:
        store = MemoryStore()
        run = prepare(store, "cnn", machine=MACHINE)
        client = MemoryStepFunctions(store, self.worker(store))
        first, *_ = run.batches
        many = [replace(first, index=index) for index in range(10_000)]
        with pytest.raises(GradientFailed, match="the manifest of rank 0 has only 3 batches"):
            self.on_lambda(run, store, client).compute(**run.arguments(many), steps=local_steps(configuration(), LR))
        assert 50_000 < len(json.dumps(client.inputs[0])) < 100_000

    def test_a_map_has_one_branch_per_peer(self) -> None:
        """However many batches a worker takes steps with; with gradients there are as many as batches."""
        steps = configuration(batches_per_round=0, compute={"service": "lambda"})
        plain = steps.model_copy(update={"algorithm": AlgorithmConfig()})
        assert batches_per_round(steps, (500, 3, 7)) == (1, 1, 1)
        assert batches_per_round(plain, (500, 3, 7)) == (500, 3, 7)
        assert resolve_mode(steps, (500, 3, 7)).compute.state_machine == "inline_map"
        assert resolve_mode(plain, (500, 3, 7)).compute.state_machine == "distributed_map"

    def test_a_batch_that_is_not_there_is_named(self) -> None:
        store = MemoryStore()
        run = prepare(store, "cnn", machine=MACHINE)
        store.delete([run.spec.places.batch(RANK, 2)])
        steps = local_steps(configuration(), LR)
        near = LocalGradientService(run.spec, RANK, store=store)
        far = self.on_lambda(run, store, MemoryStepFunctions(store, self.worker(store)))
        for service in (near, far):
            with pytest.raises(GradientFailed, match=r"no gradient for batch 2 of rank 0 in round 3: .*000002"):
                service.compute(**run.arguments(), steps=steps)

    def test_what_diverges_is_told_with_its_batches(self) -> None:
        store = MemoryStore()
        run = prepare(store, "cnn")
        steps = local_steps(configuration(optimizer={"name": "sgd", "lr": 1e30}), 1e30)
        with pytest.raises(GradientFailed, match=r"batch 0 and 2 more of rank 0 in round 3: .* a smaller"):
            LocalGradientService(run.spec, RANK, store=store).compute(**run.arguments(), steps=steps)
