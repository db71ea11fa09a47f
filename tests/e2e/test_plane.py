"""The benchmarks of the compute plane at small sizes: their checks of equal work, and the values that are no times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import exactness, plane
from infra.local.cloud import LocalCloud

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    folder: Path = tmp_path_factory.mktemp("cloud")
    with LocalCloud.start(folder, broker=False) as started:
        yield started


@pytest.mark.parametrize("per_worker", exactness.DIVISIONS)
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_gradients_by_workers_are_those_of_a_plain_loop(cloud: LocalCloud, name: str, per_worker: int) -> None:
    error = exactness.gradient_error(cloud, exactness.MODELS[name], (6, 3, 5, 2), per_worker)
    assert 0 < error < 1e-5


def test_a_map_of_many_batches_gives_the_gradient_that_they_have() -> None:
    overhead, step = plane.map_overhead(60)
    assert overhead.name == "map_overhead_per_batch"
    assert step.value > 0


def test_auto_makes_invocations_of_several_small_batches() -> None:
    small = {**plane.SQUEEZENET, "batches_per_round": 6, "batch_size": 8}
    figures = {f.name: f.value for f in plane.over_bare("small", small, plane.WARM + 2, must=1.5, aim=1.15)}
    assert figures["batches_per_worker_small"] > 1
    assert figures["round_over_bare_torch_small"] > 0
