"""The images' lock files: every package that an image holds, by exact version, from one command.

pip resolves for each of TARGETS, without installing anything; all must agree, so that one file serves both
architectures. The oldest Python that the project supports comes first, because the suite runs on it too: what was
tested is what is deployed.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from contract.errors import ConfigError
from infra.images.staging import CODEC, ROOT, Image

#: Python and processor. The images' own Python stands in their Dockerfiles' FROM lines.
TARGETS = (("3.11", "x86_64"), ("3.13", "aarch64"), ("3.13", "x86_64"))
#: Wheels may ask for this minor version of glibc 2, as torch's do; the images have newer ones.
GLIBC_MINOR = 28
#: Only torch's builds for CUDA ask for these, and install.py refuses those.
CUDA = re.compile(r"nvidia-|cuda-|triton\b")
#: Where a package is imported by another name than it is installed by.
DISTRIBUTIONS = {"google_crc32c": "google-crc32c", "tomli_w": "tomli-w"}
#: The codec's entropy coder uses it where it is there; without it this option of the codec fails.
CODEC_EXTRA = "zstd"
HEADER = """\
# Every package of the {name} image, made by `make locks`; do not edit.
# AWS's base image brings its own runtime client, awslambdaric; torch may come from another index (ARG TORCH_INDEX).
"""


def third_party(image: Image) -> set[str]:
    """Top-level names of everything that the image's code imports and that is neither ours nor Python's."""
    found: set[str] = set()
    for root in (*(ROOT / package for package in image.packages), CODEC / "src"):
        for path in [root] if root.is_file() else root.rglob("*.py"):
            if path.relative_to(ROOT).as_posix() in image.left_out:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    ours = {"contract", "lambdas", "peer_agent", "qsgd_compress"}
    return found - ours - sys.stdlib_module_names


def distribution(module: str) -> str:
    """Name of the package that a top-level module comes from."""
    return DISTRIBUTIONS.get(module, module)


def requirements(image: Image) -> list[str]:
    """What the image's code asks for, as pyproject.toml and the codec's own have it, sorted.

    Raises ConfigError for an import that neither of them names.
    """
    declared = _declared(ROOT / "pyproject.toml") | _declared(CODEC / "pyproject.toml", CODEC_EXTRA)
    # MiniStack pins botocore, hence boto3, to one release; boto3 alone would take a later botocore than the tests have.
    declared["botocore"] = declared["boto3"].replace("boto3", "botocore")
    missing = sorted(name for name in third_party(image) if distribution(name) not in declared)
    if missing:
        raise ConfigError(f"image {image.name}: pyproject.toml names no requirement for {', '.join(missing)}")
    names = {distribution(name) for name in third_party(image)} | set(_declared(CODEC / "pyproject.toml", CODEC_EXTRA))
    return sorted(declared[name] for name in names)


def pins(path: Path) -> dict[str, str]:
    """Versions by package of a lock file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==", 1) for line in lines)


def write(image: Image) -> None:
    """Resolve and write the image's lock file. Needs package indexes. Raises ConfigError where targets disagree."""
    wanted = requirements(image)
    first, *others = TARGETS
    versions = _resolve(wanted, *first)
    for target in others:
        again = _resolve([f"{name}=={version}" for name, version in versions.items()], *target)
        if again != versions:
            different = sorted(name for name, _ in set(again.items()) ^ set(versions.items()))
            raise ConfigError(f"image {image.name}: {target} needs other packages: {', '.join(different)}")
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    image.lock.write_text(HEADER.format(name=image.name) + lines, encoding="utf-8")


def _declared(path: Path, extra: str = "") -> dict[str, str]:
    """Requirements of a pyproject.toml by package name."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    found = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    return {re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]: line for line in found}


def _resolve(wanted: list[str], python: str, processor: str) -> dict[str, str]:
    """Versions by package that pip would install, those of CUDA left out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--target", folder]
        options += ["--only-binary", ":all:", "--python-version", python]
        # pip takes each name literally: a wheel for an older glibc must be asked for too.
        names = [f"manylinux_2_{minor}" for minor in range(GLIBC_MINOR, 16, -1)] + ["manylinux2014"]
        options += [option for name in names for option in ("--platform", f"{name}_{processor}")]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {_normal(item["metadata"]["name"]): item["metadata"]["version"] for item in items}
    # A build's own mark, such as +cpu, belongs to an index and not to the version.
    return {name: version.partition("+")[0] for name, version in found.items() if not CUDA.match(name)}


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
