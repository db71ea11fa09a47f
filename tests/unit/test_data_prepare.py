"""`prepare`: who gets what, and what a batch holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.config import RunConfig
from contract.errors import DataError
from peerless.data import Dataset, prepare

TRAIN, TEST = 240, 30


def numbered(test: bool = True, shape: tuple[int, ...] = (1, 4, 4), offset: int = 0) -> Dataset:
    """Every sample is filled with its own number, test samples with 1,000 and more; labels are number modulo 6."""
    train = np.arange(TRAIN) + offset
    other = np.arange(TEST) + 1_000

    def fill(numbers: np.ndarray) -> np.ndarray:
        return np.broadcast_to(numbers.reshape(-1, *[1] * len(shape)), (len(numbers), *shape)).astype(np.float32)

    return Dataset(
        train_x=fill(train), train_y=train % 6,
        test_x=fill(other) if test else None, test_y=other % 6 if test else None,
        classes=6, names=(), provenance="numbers",
    )  # fmt: skip


def config(seed: int = 1, peers: int = 4, batch_size: int = 16, model: str = "cnn", **data) -> RunConfig:
    settings = {"preprocess": [], "validation_samples": 40, **data}
    return RunConfig(seed=seed, peers=peers, batch_size=batch_size, model=model, data=settings)


def numbers(batches) -> list[int]:
    """The numbers in some batches; checks that each sample carries its own label."""
    found: list[int] = []
    for x, y in batches:
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.is_contiguous()
        values = x.reshape(len(x), -1)[:, 0].long()
        np.testing.assert_array_equal(y.numpy(), values.numpy() % 6)
        found += values.tolist()
    return found


def everything(prepared) -> list[list[int]]:
    peers = [
        numbers(prepared.batch(rank, index) for index in range(prepared.batches[rank]))
        for rank in range(len(prepared.batches))
    ]
    return [*peers, numbers([prepared.validation_set()]), numbers(prepared.test_batches(7))]


@pytest.mark.parametrize("partition", ["iid", "label_shards"])
@pytest.mark.parametrize("test", [True, False])
def test_partitions_validation_and_test_share_no_sample_and_lose_none(partition, test):
    prepared = prepare(config(partition=partition, sizes=[4, 2, 1, 1]), numbered(test))
    parts = everything(prepared)
    joined = sorted(number for part in parts for number in part)
    assert joined == [*range(TRAIN), *(range(1_000, 1_000 + TEST) if test else [])]
    assert len(parts[4]) == 40
    assert len(parts[5]) == (TEST if test else 24)  # test_fraction 0.1
    assert prepared.samples == tuple(len(part) for part in parts[:4])
    assert prepared.samples == ((100, 50, 25, 25) if test else (88, 44, 22, 22))


@pytest.mark.parametrize(("samples", "kept"), [(200, 20), (9, 1), (70_000, 5_000)])
def test_validation_keeps_a_tenth_apart_unless_told_otherwise(samples, kept):
    x = np.zeros((samples, 1), np.float32)
    y = np.zeros(samples, np.int64)
    dataset = Dataset(
        train_x=x, train_y=y, test_x=x[:1], test_y=y[:1], classes=1, names=(), provenance="zeros"
    )  # fmt: skip
    prepared = prepare(RunConfig(peers=2, data={"preprocess": []}), dataset)
    assert (len(prepared.validation), sum(prepared.samples)) == (kept, samples - kept)


def test_the_remainder_is_the_last_batch():
    prepared = prepare(config(peers=3, batch_size=16), numbered())
    assert prepared.samples == (67, 67, 66)
    assert prepared.batches == (5, 5, 5)
    assert [len(prepared.batch(2, index)[1]) for index in range(5)] == [16, 16, 16, 16, 2]
    with pytest.raises(IndexError):
        prepared.batch(2, 5)
    with pytest.raises(IndexError):
        prepared.batch(2, -1)


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [(33, 16, [16, 17]), (17, 16, [17]), (5, 2, [2, 3]), (32, 16, [16, 16]), (34, 16, [16, 16, 2]), (1, 16, [1]),
     (3, 1, [1, 1, 1])],
)  # fmt: skip
def test_a_single_sample_left_over_joins_the_batch_before(samples, batch_size, sizes):
    prepared = prepare(config(peers=1, batch_size=batch_size, train_samples=samples), numbered())
    assert prepared.batches == (len(sizes),)
    assert [len(prepared.batch(0, index)[1]) for index in range(len(sizes))] == sizes
    assert sorted(everything(prepared)[0]) == sorted(prepared.partitions[0].tolist()), "no sample is lost"


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    one, same, other = (prepare(config(seed=seed), numbered()) for seed in (1, 1, 2))
    assert everything(one) == everything(same)
    for mine, others in zip(everything(one)[:5], everything(other)[:5], strict=True):
        assert mine != others


def test_statistics_are_those_of_the_training_part():
    prepared = prepare(config(preprocess=["standardise"]), numbered())
    training = np.concatenate(prepared.partitions).astype(np.float64)
    x, _ = prepared.validation_set()
    expected = (prepared.validation - training.mean()) / training.std()
    np.testing.assert_allclose(x[:, 0, 0, 0].numpy(), expected, atol=1e-5)
    x, _ = next(prepared.test_batches(1_000))
    assert float(x.min()) > 5, "the test set is mapped as the training set is, not by itself"


def test_only_so_many_training_samples_and_their_statistics():
    prepared = prepare(config(train_samples=50, preprocess=["min_max"]), numbered())
    assert sum(prepared.samples) == 50
    chosen = np.concatenate(prepared.partitions)
    values = torch.cat([prepared.batch(rank, index)[0] for rank in range(4) for index in range(prepared.batches[rank])])
    assert (float(values.min()), float(values.max())) == (0.0, 1.0)
    assert chosen.max() < TRAIN
    np.testing.assert_array_equal(prepared.validation, prepare(config(), numbered()).validation)


def test_the_seed_draws_the_training_samples():
    def positions(seed: int) -> list[int]:
        """Of the chosen ones among those that validation left."""
        prepared = prepare(config(seed=seed, train_samples=50), numbered())
        left = np.setdiff1d(np.arange(TRAIN), prepared.validation)
        return np.searchsorted(left, np.sort(np.concatenate(prepared.partitions))).tolist()

    assert positions(1) == positions(1) != positions(2)


def test_shapes_are_told_for_images_resized_ones_and_features():
    plain = prepare(config(), numbered(shape=(3, 4, 4)))
    assert (plain.channels, plain.image_size, plain.sample_shape) == (3, 4, (3, 4, 4))
    larger = prepare(config(image_size=9), numbered(shape=(3, 4, 6)))
    assert (larger.channels, larger.image_size, larger.sample_shape) == (3, 9, (3, 9, 9))
    assert larger.batch(0, 0)[0].shape == (16, 3, 9, 9)
    features = prepare(config(), numbered(shape=(5,)))
    assert (features.channels, features.image_size, features.sample_shape) == (5, 1, (5,))
    assert features.batch(0, 0)[0].shape == (16, 5)


def test_the_model_is_told_what_the_data_are():
    settings = RunConfig(model="mlp", model_options={"hidden": 7}, data={"validation_samples": 40})
    spec = prepare(settings, numbered(shape=(3, 4, 4))).model_spec(settings)
    assert (spec.name, spec.classes, spec.channels, spec.image_size, spec.options) == ("mlp", 6, 3, 4, {"hidden": 7})


@pytest.mark.parametrize(
    ("settings", "shape", "sentence"),
    [
        ({"validation_samples": 240}, (1, 4, 4), "validation_samples is 240, but numbers has only 240"),
        ({"validation_samples": 237}, (1, 4, 4), "4 peers cannot share 3 training samples"),
        ({"train_samples": 201}, (1, 4, 4), "train_samples is 201, but only 200"),
        ({"train_samples": 3}, (1, 4, 4), "4 peers cannot share 3"),
        ({"image_size": 9}, (5,), "feature vectors"),
        ({}, (1, 4, 6), "4 x 6 pixels.*set data.image_size, for example to 6"),
    ],
)
def test_a_users_mistake_is_one_sentence(settings, shape, sentence):
    with pytest.raises(DataError, match=sentence):
        prepare(config(**settings), numbered(shape=shape))


def test_a_model_of_ones_own_may_take_images_that_are_not_square():
    assert prepare(config(model="mine:net"), numbered(shape=(1, 4, 6))).sample_shape == (1, 4, 6)


def test_a_validation_set_too_large_for_one_object_is_refused_before_any_work():
    with pytest.raises(DataError, match=r"more than one S3 object"):
        prepare(config(image_size=1024, validation_samples=200, preprocess=[]), numbered(shape=(8, 1, 1)))
