"""The sources of `data.source`, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from contract.config import DataConfig
from contract.errors import DataError
from peerless.data import fetch, idx
from peerless.data.cifar import read_cifar10
from peerless.data.dataset import Dataset
from peerless.data.image_folder import read_image_folder
from peerless.data.npz import read_npz
from peerless.data.torch_dataset import from_callable


def load(
    config: DataConfig,
    *,
    base: Path | None = None,
    code: Sequence[Path] = (),
    cache: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Read the data set that `config` names; fetch it first where no path is given and the source is a published one.

    `base` is the folder that relative paths start from (the configuration file's; the working directory by default),
    `code` are folders to import an own source from, `cache` replaces the cache's usual place, `log` gets a line per
    download. Raises DataError: what is missing or corrupt, and what to do.
    """
    base = Path.cwd() if base is None else base
    cache = fetch.cache_folder() if cache is None else cache
    path = base / Path(config.path).expanduser() if config.path else None
    test_path = base / Path(config.test_path).expanduser() if config.test_path else None
    if config.source in ("mnist", "fashion-mnist", "cifar10") and test_path is not None:
        raise DataError(f"data.test_path is set, but {config.source} brings its own test set; leave it empty")
    match config.source:
        case "mnist":
            folder = _folder(path) or fetch.fetch(fetch.MNIST, cache, log)
            return idx.read_mnist(folder, source="mnist", digests=idx.MNIST_DIGESTS, names=idx.DIGITS)
        case "fashion-mnist":
            folder = _folder(path) or fetch.fetch(fetch.FASHION_MNIST, cache, log)
            return idx.read_mnist(folder, source="fashion-mnist", digests=idx.FASHION_MNIST_DIGESTS, names=idx.CLOTHES)
        case "cifar10":
            return read_cifar10(_folder(path) or fetch.fetch(fetch.CIFAR10, cache, log))
        case "npz":
            return read_npz(_given(path, "an npz file"), test_path)
        case "image-folder":
            folder = _given(path, "a folder with one subfolder per class")
            return read_image_folder(folder, test_path, config.image_size)
        case source:
            return from_callable(
                source, path=str(path or ""), test_path=str(test_path or ""), code=[base / folder for folder in code]
            )


def _given(path: Path | None, what: str) -> Path:
    if path is None:
        raise DataError(f"data.path is empty; it must name {what}")
    return path


def _folder(path: Path | None) -> Path | None:
    if path is not None and not path.is_dir():
        raise DataError(f"data.path {path} is no folder that exists; correct it, or leave it empty to fetch the data")
    return path
