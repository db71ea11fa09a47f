"""CIFAR-10's binary batches: records of one label byte and 3,072 pixels (red, green, blue planes of 32 x 32)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.errors import DataError
from peerless.data.dataset import Dataset

TRAINING_FILES = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAINING_FILES, TEST_FILE)
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: SHA-256 of the published cifar-10-binary.tar.gz (170,052,171 bytes); none is published for the files within.
ARCHIVE_DIGEST = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
#: Written beside the files when they come out of an archive with that digest, in the format of sha256sum.
SUMS_FILE = "SHA256SUMS"
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_cifar10(folder: Path) -> Dataset:
    """Read the six batches in `folder` (or its `cifar-10-batches-bin`); train_x is (N, 3, 32, 32) uint8.

    The published batches hold 10,000 records each, smaller ones are read as well. A `SHA256SUMS` file is obeyed.
    Raises DataError, which names the file.
    """
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    sums = _read_sums(folder / SUMS_FILE)
    batches = [_read_batch(folder / name, sums.get(name)) for name in FILES]
    train_x = np.concatenate([x for x, _ in batches[:-1]])
    train_y = np.concatenate([y for _, y in batches[:-1]])
    test_x, test_y = batches[-1]
    return Dataset(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=len(NAMES), names=NAMES, provenance=f"cifar10 from {folder}",
    )  # fmt: skip


def _read_batch(path: Path, digest: str | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """((n, 3, 32, 32) uint8, (n,) int64) of one file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; data.path must hold {FILES[0]} to {FILES[4]} and {TEST_FILE} of CIFAR-10's binary "
            "version, or be empty to fetch them"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} has changed since it was fetched (SHA-256); delete its folder and fetch it again")
    if not content or len(content) % _RECORD_BYTES:
        raise DataError(
            f"{path} has {len(content)} bytes, which is no multiple of a CIFAR-10 record ({_RECORD_BYTES} bytes); "
            "delete it and fetch it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(NAMES):
        record = int(np.argmax(labels >= len(NAMES)))
        raise DataError(f"{path}: record {record} has the label {labels[record]}, outside 0 to 9; fetch it again")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _read_sums(path: Path) -> dict[str, str]:
    """File name to SHA-256 from a sha256sum file; empty where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    pairs = [line.split() for line in lines if line.strip()]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        raise DataError(f"{path} is not a list of SHA-256 sums; delete its folder and fetch it again")
    return {name.lstrip("*"): digest.lower() for digest, name in pairs}
