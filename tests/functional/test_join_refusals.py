"""What `peerless join` refuses, in one sentence and before anything is made."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.config import RunConfig
from contract.errors import ConfigError
from contract.records import MemberRef, Stop
from infra.local.detached import Endpoints, State
from peerless import data
from peerless.launch import join
from peerless.launch.join import Running, data_of
from peerless.launch.parts import Parts
from peerless.launch.run_folder import RunFolder
from tests.fakes.clock import FakeClock
from tests.fakes.store import MemoryStore
from tests.unit.test_runspec import spec

STATE = State(
    endpoints=Endpoints(
        aws_url="http://localhost:1",
        broker_url="",
        broker_address="",
        broker_origin="",
        lambda_url="http://localhost:2",
    ),
    pids={},
)
MADE = data.Preprocessing(sample_shape=(1, 4, 4), classes=3, names=(), image_size=0, steps=())


class Place:
    """A run's folder, and its S3 in memory, as a run that trains has them."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.folder, self.store = RunFolder.create(path / "run"), MemoryStore()
        self.folder.config.touch()
        self.folder.events.touch()
        self.spec = spec(**settings)
        self.parts = Parts(runs=(self.spec.run,), run_bucket=self.spec.places.run_bucket)
        self.parts.write(self.folder)
        STATE.write(self.folder.path, self.folder.servers.name)
        self.store.put(self.spec.places.spec(), self.spec.to_json())
        self.store.put(self.spec.places.preprocessing(), MADE.to_json())

    def refusal(self) -> str:
        with pytest.raises(ConfigError) as refused:
            Running.find("run", self.folder.path.parent, FakeClock())
        return str(refused.value)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the one place of a test; the run goes on."""
    held = []

    def made(**settings: Any) -> Place:
        place = Place(tmp_path, **settings)
        monkeypatch.setattr(join, "open_store", lambda *_: place.store)
        held.append(place.folder.events.open("ab"))
        fcntl.flock(held[0], fcntl.LOCK_EX)
        return place

    yield made
    for file in held:
        file.close()


def test_a_run_that_goes_on_is_found(make: Any) -> None:
    place = make()
    found = Running.find("run", place.folder.path.parent, FakeClock())
    assert (found.spec, found.made, found.code) == (place.spec, MADE, [])


def test_runs_that_are_not_there_or_not_going_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peerless join absent: there is no run of that name .* on AWS"):
        Running.find("absent", tmp_path, FakeClock())
    assert "is not going on, and only a run that is can be joined" in Place(tmp_path).refusal()


def test_a_run_that_does_not_train_yet(make: Any) -> None:
    place = make()
    place.folder.servers.unlink()
    assert "is not training yet, or no longer" in place.refusal()


def test_asynchronous_runs_runs_without_checkpoints_and_deployed_ones(make: Any) -> None:
    place = make()
    for config, sentence in (
        (RunConfig(peers=2, mode="async"), "is asynchronous; only synchronous runs can be joined"),
        (RunConfig(peers=2, checkpoint={"every_rounds": 0}), "keeps no checkpoints"),
    ):
        place.store.put(place.spec.places.spec(), replace(place.spec, config=config).to_json())
        assert sentence in place.refusal()
    replace(place.parts, deployed=True).write(place.folder)
    assert "uses what was deployed" in place.refusal()


def test_a_run_that_is_about_to_end_and_one_of_an_older_version(make: Any) -> None:
    place = make()
    place.store.delete([place.spec.places.preprocessing()])
    assert "was started by an older version" in place.refusal()
    stop = Stop(
        run=place.spec.run, reason="interrupted", round=1, weights_sha256="", writer=MemberRef(rank=0, incarnation=1),
        nonce="n",
    )  # fmt: skip
    place.store.put(place.spec.places.stop(), stop.to_json())
    assert "is about to end" in place.refusal()


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("mnist", "mnist"),
        ("own.npz", "npz"),
        ("folder", "image-folder"),
        ("package.module:data", "package.module:data"),
    ],
)
def test_data_are_recognised(given: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.npz").touch()
    (tmp_path / "folder").mkdir()
    found = data_of(given, ["data.train_samples=20"])
    assert (found.source, found.train_samples) == (source, 20)
    assert found.path == (str(tmp_path / given) if source in ("npz", "image-folder") else "")


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1", "data.preprocess=[]", "data.image_size=4", "data", "datapath=x"]
)
def test_nothing_but_the_data_is_the_newcomers(override: str) -> None:
    with pytest.raises(ConfigError, match=r"only data\.source, data\.path, data\.train_samples may be set"):
        data_of("mnist", [override])


def test_data_that_are_nowhere() -> None:
    with pytest.raises(ConfigError, match=r"--data absent: there is no such file or folder, and it is none of mnist"):
        data_of("absent")
