"""Runs for chaos: tiny models, three or four peers, each a process, on the session's RabbitMQ and S3."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.config import RunConfig
from contract.history import History
from contract.keys import Places
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from peerless.launch.resume import continued
from tests.chaos.fleet import Fleet, Nursery
from tests.fakes.small_run import prepare_run

#: Per rank; unequal, so that a mean that forgets to weigh shows.
SAMPLES = (24, 20, 16, 12)
Prepare = Callable[..., Fleet]
Undisturbed = Callable[..., Fleet]
Resume = Callable[[Fleet], Fleet]


def configuration(**changes: Any) -> RunConfig:
    """Four peers, twelve rounds of two small batches each, quick to notice and to look."""
    sections: dict[str, dict[str, Any]] = {
        "exchange": {"codec": "qsgd4", "poll_seconds": 1.0, "start_timeout_seconds": 60.0},
        "membership": {"heartbeat_seconds": 0.25, "heartbeat_timeout_seconds": 2.0},
        "early_stopping": {"patience": 0},
        "compute": {"service": "local"},
    }
    values: dict[str, Any] = {"peers": len(SAMPLES), "epochs": 4, "batch_size": 4, "batches_per_round": 2}
    for name, change in changes.items():
        if isinstance(change, dict):
            sections[name] = {**sections.get(name, {}), **change}
        else:
            values[name] = change
    return RunConfig.model_validate({**values, **sections})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several waits with a limit of their own fit into a test, so that theirs is the message that one reads."""
    for item in items:
        if item.nodeid.startswith("tests/chaos/"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where peers come from."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="session")
def chaos_bucket(local_cloud: LocalCloud) -> str:
    """A bucket for the runs of a session; it goes with the local AWS."""
    name = f"chaos-{uuid.uuid4().hex}"
    local_cloud.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def prepare(
    local_cloud: LocalCloud, nursery: Nursery, chaos_bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prepare]:
    """Makes fleets."""
    store = S3Store(region=local_cloud.region, endpoint_url=local_cloud.endpoint_url, session=local_cloud.session())
    fleets: list[Fleet] = []

    def make(
        *,
        samples: Sequence[int] = SAMPLES,
        prepare_run: Callable[..., Any] = prepare_run,
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> Fleet:
        config = configuration(**changes)
        run = f"{chaos_bucket[:12]}-{len(fleets)}"  # the broker is everybody's
        places = Places(
            run=run, run_bucket=chaos_bucket, peer_buckets=(chaos_bucket,) * config.peers, region=local_cloud.region
        )
        spec = prepare_run(store, config, samples, places)
        whole = {**os.environ, **local_cloud.environment(os.environ), "OMP_NUM_THREADS": "1", **(environment or {})}
        fleets.append(Fleet(spec, store, tmp_path_factory.mktemp(run), whole, nursery))
        return fleets[-1]

    yield make
    store.close()


@pytest.fixture(autouse=True)
def nobody_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test's peers do not outlive it, also when it fails."""
    yield
    if "prepare" in request.fixturenames:
        request.getfixturevalue("nursery").clear()


@pytest.fixture(scope="session")
def resume(prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Resume:
    """Makes the run that goes on from one whose processes have all ended, as `peerless train --resume` does."""

    def make(old: Fleet) -> Fleet:
        spec, store = old.spec, old.store
        run = f"{spec.run}-r"
        point = History(store, spec).resume_point()
        new = continued(store, spec, spec.config, spec.places.of_run(run), point, spec.state_machines, SystemClock())
        return Fleet(new, store, tmp_path_factory.mktemp(run), old.environment, old.nursery)

    return make


@pytest.fixture(scope="session")
def undisturbed_run(prepare: Prepare) -> Undisturbed:
    """Gives the run of a configuration when nothing goes wrong, over; played once a session."""
    played: dict[str, Fleet] = {}

    def play(**changes: Any) -> Fleet:
        name = repr(sorted(changes.items()))
        if name not in played:
            fleet = prepare(**changes)
            fleet.start()
            reports = fleet.end()
            assert len({report.weights_sha256 for report in reports}) == 1
            assert {report.rounds for report in reports} == {fleet.spec.rounds_limit}
            assert len(fleet.commits()) == fleet.spec.rounds_limit + 1  # and the closing one
            assert not fleet.events("weights_adopted")
            played[name] = fleet
        return played[name]

    return play


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run: Undisturbed) -> str:
    """Hash of the weights with which the standard run ends when nothing goes wrong."""
    return undisturbed_run().report(0).weights_sha256
