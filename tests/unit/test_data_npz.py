"""A user's own arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import load
from peerless.data.npz import read_npz

X = np.arange(6 * 3 * 4, dtype=np.float64).reshape(6, 3, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


class Trap:
    """Unpickling one of these shows."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_reads_training_and_test_arrays_of_one_file(tmp_path):
    save(tmp_path / "own.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=np.array([[3], [0]], np.uint8), more=X)
    dataset = load(DataConfig(source="npz", path="own.npz"), base=tmp_path)
    assert dataset.train_x.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_x, X[:, None].astype(np.float32))
    np.testing.assert_array_equal(dataset.test_y, [3, 0])
    assert dataset.classes == 4  # the test set counts too


def test_reads_x_and_y_with_the_test_set_in_a_file_of_its_own(tmp_path):
    save(tmp_path / "a.npz", x=X, y=Y)
    save(tmp_path / "b.npz", x=X[:3], y=Y[:3])
    assert load(DataConfig(source="npz", path="a.npz"), base=tmp_path).test_x is None
    dataset = load(DataConfig(source="npz", path="a.npz", test_path="b.npz"), base=tmp_path)
    assert len(dataset.test_x) == 3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 9), (6, 9)),
        ((6, 8, 7), (6, 1, 8, 7)),
        ((6, 3, 8, 7), (6, 3, 8, 7)),
        ((6, 8, 7, 3), (6, 3, 8, 7)),
        ((6, 1, 8, 3), (6, 1, 8, 3)),  # both readings possible: channels first
        ((6, 4, 8, 7), (6, 4, 8, 7)),
    ],
)
def test_brings_images_to_channels_first(tmp_path, shape, expected):
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    dataset = read_npz(save(tmp_path / "own.npz", x=x, y=Y))
    assert dataset.train_x.shape == expected
    assert dataset.train_x.dtype == np.uint8
    if shape == (6, 8, 7, 3):
        assert dataset.train_x[5, 2, 7, 6] == x[5, 7, 6, 2]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X}, "wanted are"),
        ({"a": X, "b": Y}, "no known name"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "wanted are x_test and y_test"),
        ({"x": X, "y": Y[:5]}, "6 samples, but 5 labels"),
        ({"x": X, "y": Y - 1}, "label -1"),
        ({"x": X, "y": np.where(Y == 1, np.nan, Y)}, "targets that are NaN or infinite"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 0.5}, "targets of type float32, the training set of"),
        ({"x_train": X, "y_train": Y + 0.5, "x_test": X, "y_test": np.eye(6)}, r"targets of shape \(6, 6\), and 1 num"),
        ({"x": X, "y": Y * 1j}, "whole numbers"),
        ({"x": X, "y": Y + 1_000_000}, "number the classes from 0"),
        ({"x": X[0, 0], "y": Y[:4]}, "wanted is"),
        ({"x": X[:0], "y": Y[:0]}, "is empty"),
        ({"x": np.where(X == 7, np.nan, X), "y": Y}, "NaN"),
        ({"x": X * 1e300, "y": Y}, "infinite"),  # does not fit float32
        ({"x": X.astype(str), "y": Y}, "must be numbers"),
        ({"x": X * 1j, "y": Y}, "must be numbers"),
    ],
)
def test_refuses_arrays_that_are_no_samples_with_labels(tmp_path, arrays, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_npz(save(tmp_path / "own.npz", **arrays))
    assert "own.npz" in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    save(tmp_path / "own.npz", x=np.array([Trap()] * 6, dtype=object), y=Y)
    with pytest.raises(DataError, match="not a readable npz"):
        read_npz(tmp_path / "own.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 nearly", b"\x93NUMPY\x01\x00"])
def test_refuses_what_is_no_npz_file(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own.npz"):
        read_npz(tmp_path / "own.npz")


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_refuses_a_flipped_byte(tmp_path, position):
    path = save(tmp_path / "own.npz", x=np.zeros((500, 10), np.uint8), y=np.zeros(500, np.int64))
    blob = bytearray(path.read_bytes())
    blob[int(len(blob) * position)] ^= 0xFF
    path.write_bytes(blob)
    with pytest.raises(DataError, match=r"own.npz"):
        read_npz(path)


def test_refuses_a_cut_file_a_bare_array_a_folder_and_nothing(tmp_path):
    path = save(tmp_path / "own.npz", x=X, y=Y)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"own.npz"):
        read_npz(path)
    np.save(tmp_path / "own.npy", X)
    with pytest.raises(DataError, match="one bare array"):
        read_npz(tmp_path / "own.npy")
    with pytest.raises(DataError, match="is a folder"):
        read_npz(tmp_path)
    with pytest.raises(DataError, match="is missing"):
        read_npz(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match=r"data.path is empty"):
        load(DataConfig(source="npz"))
