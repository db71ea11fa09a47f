"""Case 4: two peers of ten lie about their gradients, every round.

The task is a linear classifier of three classes, some 96% of which can be told apart; accuracy is that on 2,000 samples
of the run's last weights, from the closing commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from contract.batches import encode_batch
from contract.config import RunConfig
from contract.keys import Places
from contract.runspec import RunSpec, ValidationSet
from contract.store import ObjectStore
from tests.chaos.conftest import Prepare
from tests.chaos.faults import plan
from tests.fakes.small_run import prepare_run, samples

PEERS, LIARS = 10, (3, 8)
ROUNDS = 12
ONE_POINT = 0.01


def prepare_task(store: ObjectStore, config: RunConfig, counts: Sequence[int], places: Places) -> RunSpec:
    """The tests' run with a validation set that can tell one point from another."""
    blob = encode_batch(*samples(2_000, seed=99))
    store.put(places.validation(), blob)
    spec = prepare_run(store, config, counts, places)
    spec = replace(spec, validation=ValidationSet(sha256=hashlib.sha256(blob).hexdigest(), samples=2_000))
    store.put(places.validation(), blob)
    store.put(places.spec(), spec.to_json())
    return spec


def accuracy(prepare: Prepare, attack: str = "", aggregator: str = "mean") -> float:
    """Of the weights that all ten agree on."""
    aggregation: dict[str, Any] = {"name": aggregator, "byzantine": len(LIARS)}
    fleet = prepare(
        samples=(96,) * PEERS,
        prepare_run=prepare_task,
        peers=PEERS,
        epochs=ROUNDS // 2,
        batch_size=48,
        batches_per_round=1,
        optimizer={"lr": 0.5, "momentum": 0.0},
        aggregation=aggregation,
        exchange={"poll_seconds": 5.0},
        membership={"heartbeat_seconds": 1.0, "heartbeat_timeout_seconds": 30.0},
    )
    fleet.start(plan(attacks=dict.fromkeys(LIARS, attack)) if attack else None)
    reports = fleet.end()
    assert len({report.weights_sha256 for report in reports}) == 1
    assert {report.rounds for report in reports} == {ROUNDS}
    found = fleet.commits()[-1].validation_accuracy
    assert found is not None
    return found


@pytest.fixture(scope="module")
def clean(prepare: Prepare) -> float:
    """What ten honest peers reach with the mean."""
    found = accuracy(prepare)
    assert found > 0.95
    return found


@pytest.mark.slow  # tests/functional/test_robust_training.py has all of it without processes
def test_the_mean_breaks(prepare: Prepare, clean: float) -> None:
    """Two gradients times -10 outweigh eight: the mean points the other way."""
    assert accuracy(prepare, "scaled") < 1 / 3 < clean


@pytest.mark.slow  # likewise
@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean", "krum"])
@pytest.mark.parametrize("attack", ["scaled", "flipped", "random"])
def test_robust_aggregation_stays_within_one_point(
    prepare: Prepare, clean: float, attack: str, aggregator: str
) -> None:
    assert abs(accuracy(prepare, attack, aggregator) - clean) <= ONE_POINT
