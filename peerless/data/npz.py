"""A user's own arrays in NumPy's npz format. Nothing is unpickled."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import DataError
from peerless.data.dataset import Dataset, Targets, Values, count_classes, sample_array, target_array

_TRAINING = (("x_train", "y_train"), ("x", "y"))
_TEST = (("x_test", "y_test"), ("x", "y"))


def read_npz(path: Path, test_path: Path | None = None) -> Dataset:
    """Read `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`; the test set may be a file of its own.

    Samples are (N, F), (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels; where both readings of a
    four-dimensional array are possible, channels come first. Labels are whole numbers from 0, (N,); floating-point
    targets may have any shape, and (N, K) whole numbers say which of K labels hold. Raises DataError.
    """
    arrays = _load(path)
    train_x, train_y = _pair(arrays, _TRAINING, path)
    test_x: Values | None = None
    test_y: Targets | None = None
    if test_path is not None:
        test_x, test_y = _pair(_load(test_path), _TEST, test_path)
    elif "x_test" in arrays or "y_test" in arrays:
        test_x, test_y = _pair(arrays, _TEST[:1], path)
    return Dataset(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=count_classes(train_y, test_y, where=str(path)), names=(), provenance=f"npz from {path}",
    )  # fmt: skip


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that we know by name; others in the file are not even read."""
    known = {name for pair in (*_TRAINING, *_TEST) for name in pair}
    try:
        with path.open("rb") as file:  # opened here, because numpy leaves it open when it is no zip file
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds one bare array; save samples and labels with numpy.savez(…, x=…, y=…)")
            with loaded:
                return {name: loaded[name] for name in loaded.files if name in known}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; data.path must name an npz file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; data.path must name an npz file") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise DataError(f"{path} is not a readable npz file of plain arrays ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _pair(arrays: dict[str, NDArray[Any]], names: tuple[tuple[str, str], ...], path: Path) -> tuple[Values, Targets]:
    for x_name, y_name in names:
        if x_name in arrays and y_name in arrays:
            x = sample_array(arrays[x_name], f"{path}, array {x_name}")
            return channels_first(x, f"{path}, array {x_name}"), target_array(arrays[y_name], f"{path}, array {y_name}")
    wanted = " or ".join(f"{x} and {y}" for x, y in names)
    raise DataError(f"{path} has the arrays {', '.join(sorted(arrays)) or 'of no known name'}; wanted are {wanted}")


def channels_first(x: Values, where: str) -> Values:
    """(N, F) stays; images become (N, C, H, W)."""
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4:
        if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return x
    raise DataError(f"{where} has shape {x.shape}; wanted is (N, features), (N, H, W), (N, C, H, W) or (N, H, W, C)")


def to_npz(dataset: Dataset) -> bytes:
    """A data set as the npz file that `read_npz` reads back; class names are not kept."""
    arrays: dict[str, NDArray[Any]] = {"x_train": dataset.train_x, "y_train": dataset.train_y}
    if dataset.test_x is not None and dataset.test_y is not None:
        arrays |= {"x_test": dataset.test_x, "y_test": dataset.test_y}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()
