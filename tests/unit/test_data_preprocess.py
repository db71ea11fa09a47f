"""Preprocessing: statistics of the training part only, the same map for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from peerless.data import preprocess
from peerless.data.preprocess import fit

EVERY = np.arange(40)


def images(seed: int = 0, dtype=np.uint8, size: int = 6) -> np.ndarray:
    x = np.random.default_rng(seed).integers(0, 200, (40, 3, size, size))
    x[:, 1] += 50  # channels differ
    return x.astype(dtype)


@pytest.fixture(params=[1 << 20, 1], ids=["one block", "a sample a block"])
def blocks(request, monkeypatch) -> None:
    monkeypatch.setattr(preprocess, "_BLOCK_BYTES", request.param)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.usefixtures("blocks")
def test_min_max_is_per_channel_and_exact_at_both_ends(dtype):
    x = images(dtype=dtype)
    y = fit(x, EVERY, ["min_max"]).apply(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.min(axis=(0, 2, 3)), 0)
    np.testing.assert_array_equal(y.max(axis=(0, 2, 3)), 1)


@pytest.mark.parametrize("steps", [["standardise"], ["min_max", "standardise"], ["standardise", "min_max"]])
@pytest.mark.usefixtures("blocks")
def test_steps_in_a_row_are_what_numpy_says_one_after_the_other(steps):
    x = images()
    expected = x.astype(np.float64)
    for step in steps:
        low, high = expected.min(axis=(0, 2, 3), keepdims=True), expected.max(axis=(0, 2, 3), keepdims=True)
        mean, deviation = expected.mean(axis=(0, 2, 3), keepdims=True), expected.std(axis=(0, 2, 3), keepdims=True)
        expected = (expected - low) / (high - low) if step == "min_max" else (expected - mean) / deviation
    # float32 keeps 7 digits, and the values stay below 10.
    np.testing.assert_allclose(fit(x, EVERY, steps).apply(x), expected, atol=2e-6)


@pytest.mark.usefixtures("blocks")
def test_statistics_come_from_the_training_part_alone():
    x = images(dtype=np.float32)
    training = EVERY[::2]
    changed = x.copy()
    changed[1::2] = 1e6  # not one of the training samples
    transform = fit(changed, training, ["min_max", "standardise"])
    np.testing.assert_array_equal(transform.apply(x), fit(x, training, ["min_max", "standardise"]).apply(x))
    y = transform.apply(x[training])
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, atol=1e-6)
    assert transform.apply(changed).max() > 1000, "validation and test are not clipped"


@pytest.mark.usefixtures("blocks")
def test_normalise_gives_every_sample_unit_length_and_leaves_zeros():
    x = images()
    x[3] = 0
    norm = np.linalg.norm(fit(x, EVERY, ["normalise"]).apply(x).reshape(40, -1), axis=1)
    np.testing.assert_allclose(np.delete(norm, 3), 1, atol=1e-6)
    assert norm[3] == 0


@pytest.mark.usefixtures("blocks")
def test_a_step_after_normalise_takes_its_statistics_from_normalised_samples():
    x = images()
    y = fit(x, EVERY, ["min_max", "normalise", "standardise"]).apply(x)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_features_have_their_own_statistics_and_constant_ones_become_zero():
    x = np.random.default_rng(0).normal(5, [1, 10, 100], (40, 3)).astype(np.float32)
    x[:, 1] = 0.1
    y = fit(x, EVERY, ["min_max", "standardise"]).apply(x)
    np.testing.assert_allclose(y[:, [0, 2]].std(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(y[:, 1], 0)


@pytest.mark.parametrize("size", [3, 6, 13])
@pytest.mark.usefixtures("blocks")
def test_resizing_comes_first_and_statistics_are_those_of_resized_images(size):
    x = images()
    y = fit(x, EVERY, ["standardise"], size).apply(x)
    assert y.shape == (40, 3, size, size)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_resizing_keeps_a_plane_and_its_direction():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None], (8, 8))[None, None]  # grows downwards
    small = fit(ramp, np.array([0]), [], 4).apply(ramp)[0, 0]
    # Inner pixels of a ramp, halved with an antialiasing filter, lie in the middle of the two that they stand for.
    np.testing.assert_allclose(small[1:3], np.array([[2.5] * 4, [4.5] * 4]), atol=1e-5)
    assert (np.diff(small, axis=0) > 0).all()
    np.testing.assert_allclose(np.diff(small, axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_samples_themselves_stay_as_they_are(order, dtype):
    x = np.array(images(dtype=dtype), order=order)
    before = x.copy()
    transform = fit(x, EVERY, ["min_max", "normalise"])
    y = transform.apply(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(y, transform.apply(np.ascontiguousarray(x)))
    assert y.flags.c_contiguous


@settings(deadline=None)  # a busy machine is no failure
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(2, 12), st.integers(1, 3)),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.integers(1, 200),
)
def test_block_by_block_statistics_are_those_of_the_whole(x, block_bytes):
    before, preprocess._BLOCK_BYTES = preprocess._BLOCK_BYTES, block_bytes
    try:
        low, high, mean, deviation = preprocess._statistics(x, np.arange(len(x)), preprocess.Transform(0, ()))
    finally:
        preprocess._BLOCK_BYTES = before
    whole = x.astype(np.float64)
    np.testing.assert_array_equal(low, whole.min(axis=0))
    np.testing.assert_array_equal(high, whole.max(axis=0))
    np.testing.assert_allclose(mean, whole.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(deviation, whole.std(axis=0), atol=1e-9)
