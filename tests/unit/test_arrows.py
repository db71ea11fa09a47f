"""The arrows of the design, read from the imports: who may use whom, and where each port's library may be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: A room may import itself and what stands here; a dotted entry allows that module alone.
ARROWS: dict[str, set[str]] = {
    "peerless": {"infra", "statemachines", "contract"},
    # The metrics' names, because an alarm on one that nobody emits would never tell.
    "infra": {"statemachines", "contract.env", "contract.errors", "contract.clock", "contract.metrics"},
    "peer_agent": {"contract"},
    "lambdas": {"contract"},
    "statemachines": {"contract.errors"},
    "contract": set(),
    "qsgd_compress": set(),
    # Peers of its own: real ones whose gradients are given, and the protocol's state machine without any I/O.
    "benchmarks": {"peerless", "infra", "statemachines", "contract", "peer_agent"},
}
#: What is nobody's to import, so that nothing that ships depends on it.
NOBODYS = {"tests", "benchmarks", "examples"}

#: Where the packages lie, by name.
FOLDERS = {room: ROOT / room for room in ARROWS} | {"qsgd_compress": ROOT / "vendor/qsgd_compress/src/qsgd_compress"}

#: Whoever talks to AWS: S3 for all, the infrastructure, the user's side, a peer's state machine, and its instance (the
#: broker user's secret, and the group that it sets to 0 at its end).
AWS_CLIENTS = (
    "contract/store.py",
    "infra/",
    "peerless/launch/",
    "peer_agent/compute/executions.py",
    "peer_agent/compute/inquiry.py",
    "peer_agent/instance/aws.py",
)

#: Libraries that stand for a port, and the only places (path prefixes) that may import them.
PORTS: dict[str, tuple[str, ...]] = {
    "time": ("contract/clock.py", "infra/local/guard.py"),
    "boto3": AWS_CLIENTS,
    "botocore": AWS_CLIENTS,
    "pika": ("peer_agent/exchange/",),
    "cryptography": ("contract/signing.py",),
    "qsgd_compress": ("contract/codec.py", "benchmarks/codec.py", "vendor/qsgd_compress/"),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "marshal": (),
    "shelve": (),
}


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module that a syntax tree imports, wherever the statement stands; `from a import b` counts as a.b.

    A constant name given to `import_module` or `__import__` counts too.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def allowed(module: str, room: str) -> bool:
    """Whether `room` may import `module`, one of our own."""
    return any(module == target or module.startswith(f"{target}.") for target in {room, *ARROWS[room]})


def room_of(path: str) -> str:
    """The package that a file, relative to the repository, belongs to."""
    return "qsgd_compress" if path.startswith("vendor/") else path.split("/")[0]


def violations(source: str, path: str) -> list[str]:
    """What a file of ours does against the arrows; `path` is relative to the repository."""
    room, wrong, tree = room_of(path), [], ast.parse(source)
    if not path.startswith("vendor/") and any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)):
        wrong.append(f"{path}: imports are absolute")
    for module in sorted(imported_modules(tree)):
        top = module.split(".")[0]
        if top in PORTS:
            if not any(path.startswith(place) for place in PORTS[top]):
                wrong.append(f"{path}: {top} belongs in {', '.join(PORTS[top]) or 'no room'}")
        elif (top in ARROWS or top in NOBODYS) and not allowed(module, room):
            wrong.append(f"{path}: {room} must not import {module}")
    return wrong


@pytest.mark.parametrize("room", ARROWS)
def test_every_file_keeps_to_the_arrows(room: str) -> None:
    sources = sorted(FOLDERS[room].rglob("*.py"))
    assert sources, f"{room} was not found"
    wrong = [line for path in sources for line in violations(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert not wrong, "\n".join(wrong)


def test_every_package_has_its_arrows() -> None:
    """A new room must say whom it may import."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} <= set(ARROWS)


@pytest.mark.parametrize(("library", "place"), [(name, place) for name, places in PORTS.items() for place in places])
def test_a_permission_is_used(library: str, place: str) -> None:
    """One that nobody needs any more would hide the next mistake."""
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    used = {name.split(".")[0] for file in files for name in imported_modules(ast.parse(file.read_text()))}
    assert used & ({"boto3", "botocore"} if library in ("boto3", "botocore") else {library})


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import peerless", "contract/wire.py"),
        ("from peer_agent.round import Round", "peerless/cli.py"),
        ("import lambdas.gradient_worker.handler", "peerless/launch/local.py"),
        ("from peerless import data", "infra/local/cloud.py"),
        ("from peer_agent import round", "lambdas/gradient_worker/handler.py"),
        ("from infra.local.cloud import LocalCloud", "peer_agent/runner.py"),
        ("from statemachines import definition", "peer_agent/runner.py"),
        ("from contract import config", "statemachines/definition.py"),
        ("import contract", "infra/local/cloud.py"),
        ("from contract.errors import DataError\nimport contract.store", "infra/local/cloud.py"),
        ("from contract import wire", "vendor/qsgd_compress/src/qsgd_compress/codec.py"),
        ("import benchmarks.round", "peerless/cli.py"),
        ("from tests.fakes import store", "peer_agent/runner.py"),
        ("from .errors import DataError", "contract/wire.py"),
        ("import importlib\nimportlib.import_module('peer_agent.runner')", "peerless/cli.py"),
        ("def f():\n    import time", "peer_agent/runner.py"),
        ("import pickle", "contract/wire.py"),
        ("import pika.exceptions", "peer_agent/runner.py"),
        ("import boto3", "peer_agent/runner.py"),
        ("from botocore.exceptions import ClientError", "lambdas/gradient_worker/handler.py"),
        ("import qsgd_compress", "peer_agent/update.py"),
        ("from cryptography.hazmat.primitives import hashes", "peer_agent/keyring.py"),
    ],
)
def test_a_wrong_import_is_found(source: str, path: str) -> None:
    assert violations(source, path)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from contract.errors import DataError", "statemachines/definition.py"),
        ("from contract import env", "infra/local/cloud.py"),
        ("import boto3\nimport statemachines", "infra/local/cloud.py"),
        ("import qsgd_compress", "contract/codec.py"),
        ("from . import entropy", "vendor/qsgd_compress/src/qsgd_compress/codec.py"),
    ],
)
def test_a_right_import_is_not(source: str, path: str) -> None:
    assert not violations(source, path)


def test_torch_stays_out_of_what_the_infrastructure_reads() -> None:
    """`infra` synthesises stacks on machines without torch, so what it imports must not need it."""
    assert not loaded(
        "import contract.env, contract.errors, contract.clock, contract.metrics, statemachines, infra.local.cloud"
    ) & {
        "torch", "peerless", "peer_agent", "lambdas"
    }  # fmt: skip


def test_importing_peerless_starts_nothing_and_loads_no_heavy_library() -> None:
    assert not loaded("import peerless") & {"torch", "boto3", "pika", "infra"}


def loaded(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has after `code`."""
    tell = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", tell], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())
