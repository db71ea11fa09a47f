"""Build contexts of the two images: just the files that an image needs, the same bytes for the same sources.

A context's layout:

    Dockerfile, install.py, requirements.lock
    app/                     contract, and the image's own package
    vendor/qsgd_compress/    sources of the codec; its C part is built for the image's processor
    code/requirements.txt    what the user's own code asks for; empty where there is none
    code/files/              the user's own code, as contract/code.py counts it
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contract.errors import ConfigError
from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
INSTALL = Path(__file__).with_name("install.py")
CODEC = ROOT / "vendor/qsgd_compress"
#: What of our packages goes into an image, by suffix: no caches, nothing that was compiled for this machine.
SOURCES = frozenset({".py", ".pyi", ".typed"})
CODEC_SOURCES = SOURCES | {".c", ".h", ".inc"}
#: An index address ends up in a build command that a shell reads and a template shows.
_INDEX = re.compile(r"https?://[\w.\-]+(:\d+)?(/[\w.\-+~%]*)*")


class Hash(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Image:
    """One of the images."""

    name: str
    folder: str
    """Where its Dockerfile and its lock file lie, relative to the repository."""
    packages: tuple[str, ...]
    """Files and folders of ours that it holds, relative to the repository."""
    modules: tuple[str, ...]
    """What its processes start with; all of it must be importable once the image is installed."""
    left_out: tuple[str, ...] = ()
    """Files in `packages` that it goes without, because they need libraries that it has no other use for."""

    @property
    def lock(self) -> Path:
        """Its lock file."""
        return ROOT / self.folder / "requirements.lock"

    @property
    def dockerfile(self) -> Path:
        """Its Dockerfile."""
        return ROOT / self.folder / "Dockerfile"


WORKER = Image(
    name="worker",
    folder="lambdas",
    packages=("contract", "lambdas/__init__.py", "lambdas/gradient_worker", "lambdas/gradient_reducer"),
    modules=("lambdas.gradient_worker.handler", "lambdas.gradient_reducer.handler"),
    left_out=("contract/signing.py",),  # cryptography: workers sign nothing
)
PEER = Image(
    name="peer",
    folder="peer_agent",
    packages=("contract", "peer_agent"),
    modules=("peer_agent.instance.__main__", "peer_agent.__main__"),
)
IMAGES = (WORKER, PEER)


def stage(image: Image, folder: Path, settings: Settings) -> None:
    """Make the build context of `image` in `folder`, an empty or missing folder.

    Equal sources, own code and requirements give equal files, whatever lies beside them. Raises ConfigError for own
    code that isn't there, and for a requirement of several lines.
    """
    for path, name in ((image.dockerfile, "Dockerfile"), (INSTALL, "install.py"), (image.lock, "requirements.lock")):
        _copy(path, folder / name)
    for package in image.packages:
        for path in _sources(ROOT / package, SOURCES):
            if path.relative_to(ROOT).as_posix() not in image.left_out:
                _copy(path, folder / "app" / path.relative_to(ROOT))
    codec = (CODEC / "pyproject.toml", CODEC / "setup.py", CODEC / "README.md", *_sources(CODEC / "src", CODEC_SOURCES))
    for path in codec:
        _copy(path, folder / path.relative_to(ROOT))
    _stage_code(folder / "code", settings)


def check_index(settings: Settings) -> None:
    """Raise ConfigError where the build would find no torch for CPUs, before anything is deployed.

    Apart from `stage`, because templates can be made without it.
    """
    if not settings.torch_index:
        raise ConfigError(
            "aws.torch_index is not set, and pip's own index has torch for CUDA alone, on arm64 too; set it to the "
            "address of PyTorch's CPU index (its installation page names it)"
        )
    build_arguments(settings)


def build_arguments(settings: Settings) -> dict[str, str]:
    """What the Dockerfiles take as ARG. Raises ConfigError for an index address that no build command should hold."""
    index = settings.torch_index
    if not index:
        return {}
    if not _INDEX.fullmatch(index):
        raise ConfigError(
            f"aws.torch_index = {index!r} is not a plain http(s) address; user names, passwords and query strings "
            "would stand in the deployment's template for all to read"
        )
    return {"TORCH_INDEX": index}


def fingerprint(context: Path, *more: str) -> str:
    """32 hex digits that name what a build context makes: of its files and of `more`, what is said to the build.

    As an image's tag it stands in the templates of those who use the image. A tag that only the build knew would reach
    them as a reference, new code would leave their templates as they were, and nothing of it would be deployed.
    """
    digest = hashlib.sha256(b"peerless image 1")
    for part in more:
        _add(digest, part.encode())
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        _add(digest, path.relative_to(context).as_posix().encode("utf-8", "surrogateescape"))
        _add(digest, b"executable" if path.stat().st_mode & 0o100 else b"")
        _add(digest, path.read_bytes())
    return digest.hexdigest()[:32]


def _add(digest: Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little") + part)


def _stage_code(folder: Path, settings: Settings) -> None:
    broken = [requirement for requirement in settings.code_requirements if len(requirement.splitlines()) != 1]
    if broken:
        raise ConfigError(f"code.requirements: {broken[0]!r} is not one requirement")
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in settings.code_requirements))
    if not settings.code_dir:
        return
    source = Path(settings.code_dir)
    if not source.is_dir():
        raise ConfigError(f"{source}: the folder of the run's own code does not exist")
    for path in sorted(source.rglob("*")):
        # The very files that its digest counts: a peer or worker that held others would be refused.
        relative = path.relative_to(source)
        if "__pycache__" not in relative.parts and path.suffix != ".pyc" and path.is_file():
            _copy(path, folder / "files" / relative)


def _sources(path: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """`path` itself if it is a file, else the sources in it, sorted."""
    if path.is_file():
        yield path
        return
    for found in sorted(path.rglob("*")):
        if found.suffix in suffixes and found.is_file() and ".egg-info" not in found.parent.suffixes:
            yield found


def _copy(source: Path, target: Path) -> None:
    """Contents and the right to execute; dates and owners of this machine stay here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
