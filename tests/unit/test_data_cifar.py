"""CIFAR-10's binary format."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import load
from peerless.data.cifar import FILES, read_cifar10


@pytest.fixture
def records() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 10, n, dtype=np.uint8), rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
        for name, n in zip(FILES, (3, 2, 2, 2, 2, 4), strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path, records) -> Path:
    for name, (labels, images) in records.items():
        rows = [bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
        (tmp_path / name).write_bytes(b"".join(rows))
    return tmp_path


def test_reads_records_with_their_channel_planes_in_file_order(folder, records):
    dataset = load(DataConfig(source="cifar10", path=str(folder)))
    np.testing.assert_array_equal(dataset.train_x, np.concatenate([records[name][1] for name in FILES[:5]]))
    np.testing.assert_array_equal(dataset.train_y, np.concatenate([records[name][0] for name in FILES[:5]]))
    np.testing.assert_array_equal(dataset.test_x, records[FILES[5]][1])
    np.testing.assert_array_equal(dataset.test_y, records[FILES[5]][0])
    assert dataset.names[3] == "cat"


def test_finds_the_folder_of_the_published_archive(tmp_path, folder):
    inner = tmp_path / "outer" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name in FILES:
        (folder / name).rename(inner / name)
    assert len(read_cifar10(tmp_path / "outer").train_x) == 11


@pytest.mark.parametrize("missing", FILES)
def test_names_the_missing_file(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"{missing} is missing"):
        read_cifar10(folder)


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * 3074])
def test_refuses_a_wrong_length(folder, content):
    (folder / FILES[2]).write_bytes(content)
    with pytest.raises(DataError, match=f"{FILES[2]} has {len(content)} bytes"):
        read_cifar10(folder)


def test_refuses_a_label_out_of_range(folder):
    blob = bytearray((folder / FILES[0]).read_bytes())
    blob[3073] = 10
    (folder / FILES[0]).write_bytes(blob)
    with pytest.raises(DataError, match=f"{FILES[0]}: record 1 has the label 10"):
        read_cifar10(folder)


def test_obeys_the_sums_that_were_taken_when_it_was_fetched(folder):
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES)
    (folder / "SHA256SUMS").write_text(sums)
    read_cifar10(folder)
    blob = bytearray((folder / FILES[4]).read_bytes())
    blob[100] ^= 1
    (folder / FILES[4]).write_bytes(blob)
    with pytest.raises(DataError, match=f"{FILES[4]} has changed"):
        read_cifar10(folder)
    (folder / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(DataError, match="SHA256SUMS"):
        read_cifar10(folder)
