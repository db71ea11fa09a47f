"""Data of a peer that joins: through the run's own preprocessing, bit for bit, or refused in one sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contract.config import RunConfig
from contract.errors import CorruptObject, DataError
from contract.keys import Places
from peerless.data import Dataset, Preprocessing, prepare, prepare_newcomer, upload_partition
from tests.fakes.store import MemoryStore

CONFIG = RunConfig(
    peers=2,
    batch_size=8,
    model="mlp",
    data={"validation_samples": 10, "preprocess": ["min_max", "standardise", "normalise"]},
)


def images(samples: int, seed: int, shape: tuple[int, ...] = (3, 5, 5), classes: int = 4, **more: object) -> Dataset:
    draw = np.random.default_rng(seed)
    values: dict[str, object] = {
        "train_x": draw.integers(0, 256, (samples, *shape), dtype=np.uint8),
        "train_y": draw.integers(0, classes, samples),
        "test_x": None,
        "test_y": None,
        "classes": classes,
        "names": (),
        "provenance": "own data",
    }
    return Dataset(**{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("image_size", [0, 7])
def test_newcomers_go_through_the_runs_own_statistics(image_size: int) -> None:
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"image_size": image_size})})
    run = prepare(config, images(200, 1))
    made = Preprocessing.from_json(Preprocessing.of(run).to_json())
    assert made == Preprocessing.of(run)
    own = images(21, 2)
    new = prepare_newcomer(config, made, own)
    raw = np.concatenate([own.train_x[indices] for indices in new.partitions])
    found = np.concatenate([new.batch(0, index)[0].numpy() for index in range(new.batches[0])])
    np.testing.assert_array_equal(found, run.transform.apply(raw))
    assert (new.samples, new.batches) == ((21,), (3,))
    assert new.sample_shape == run.sample_shape
    labels = np.concatenate([new.batch(0, index)[1].numpy() for index in range(new.batches[0])])
    np.testing.assert_array_equal(labels, own.train_y[new.partitions[0]])


def test_features_are_as_good_as_images() -> None:
    config = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"preprocess": ("standardise",)})})
    run = prepare(config, images(200, 1, shape=(6,)))
    new = prepare_newcomer(config, Preprocessing.of(run), images(9, 2, shape=(6,)))
    assert new.model_spec(config) == run.model_spec(config)
    assert new.batches == (1,), "a single sample left over joins the batch before"


def test_so_many_samples_are_taken_as_are_wanted_the_same_each_time() -> None:
    made = Preprocessing.of(prepare(CONFIG, images(200, 1)))
    some, again = (prepare_newcomer(CONFIG, made, images(50, 2), train_samples=20) for _ in range(2))
    np.testing.assert_array_equal(some.partitions[0], again.partitions[0])
    assert len(set(some.partitions[0].tolist())) == 20


@pytest.mark.parametrize(
    ("own", "train_samples", "sentence"),
    [
        (images(9, 2, shape=(3, 5, 6)), 0, r"shape \(3, 5, 6\), and the run was started with \(3, 5, 5\)"),
        (images(9, 2, shape=(1, 5, 5)), 0, r"shape \(1, 5, 5\)"),
        (images(9, 2, shape=(75,)), 0, r"shape \(75,\)"),
        (images(90, 2, classes=9), 0, "has the label 8, and the run has 4 classes: 0 to 3"),
        (images(9, 2), 10, "data.train_samples is 10, but own data has only 9"),
    ],
)
def test_what_does_not_fit_is_refused(own: Dataset, train_samples: int, sentence: str) -> None:
    made = Preprocessing.of(prepare(CONFIG, images(200, 1)))
    with pytest.raises(DataError, match=sentence):
        prepare_newcomer(CONFIG, made, own, train_samples=train_samples)


def test_classes_are_matched_by_name_where_both_name_them() -> None:
    made = replace(Preprocessing.of(prepare(CONFIG, images(200, 1))), names=("cat", "dog", "eel", "fox"))
    own = images(40, 2, classes=2, names=("eel", "cat"))
    new = prepare_newcomer(CONFIG, made, own)
    np.testing.assert_array_equal(new.dataset.train_y, np.array([2, 0])[own.train_y])
    with pytest.raises(DataError, match="has the class 'gnu', which the run does not know"):
        prepare_newcomer(CONFIG, made, images(40, 2, classes=2, names=("cat", "gnu")))


def test_statistics_that_cannot_be_are_damage() -> None:
    blob = Preprocessing.of(prepare(CONFIG, images(200, 1))).to_json()
    made = Preprocessing.from_json(blob)
    zero = replace(made.steps[0], spread=(1.0, 0.0, 1.0)) if made.steps[0].spread else made.steps[0]
    with pytest.raises(ValueError, match="nothing can be divided"):
        replace(made, steps=(zero,))
    with pytest.raises(ValueError, match="channels"):
        replace(made, steps=(replace(made.steps[0], center=(1.0,)),))
    with pytest.raises(CorruptObject, match="no float32"):
        _ = replace(made, steps=(replace(made.steps[0], center=(0.1, 0.1, 0.1)),)).transform
    with pytest.raises(CorruptObject):
        Preprocessing.from_json(blob.replace(b'"version":1', b'"version":2'))


def test_a_partition_is_uploaded_under_its_rank_without_a_manifest() -> None:
    made = Preprocessing.of(prepare(CONFIG, images(200, 1)))
    new, store = prepare_newcomer(CONFIG, made, images(50, 2)), MemoryStore()
    places = Places(run="r", run_bucket="run", peer_buckets=("a", "b", "own"), region="local")
    manifest = upload_partition(new, store, places, 2)
    assert (manifest.rank, manifest.samples, len(manifest.batches)) == (2, 50, 7)
    assert store.list("own", "") == [places.batch(2, 0).key]
    assert store.list("a", "") == store.list("run", "") == []
