"""The benchmarks of training algorithms, at a small size: equal to whole runs, resumable, counted right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import algorithms, fedkeeper
from benchmarks.in_process import InProcess, fewer
from contract.batches import decode_batch
from contract.config import RunConfig
from contract.tensors import decode_weights
from peer_agent.compute import LocalGradientService
from peerless.data import Dataset
from tests.fakes.peers import Cast

SAMPLES = (40, 33, 17)


def digits(train: int = 400, size: int = 4) -> Dataset:
    """Images whose brightest pixel tells the class."""
    draw = np.random.default_rng(3)
    y = draw.integers(0, 4, train + 100)
    x = draw.integers(0, 60, (train + 100, 1, size, size)).astype(np.uint8)
    x[np.arange(len(y)), 0, 0, y] += 150
    return Dataset(
        train_x=x[:train], train_y=y[:train], test_x=x[train:], test_y=y[train:], classes=4, names=(),
        provenance="drawn",
    )  # fmt: skip


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("topic", ["gradient_averaging", "local_sgd", "diloco"])
def test_a_run_in_process_ends_with_the_weights_of_peers_that_exchange_them(topic: str, norm: bool) -> None:
    """Bit for bit: what the benchmark leaves out carries a round and changes nothing of it."""
    optimizer = {"name": "adamw" if topic == "diloco" else "adam", "lr": 0.01}
    config = RunConfig.model_validate(
        {
            "peers": 3,
            "epochs": 3,
            "batch_size": 8,
            "batches_per_round": 2,
            "algorithm": {"name": topic},
            "optimizer": optimizer,
            "scheduler": {"name": "cosine", "warmup_rounds": 2},
            "exchange": {"codec": "qsgd4", "poll_seconds": 1.0, "start_timeout_seconds": 20.0},
            "compute": {"service": "local"},
        }
    )
    cast = Cast(
        config,
        SAMPLES,
        norm=norm,
        gradients=lambda spec, store, rank: LocalGradientService(spec, rank, store=store),
    )
    cast.play()
    spec, store = cast.spec, cast.store

    def batch(rank: int, index: int) -> Any:
        return decode_batch(store.get(spec.places.batch(rank, index)))

    peers = InProcess(config, spec.model, spec.samples, spec.batches, batch)
    peers.update.adopt(
        *decode_weights(peers.layout, store.get(spec.places.weights(spec.initial_weights)), spec.initial_weights)
    )
    for round in range(spec.rounds_limit):
        peers.round(round)
    assert {report.weights_sha256 for report in cast.reports()} == {peers.update.weights_sha256}
    cast.close()


def small(form: str, **changes: Any) -> RunConfig:
    values = algorithms.configuration(form, 0.01, 1).model_dump(mode="json")
    sizes = {"batch_size": 8, "batches_per_round": 4} if form != "gradient_averaging" else {
        "batch_size": 16, "batches_per_round": 2
    }  # fmt: skip
    values |= {"model": "mlp", "model_options": {"hidden": 8}, **sizes}
    values["data"] |= {"validation_samples": 8, "train_samples": 4 * 2 * 32}
    return RunConfig.model_validate({**values, **changes})


def test_fewer_rounds_with_steps_of_their_own_at_equal_samples(tmp_path: Path) -> None:
    counts = {form: algorithms.taken(tmp_path, digits(), small(form), 0.9, 60) for form in algorithms.FORMS}
    assert counts["local_sgd"] < counts["gradient_averaging"] < 60
    assert counts["diloco"] < counts["gradient_averaging"]


def test_the_forms_differ_in_nothing_that_should_be_equal() -> None:
    made = [algorithms.configuration(form, 0.003, 2) for form in algorithms.FORMS]
    assert {c.peers * c.batch_size * c.batches_per_round for c in made} == {4 * algorithms.SAMPLES}
    assert {(c.seed, c.model, c.data, c.exchange, c.optimizer.lr) for c in made} == {
        (2, "cnn", made[0].data, made[0].exchange, 0.003)
    }


def test_what_has_been_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, 20)
    monkeypatch.setattr(algorithms, "train", lambda *_: pytest.fail("it is known"))
    assert algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, 20) == first
    assert algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, 40) == first > 1, "it has arrived"
    assert algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, first - 1) == first - 1


def test_a_run_that_was_cut_short_is_trained_again_where_that_decides(tmp_path: Path) -> None:
    first = algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, 1)
    assert first == 1
    assert algorithms.taken(tmp_path, digits(), small("local_sgd"), 0.9, 20) > 1


def test_rounds_that_take_unequal_samples_end_the_benchmark() -> None:
    with pytest.raises(algorithms.UnequalWorkError, match="round 1 took"):
        algorithms.train(small("local_sgd", batches_per_round=7), digits(), 1.1, 5)


def test_the_best_rate_has_the_fewest_rounds_in_the_mean() -> None:
    counts = {1e-3: [7, 7, 8], 2e-3: [5, 5, 6], 5e-3: [6, 4, 6], 1e-2: [15, 1, 1]}
    asked: list[tuple[float, int, int]] = []

    def rounds(rate: float, seed: int, limit: int) -> int:
        asked.append((rate, seed, limit))
        return min(counts[rate][seed - 1], limit)

    assert algorithms.best(rounds) == (2e-3, 16 / 3)
    assert asked[3:] == [
        *((2e-3, 1, 22), (2e-3, 2, 17), (2e-3, 3, 12)),
        *((5e-3, 1, 16), (5e-3, 2, 10), (5e-3, 3, 6)),  # as many as the lower rate: no better
        *((1e-2, 1, 16), (1e-2, 2, 1)),
    ]
    figure = fewer("local_sgd_fewer_rounds", 4.0, 50.0)
    assert (figure.value, figure.must, figure.aim) == (12.5, 5.0, 10.0)


class TestFedKeeper:
    CONFIG = fedkeeper.configuration(clients=5).model_copy(
        update={"model": "mlp", "model_options": {"hidden": 8}, "exchange": fedkeeper.configuration().exchange}
    )

    def test_it_goes_on_to_the_same_bits(self, tmp_path: Path) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        whole.mkdir()
        stopped.mkdir()
        expected = fedkeeper.train(self.CONFIG, digits(), whole, 1.1, 4)
        for rounds in (1, 3, 4):
            found = fedkeeper.train(self.CONFIG, digits(), stopped, 1.1, rounds)
        assert found == expected
        (one,), (other,) = (list(folder.glob("*.npz")) for folder in (whole, stopped))
        assert np.load(one)["flat"].tobytes() == np.load(other)["flat"].tobytes()

    def test_it_stops_at_the_target(self, tmp_path: Path) -> None:
        found = fedkeeper.train(self.CONFIG, digits(), tmp_path, 0.9, 30)
        assert found[-1] >= 0.9
        assert all(share < 0.9 for share in found[:-1])

    def test_settings_are_the_papers(self) -> None:
        config = fedkeeper.configuration()
        assert (config.peers, config.batch_size, config.algorithm.local_epochs) == (100, 10, 5)
        assert (config.optimizer.name, config.optimizer.lr, config.batches_per_round) == ("adam", 1e-3, 0)
        assert (config.algorithm.name, config.algorithm.average) == ("local_sgd", "weights")
