"""What both Dockerfiles run once a compiler is there, in the folder of a build context: `install.py TARGET MODULE...`.

Standard library alone, because it stands in the build context by itself. `python -m benchmarks images` runs the same
file without a container engine, so that what was tried is what is built.

TARGET gets `packages/` (the lock file's packages, the vendored codec, what the user's own code asks for), `app/` (ours)
and `code/` (the user's own). At the end each MODULE is imported from there: what is missing fails here and not on AWS.
TORCH_INDEX in the environment names the package index that torch comes from; without it pip takes its own.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

LOCK = "requirements.lock"
#: Parts of packages that nothing imports: headers, C++ tests and CMake files of torch, tests of the others.
UNUSED = ("torch/include", "torch/share", "torch/test", "numpy/**/tests", "sympy/**/tests", "networkx/**/tests")
#: torch looks for this one when it is imported; the other programs beside it are compilers and tests.
NEEDED_PROGRAM = "torch_shm_manager"


def main(target: Path, modules: list[str]) -> None:
    """Install the build context in the current folder into `target`, an absolute path, and import `modules`."""
    venv, packages = target / "venv", target / "packages"
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    _pip(venv, "--no-deps", *_torch_index(), _pin("torch"))
    site = Path(_output(str(venv / "bin/python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    _refuse_cuda(site)
    # The lock has every package by its exact version, so nothing here may ask for more.
    _pip(venv, "--no-deps", "--requirement", LOCK)
    # Without isolation, because setuptools stands in the lock too.
    _pip(venv, "--no-deps", "--no-build-isolation", "./vendor/qsgd_compress")
    _prune(site)
    if Path("code/requirements.txt").read_text(encoding="utf-8").strip():
        _pip(venv, "--constraint", LOCK, "--requirement", "code/requirements.txt")
    site.rename(packages)
    shutil.rmtree(venv)
    shutil.copytree("app", target / "app")
    if Path("code/files").is_dir():
        shutil.copytree("code/files", target / "code")
    else:
        (target / "code").mkdir()
    _make_readable(target)
    _compile(target / "app", strict=True)
    _compile(packages, strict=False)
    _compile(target / "code", strict=False)
    path = os.pathsep.join((str(target / "app"), str(packages)))
    for module in ["qsgd_compress", *modules]:
        subprocess.run([sys.executable, "-c", f"import {module}"], env={**os.environ, "PYTHONPATH": path}, check=True)


def _pip(venv: Path, *arguments: str) -> None:
    """`pip install` into `venv`; bytecode is compiled later, when files lie where they will be imported from."""
    python = str(venv / "bin/python")
    options = ("--disable-pip-version-check", "--no-input", "install", "--quiet", "--no-compile")
    _run(sys.executable, "-m", "pip", "--python", python, *options, *arguments)


def _torch_index() -> tuple[str, ...]:
    index = os.environ.get("TORCH_INDEX", "")
    return ("--index-url", index) if index else ()


def _pin(name: str) -> str:
    """The lock's line of a package."""
    lines = Path(LOCK).read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def _refuse_cuda(site: Path) -> None:
    """A torch for CUDA is gigabytes of libraries that no worker and no peer has a use for."""
    cuda = runpy.run_path(str(site / "torch/version.py"))["cuda"]
    if cuda is not None:
        sys.exit(
            f"install.py: this index has torch for CUDA {cuda}; set aws.torch_index (TORCH_INDEX) to the address of "
            "PyTorch's CPU index"
        )


def _prune(site: Path) -> None:
    for pattern in UNUSED:
        for folder in sorted(site.glob(pattern), reverse=True):
            shutil.rmtree(folder)
    for path in (site / "torch/bin").glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != NEEDED_PROGRAM:
            path.unlink()


def _make_readable(target: Path) -> None:
    """Lambda and the peer run as users of their own, who must be able to read what root installed."""
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))


def _compile(folder: Path, *, strict: bool) -> None:
    """Bytecode beside every module, so that a cold start doesn't compile torch, and doesn't look at the sources' dates.

    Not `strict`: packages may ship templates and examples that are no valid Python.
    """
    command = ["-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", str(folder)]
    subprocess.run([sys.executable, *command], check=strict)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: install.py TARGET MODULE...")
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
