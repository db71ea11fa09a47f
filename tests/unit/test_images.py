"""Build contexts, Dockerfiles and lock files: what goes into the images, always the same, and all that they import."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from contract.code import code_digest
from contract.errors import ConfigError
from infra.images import install, locks, trial
from infra.images.staging import (
    CODEC,
    IMAGES,
    PEER,
    ROOT,
    WORKER,
    Image,
    build_arguments,
    check_index,
    fingerprint,
    stage,
)
from infra.settings import Settings

by_name = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)


def staged(image: Image, folder: Path, settings: Settings | None = None) -> Path:
    """The build context of `image` in `folder`."""
    stage(image, folder, settings or Settings())
    return folder


def files(folder: Path) -> set[str]:
    """Relative paths of all files."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def own_code(folder: Path) -> Settings:
    """Settings with code of the user's own in `folder`, beside what importing it leaves there."""
    (folder / "pack/__pycache__").mkdir(parents=True)
    (folder / "pack/__init__.py").write_text("from pack.native import answer\n")
    (folder / "pack/data.bin").write_bytes(bytes(range(256)))
    (folder / "pack/native.so").write_bytes(b"\x7fELF")
    (folder / "pack/__pycache__/pack.pyc").write_bytes(b"cache")
    (folder / "left.pyc").write_bytes(b"cache")
    (folder / "run.sh").write_text("true\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to(folder / "pack/__init__.py")
    return Settings(code_dir=str(folder), code_requirements=("einops==0.8.1", "tqdm"))


@by_name
def test_a_context_has_just_what_the_image_needs(image: Image, tmp_path: Path) -> None:
    found = files(staged(image, tmp_path / "context"))
    assert {"Dockerfile", "install.py", "requirements.lock", "code/requirements.txt"} <= found
    assert {"vendor/qsgd_compress/setup.py", "vendor/qsgd_compress/src/qsgd_compress/native/module.c"} <= found
    rooms = {"contract", *(package.split("/")[0] for package in image.packages)}
    assert {name.split("/")[1] for name in found if name.startswith("app/")} == rooms
    wrong = re.compile(r"__pycache__|\.pyc$|\.so$|egg-info|/tests/|/fuzz/|broker_users|Dockerfile.+")
    assert [name for name in found if wrong.search(name)] == []


@by_name
def test_a_context_holds_everything_of_ours_that_it_imports(image: Image, tmp_path: Path) -> None:
    app = staged(image, tmp_path / "context") / "app"
    ours = {"contract", "lambdas", "peer_agent", "peerless", "infra", "statemachines"}
    for path in app.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours:
                module = app / node.module.replace(".", "/")
                assert module.with_suffix(".py").exists() or (module / "__init__.py").exists(), (path, node.module)
    for name in image.left_out:
        assert (ROOT / name).is_file(), name
        assert not (app / name).exists(), name
    for module in image.modules:
        assert (app / module.replace(".", "/")).with_suffix(".py").exists(), module


@by_name
def test_equal_sources_give_equal_contexts(image: Image, tmp_path: Path) -> None:
    settings = own_code(tmp_path / "own")
    first, second = (staged(image, tmp_path / name, settings) for name in ("first", "second"))
    assert files(first) == files(second)
    assert fingerprint(first) == fingerprint(second)


def test_what_lies_about_does_not_change_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, builds for this machine, other dates and rights: another machine's checkout gives the same image."""
    before = fingerprint(staged(WORKER, tmp_path / "before"))
    copy = tmp_path / "checkout"
    for part in ("contract", "lambdas", "vendor"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
    for path in copy.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    for name in ("contract/__pycache__/x.pyc", "contract/notes.txt", "contract/.x.py.swp", "lambdas/other/handler.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("other")
    codec = copy / "vendor/qsgd_compress"
    (codec / "src/qsgd_compress/_native.abi3.so").write_text("other")
    monkeypatch.setattr("infra.images.staging.ROOT", copy)
    monkeypatch.setattr("infra.images.staging.CODEC", codec)
    assert fingerprint(staged(WORKER, tmp_path / "after")) == before


def test_own_code_arrives_as_its_digest_counts_it(tmp_path: Path) -> None:
    """A peer or worker refuses a run whose code has another digest than its own folder."""
    settings = own_code(tmp_path / "own")
    context = staged(PEER, tmp_path / "context", settings)
    assert code_digest(context / "code/files") == code_digest(tmp_path / "own")
    assert files(context / "code/files") == {"pack/__init__.py", "pack/data.bin", "pack/native.so", "run.sh", "link.py"}
    assert (context / "code/requirements.txt").read_text() == "einops==0.8.1\ntqdm\n"
    assert os.access(context / "code/files/run.sh", os.X_OK)


def test_a_fingerprint_tells_whatever_changes_an_image(tmp_path: Path) -> None:
    settings = own_code(tmp_path / "own")
    context = staged(WORKER, tmp_path / "context", settings)
    seen = {fingerprint(context), fingerprint(context, "linux/arm64"), fingerprint(context, "linux/amd64")}
    seen.add(fingerprint(staged(PEER, tmp_path / "peer", settings)))
    seen.add(fingerprint(staged(WORKER, tmp_path / "none")))
    (context / "code/files/pack/data.bin").write_bytes(b"changed")
    seen.add(fingerprint(context))
    (context / "code/files/run.sh").chmod(0o644)
    seen.add(fingerprint(context))
    (context / "code/requirements.txt").write_text("einops==0.8.2\n")
    seen.add(fingerprint(context))
    assert len(seen) == 8
    assert all(re.fullmatch(r"[0-9a-f]{32}", tag) for tag in seen)


def test_own_code_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        stage(WORKER, tmp_path / "context", Settings(code_dir=str(tmp_path / "missing")))


@pytest.mark.parametrize("requirement", ["", "einops\n--index-url http://elsewhere"])
def test_a_requirement_is_one_line(requirement: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not one requirement"):
        stage(WORKER, tmp_path / "context", Settings(code_requirements=(requirement,)))


def test_the_index_of_torch_is_a_build_argument() -> None:
    assert build_arguments(Settings()) == {}
    index = "https://packages.example.com:8443/torch/whl/cpu-2.13_a+b"
    assert build_arguments(Settings(torch_index=index)) == {"TORCH_INDEX": index}


def test_deploying_needs_an_index_for_cpus() -> None:
    with pytest.raises(ConfigError, match=r"aws\.torch_index"):
        check_index(Settings())
    check_index(Settings(torch_index="https://packages.example.com/cpu"))


@pytest.mark.parametrize(
    "index",
    [
        "https://user:password@example.com/cpu",
        "https://example.com/cpu?token=1",
        "https://example.com/$(env)",
        "https://example.com/a b",
        "https://example.com/a;b",
        "file:///wheels",
        "example.com/cpu",
    ],
)
def test_an_index_that_a_template_or_a_shell_should_not_see_is_refused(index: str) -> None:
    with pytest.raises(ConfigError, match="torch_index"):
        build_arguments(Settings(torch_index=index))


def hadolint(*dockerfiles: Path) -> str:
    """What hadolint has against these files."""
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", *dockerfiles],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not done.stdout.strip()), done.stderr
    return done.stdout


def test_hadolint_finds_nothing() -> None:
    assert hadolint(*(image.dockerfile for image in IMAGES)) == ""


def test_hadolint_does_find_mistakes(tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM python\nADD https://example.com/x /x\nRUN apt-get install gcc\nUSER root\n")
    found = hadolint(dockerfile)
    assert {"DL3006", "DL3008", "DL3002"} <= set(re.findall(r"DL\d+", found))


@by_name
def test_every_exception_for_hadolint_has_a_reason_above_it(image: Image) -> None:
    lines = image.dockerfile.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert lines[number - 1].startswith("# ")
            assert len(lines[number - 1].split()) > 6


@by_name
def test_a_dockerfile_installs_what_is_staged_and_starts_it(image: Image) -> None:
    text = image.dockerfile.read_text()
    assert f"install.py {trial.TARGET} {' '.join(image.modules)}\n" in text
    environment, command = trial.last_stage(text)
    assert environment["PYTHONPATH"] == f"{trial.TARGET}/app:{trial.TARGET}/packages"
    assert environment["PEERLESS_CODE_DIR"] == f"{trial.TARGET}/code"
    expected = {
        "worker": ("lambdas.gradient_worker.handler.handler",),
        "peer": ("python3", "-m", "peer_agent.instance"),
    }
    assert command == expected[image.name]
    assert 'TORCH_INDEX=""' in text


def test_both_images_have_the_python_that_the_locks_are_made_for() -> None:
    bases = [
        line.split()[1] for image in IMAGES for line in image.dockerfile.read_text().splitlines() if "FROM " in line
    ]
    assert len(bases) == 4
    versions = {re.search(r":(\d+\.\d+)", base)[1] for base in bases if re.search(r":(\d+\.\d+)", base)}  # type: ignore[index]
    assert versions == {python for python, _ in locks.TARGETS if python != "3.11"}
    assert all(base.startswith("public.ecr.aws/") for base in bases)


def test_the_peer_ends_as_a_user_without_rights() -> None:
    users = re.findall(r"^USER (\S+)", PEER.dockerfile.read_text(), re.MULTILINE)
    assert users
    assert int(users[-1]) >= 1_000


@by_name
def test_a_lock_has_every_import_and_fits_pyproject(image: Image) -> None:
    pins = locks.pins(image.lock)
    assert {locks.distribution(module) for module in locks.third_party(image)} <= set(pins)
    for line in locks.requirements(image):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name]), line
    assert not [name for name in pins if locks.CUDA.match(name)]
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.values())


def test_a_lock_names_what_its_packages_ask_for() -> None:
    """As far as they are installed here: `pip check` for a file. Markers are those of this machine."""
    from importlib.metadata import PackageNotFoundError, requires

    for image in IMAGES:
        pins = locks.pins(image.lock)
        for name in pins:
            try:
                asked = [Requirement(line) for line in requires(name) or ()]
            except PackageNotFoundError:
                continue
            for wanted in asked:
                if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                    normal = re.sub(r"[-_.]+", "-", wanted.name).lower()
                    assert normal in pins or locks.CUDA.match(normal), f"{image.name}: {name} asks for {wanted}"


def test_both_locks_agree() -> None:
    """Peers and workers compute the same gradients, so they have the same libraries."""
    worker, peer = locks.pins(WORKER.lock), locks.pins(PEER.lock)
    assert {name: worker[name] for name in worker} == {name: peer[name] for name in worker}
    assert set(peer) - set(worker) == {"pika", "psutil", "cryptography", "cffi", "pycparser"}


def test_an_import_that_nothing_declares_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "third_party", lambda image: {"torch", "leftpad"})
    with pytest.raises(ConfigError, match="leftpad"):
        locks.requirements(WORKER)


def test_the_installation_stands_by_itself() -> None:
    """In the build context there is nothing yet that it could import."""
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(ast.parse(Path(install.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize(("cuda", "refused"), [("None", False), ("'13.0'", True)])
def test_a_torch_for_cuda_is_refused(cuda: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"cuda: str | None = {cuda}\n")
    if refused:
        with pytest.raises(SystemExit, match="torch_index"):
            install._refuse_cuda(tmp_path)
    else:
        install._refuse_cuda(tmp_path)


def test_pruning_keeps_what_torch_looks_for(tmp_path: Path) -> None:
    for name in (
        "torch/bin/torch_shm_manager",
        "torch/bin/protoc",
        "torch/bin/models/x.ptl",
        "torch/include/ATen/a.h",
        "torch/testing/__init__.py",
        "numpy/_core/tests/test_a.py",
        "numpy/_core/tests/data/tests/b.py",
        "numpy/testing/tests/c.py",
        "other/tests/d.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    install._prune(tmp_path)
    assert files(tmp_path) == {"torch/bin/torch_shm_manager", "torch/testing/__init__.py", "other/tests/d.py"}


def test_the_codec_is_built_without_fetching_its_build_tools() -> None:
    needs = tomllib.loads((CODEC / "pyproject.toml").read_text())["build-system"]["requires"]
    for image in IMAGES:
        for line in needs:
            wanted = Requirement(line)
            assert wanted.specifier.contains(locks.pins(image.lock)[wanted.name])


def test_staging_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["images", "stage", "worker", str(tmp_path / "context")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("infra.images", run_name="__main__")
    assert ended.value.code == 0
    assert (tmp_path / "context/Dockerfile").read_text() == WORKER.dockerfile.read_text()
