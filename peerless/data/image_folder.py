"""A folder of images with one subfolder per class, in the order of the subfolders' names."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from contract.errors import DataError
from peerless.data.dataset import Dataset

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_GRAYSCALE_MODES = frozenset({"1", "L", "LA", "La"})
_DEEP_MODES = frozenset({"I", "F"})  # and "I;16" in its byte orders: more than 8 bits a channel


@dataclass(frozen=True)
class _Entry:
    path: Path
    label: int
    size: tuple[int, int]  # width, height
    grayscale: bool


def read_image_folder(folder: Path, test_folder: Path | None = None, image_size: int = 0) -> Dataset:
    """Read `folder/<class>/…/<image>`, at any depth; train_x is (N, 1 or 3, H, W) uint8.

    One channel where every image is grayscale, else three. `image_size` > 0 resizes (bilinear, to a square); without
    it all images must have one size. `test_folder` has the same classes, or some of them. Files without an image's
    ending are passed over. Raises DataError, which names the folder or file.
    """
    names = _class_names(folder)
    training = _entries(folder, names)
    test = [] if test_folder is None else _entries(test_folder, names)
    size = (image_size, image_size) if image_size else _common_size([*training, *test])
    mode = "L" if all(entry.grayscale for entry in [*training, *test]) else "RGB"
    train_x, train_y = _decode(training, size, mode)
    test_x, test_y = _decode(test, size, mode) if test else (None, None)
    return Dataset(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=len(names), names=names, provenance=f"image-folder from {folder}",
    )  # fmt: skip


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in _listed(folder) if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise DataError(f"{folder} has no subfolders; an image folder has one subfolder per class")
    return names


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError as error:
        raise DataError(f"{folder} is missing; data.path must name a folder with one subfolder per class") from error
    except OSError as error:
        raise DataError(f"{folder} is no folder that can be read ({error.strerror or error})") from error


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and in its subfolders, in the order of their paths; what is hidden is passed over."""
    for path in _listed(folder):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _entries(folder: Path, names: Sequence[str]) -> list[_Entry]:
    """Headers only: sizes and modes have to be known before memory is set aside for the pixels."""
    unknown = [name for name in _class_names(folder) if name not in names]
    if unknown:
        raise DataError(f"{folder / unknown[0]} is a class that the training folder does not have")
    entries = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        for path in _files(folder / name):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                with _open(path) as image:
                    if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
                        raise DataError(
                            f"{path} has more than 8 bits per channel (mode {image.mode}); convert it first"
                        )
                    entries.append(_Entry(path, label, image.size, image.mode in _GRAYSCALE_MODES))
    if not entries:
        raise DataError(f"{folder} has subfolders, but no image in them ({', '.join(sorted(SUFFIXES))})")
    return entries


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its pixel limit; such a file is no training image either.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is not an image that can be read; mend or remove it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _common_size(entries: Sequence[_Entry]) -> tuple[int, int]:
    first = entries[0]
    for entry in entries:
        if entry.size != first.size:
            raise DataError(
                f"{entry.path} has {entry.size[0]} x {entry.size[1]} pixels, but {first.path} has {first.size[0]} x "
                f"{first.size[1]}; set data.image_size to resize all images"
            )
    return first.size


def _decode(entries: Sequence[_Entry], size: tuple[int, int], mode: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    channels = 1 if mode == "L" else 3
    x = np.empty((len(entries), channels, size[1], size[0]), dtype=np.uint8)
    for index, entry in enumerate(entries):
        with _open(entry.path) as image:
            try:
                converted = image.convert(mode)  # reads the pixels, so a cut-off file shows here
            except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
                raise DataError(f"{entry.path} is damaged ({error}); mend or remove it") from error
        if converted.size != size:
            converted = converted.resize(size, Image.Resampling.BILINEAR)
        x[index] = np.asarray(converted).reshape(size[1], size[0], channels).transpose(2, 0, 1)
    return x, np.array([entry.label for entry in entries], dtype=np.int64)
