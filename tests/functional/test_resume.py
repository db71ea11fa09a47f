"""Putting a new internal run beside an old one: what is copied, what is refused, and what goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.config import RunConfig
from contract.errors import ConfigError
from contract.history import History
from contract.records import Commit, Contributor, MemberRef, Result
from contract.runspec import Origin, RunSpec
from contract.store import ObjectStore
from peerless import data
from peerless.launch import resume
from peerless.launch.parts import Parts
from peerless.launch.resources import places_for
from peerless.launch.run_folder import RunFolder
from peerless.launch.upload import provide
from peerless.launch.workload import Workload
from tests.fakes.clock import FakeClock
from tests.fakes.store import MemoryStore

ME = MemberRef(rank=0, incarnation=1)
CONFIG = RunConfig(
    peers=2, epochs=2, batch_size=8, batches_per_round=1, model="mlp", data={"source": "npz", "validation_samples": 8}
)


def dataset(seed: int = 0) -> data.Dataset:
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 255, (72, 1, 4, 4)).astype(np.uint8), np.arange(72) % 3
    return data.Dataset(
        train_x=x[:56], train_y=y[:56], test_x=x[56:], test_y=y[56:], classes=3, names=(), provenance="drawn"
    )


def workload(seed: int = 0, config: RunConfig = CONFIG) -> Workload:
    return Workload.of(config, lambda _: None, dataset(seed))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def spec(store: MemoryStore) -> RunSpec:
    """A run of 2 peers with 3 batches each: 6 rounds."""
    return provide(
        CONFIG, workload(), store, places_for("toy-1", 2, "us-east-1"), machines=("", ""), code_digest="",
        clock=FakeClock(),
    )  # fmt: skip


def complete(store: ObjectStore, spec: RunSpec, round: int, weights: str) -> None:
    """Commit, result and contribution of a round."""
    place = spec.places.contribution(round, 0, 1)
    store.put(place, b"frame")
    contributor = Contributor(rank=0, incarnation=1, key=place.key, digest="d" * 64, samples=8)
    commit = Commit(
        run=spec.run, round=round, base_weights={"0": "0" * 64}, contributors=(contributor,), members=(ME,), writer=ME,
        nonce="n",
    )  # fmt: skip
    store.create(spec.places.commit(round), commit.to_json())
    kept = spec.places.weights(weights)
    store.put(kept, b"weights")
    result = Result(
        run=spec.run, round=round, weights_sha256=weights, bucket=kept.bucket, key=kept.key, writer=ME, nonce="n"
    )
    store.create(spec.places.result(round), result.to_json())


def go_on(store: ObjectStore, spec: RunSpec, run: str, config: RunConfig = CONFIG) -> RunSpec:
    point = resume.resume_point(History(store, spec), config, spec)
    return resume.continued(store, spec, config, spec.places.of_run(run), point, ("", ""), FakeClock())


def test_a_new_run_finds_all_that_it_needs_under_its_own_name(store: MemoryStore, spec: RunSpec) -> None:
    for round in range(3):
        complete(store, spec, round, f"{round}" * 64)
    longer = CONFIG.model_copy(update={"epochs": 4})
    made = go_on(store, spec, "toy-1-r2", longer)
    assert made == RunSpec.from_json(store.get(made.places.spec()))
    assert (made.origin, made.first_round, made.rounds_limit) == (Origin(run="toy-1", round=3), 3, 12)
    assert made.initial_weights == "2" * 64
    for place in (made.places.weights("2" * 64), made.places.validation()):
        assert store.head(place) is not None
    for rank in range(2):
        manifest = json.loads(store.get(made.places.manifest(rank)))
        keys = {batch["key"] for batch in manifest["batches"]}
        assert keys == {spec.places.batch(rank, 0).key}, "the batches stay where they are"


def test_rounds_that_cannot_be_replayed_are_told(store: MemoryStore, spec: RunSpec) -> None:
    for round in range(3):
        complete(store, spec, round, f"{round}" * 64)
    point = resume.resume_point(History(store, spec), CONFIG, spec)
    assert resume.told(point) == (
        "going on with round 4; 3 rounds since the checkpoint are applied again from their contributions"
    )
    store.delete([spec.places.contribution(0, 0, 1)])
    point = resume.resume_point(History(store, spec), CONFIG, spec)
    assert resume.told(point) == (
        "going on with round 1; 3 completed rounds are computed again, because they cannot be replayed"
    )


def test_fewer_epochs_than_were_trained_are_refused(store: MemoryStore, spec: RunSpec) -> None:
    for round in range(4):
        complete(store, spec, round, f"{round}" * 64)
    with pytest.raises(ConfigError, match="run toy-1 has trained 4 rounds already, and epochs = 1 are 3"):
        resume.resume_point(History(store, spec), CONFIG.model_copy(update={"epochs": 1}), spec)


def test_a_run_whose_weights_are_gone_is_refused(store: MemoryStore, spec: RunSpec) -> None:
    store.delete([spec.places.weights(spec.initial_weights)])
    with pytest.raises(ConfigError, match="its weights are no longer stored"):
        resume.resume_point(History(store, spec), CONFIG, spec)


def test_the_last_part_that_got_anywhere_counts(store: MemoryStore, spec: RunSpec) -> None:
    parts = Parts(runs=("toy-1", "toy-1-r2"), run_bucket=spec.places.run_bucket)
    assert resume.last_spec(store, parts) == spec, "the second one was killed before it began"
    made = go_on(store, spec, "toy-1-r2")
    assert resume.last_spec(store, parts) == made
    with pytest.raises(ConfigError, match="run other cannot be resumed: its data are gone"):
        resume.last_spec(store, Parts(runs=("other",), run_bucket=spec.places.run_bucket))


def test_what_no_later_part_can_need_goes(store: MemoryStore, spec: RunSpec) -> None:
    """Three parts; the checkpoint that the third one starts from lies in the second."""
    complete(store, spec, 0, "0" * 64)
    second = go_on(store, spec, "toy-1-r2")
    complete(store, second, 1, "1" * 64)
    gradient = second.places.gradient(1, 1, 1, 0)
    store.put(gradient, b"of a round that was cut off")
    history = History(store, second)
    point = history.resume_point()
    resume.clear(store, history, point)
    assert store.head(gradient) is None
    assert store.head(spec.places.contribution(0, 0, 1)) is not None, "it is replayed: there is no checkpoint"
    resume.clear(store, history, replace(point, checkpoint_round=2))
    assert store.head(spec.places.contribution(0, 0, 1)) is None
    assert store.head(second.places.contribution(1, 0, 1)) is not None
    assert store.head(spec.places.batch(0, 0)) is not None
    assert store.head(spec.places.commit(0)) is not None


def test_other_data_and_other_code_are_refused(spec: RunSpec) -> None:
    resume.same(spec, CONFIG, workload(), "")
    with pytest.raises(ConfigError, match="npz holds other data than it was started with"):
        resume.same(spec, CONFIG, workload(seed=1), "")
    with pytest.raises(ConfigError, match="the code in its folder is not what it was started with"):
        resume.same(spec, CONFIG, workload(), "ab" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "toy-1")
    made.config.write_text(CONFIG.to_toml())
    made.events.touch()
    return made


@pytest.mark.parametrize("given", ["epochs=7", "membership.restarts=0", "checkpoint.every_rounds=3"])
def test_what_may_change_changes(folder: RunFolder, given: str) -> None:
    assert resume.changed(folder, []) == CONFIG
    assert resume.changed(folder, [given]) != CONFIG


@pytest.mark.parametrize("given", ["seed=7", "optimizer.lr=0.5", "peers=3", "data.path=elsewhere", "mode=async"])
def test_nothing_else_does(folder: RunFolder, given: str) -> None:
    with pytest.raises(ConfigError, match=rf"--set {given.split('=')[0].split('.')[0]}: a run that is resumed keeps"):
        resume.changed(folder, [given])


def test_what_a_run_took_so_far(folder: RunFolder) -> None:
    events: list[dict[str, Any]] = [{"run": "a", "t": 10.0}, {"run": "a", "t": 14.5}, {"run": "a-r2", "t": 90.0}]
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in [*events, {"run": "a-r2", "t": 91.0}]))
    assert resume.seconds_before(folder) == 5.5
    folder.write_summary({"seconds_total": 12.0})
    assert resume.seconds_before(folder) == 12.0
