"""MNIST's format: what a small, a damaged and a foreign set of files come to."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import load
from peerless.data.idx import DIGITS, FILES, read_idx, read_mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (30, 5, 4), dtype=np.uint8),
        TRAIN_LABELS: rng.integers(0, 10, 30, dtype=np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (7, 5, 4), dtype=np.uint8),
        TEST_LABELS: rng.integers(0, 10, 7, dtype=np.uint8),
    }


@pytest.fixture
def folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def read(folder: Path, digests: dict[str, str] | None = None):
    return read_mnist(folder, source="mnist", digests=digests or {}, names=DIGITS)


def check(dataset, arrays) -> None:
    np.testing.assert_array_equal(dataset.train_x[:, 0], arrays[TRAIN_IMAGES])
    np.testing.assert_array_equal(dataset.train_y, arrays[TRAIN_LABELS])
    np.testing.assert_array_equal(dataset.test_x[:, 0], arrays[TEST_IMAGES])
    np.testing.assert_array_equal(dataset.test_y, arrays[TEST_LABELS])
    assert dataset.train_x.shape == (30, 1, 5, 4)
    assert dataset.classes == 10


def test_reads_raw_files_through_the_configuration(folder, arrays):
    check(load(DataConfig(source="mnist", path=folder.name), base=folder.parent), arrays)


@pytest.mark.parametrize("layout", ["{}.gz", "MNIST/raw/{}", "raw/{}.gz"])
def test_reads_compressed_files_and_torchvisions_folders(tmp_path, arrays, layout):
    for name, array in arrays.items():
        path = tmp_path / layout.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))
    check(read(tmp_path), arrays)


@pytest.mark.parametrize("missing", FILES)
def test_names_the_missing_file_and_the_remedy(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"{missing} is missing.*data.path"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda blob: blob[:-1], "99 bytes"),
        (lambda blob: blob + b"x", "more than"),
        (lambda blob: b"\x89PNG" + blob[4:], "not an idx file"),
        (lambda blob: b"\0\0\x0d\x03" + blob[4:], "not an idx file"),  # floats
        (lambda blob: b"\0\0\x08\x00" + blob[4:], "not an idx file"),  # no dimensions
        (lambda blob: blob[:9], "within its header"),
        (lambda blob: b"", "starts with nothing"),
        (lambda blob: blob[:4] + b"\xff" * 12 + blob[16:], "where its header says"),  # 2**96 bytes, never allocated
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_refuses_a_damaged_file(tmp_path, change, sentence, compressed):
    blob = change(idx(np.arange(100, dtype=np.uint8).reshape(5, 5, 4)))
    path = tmp_path / ("images.gz" if compressed else "images")
    path.write_bytes(gzip.compress(blob) if compressed else blob)
    with pytest.raises(DataError, match=sentence) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [5, 40, -4])
def test_refuses_a_cut_gzip_file(tmp_path, cut):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx(np.arange(100, dtype=np.uint8)))[:cut])
    with pytest.raises(DataError, match=r"labels.gz is (cut off|no)"):
        read_idx(path)


def test_refuses_a_flipped_bit_in_a_gzip_file(tmp_path):
    blob = bytearray(gzip.compress(idx(np.arange(100, dtype=np.uint8))))
    blob[-6] ^= 1  # within the checksum
    (tmp_path / "labels.gz").write_bytes(blob)
    with pytest.raises(DataError, match=r"labels.gz is cut off or not valid gzip"):
        read_idx(tmp_path / "labels.gz")


def test_a_file_of_the_published_size_must_be_the_published_file(tmp_path):
    content = bytearray(idx(np.arange(12, dtype=np.uint8)))
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / "file"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_idx(path, digest, (12,)), np.arange(12))
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256"):
        read_idx(path, digest, (12,))
    assert read_idx(path, digest, (60_000,)).shape == (12,)  # another size: somebody's own data


def test_refuses_labels_out_of_range_and_unequal_counts(folder, arrays):
    (folder / TRAIN_LABELS).write_bytes(idx(np.full(30, 10, np.uint8)))
    with pytest.raises(DataError, match=f"{TRAIN_LABELS} has the label 10, outside 0 to 9"):
        read(folder)
    (folder / TRAIN_LABELS).write_bytes(idx(arrays[TRAIN_LABELS][:29]))
    with pytest.raises(DataError, match=r"30 images, but .* 29 labels"):
        read(folder)


def test_refuses_swapped_files(folder):
    (folder / TRAIN_LABELS).rename(folder / "aside")
    (folder / TRAIN_IMAGES).rename(folder / TRAIN_LABELS)
    (folder / "aside").rename(folder / TRAIN_IMAGES)
    with pytest.raises(DataError, match="dimensions"):
        read(folder)


def test_refuses_test_images_of_another_size(folder):
    (folder / TEST_IMAGES).write_bytes(idx(np.zeros((7, 4, 4), np.uint8)))
    with pytest.raises(DataError, match=r"shape \(1, 4, 4\)"):
        read(folder)


def test_a_missing_folder_and_a_needless_test_path_are_said_at_once(tmp_path):
    with pytest.raises(DataError, match=r"no folder that exists"):
        load(DataConfig(source="mnist", path=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="test_path"):
        load(DataConfig(source="mnist", path=str(tmp_path), test_path=str(tmp_path)))
