"""The arrows of the design, read from the imports: who may use whom, and where each port's library may be imported."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: A room may import itself and what stands here; a dotted entry allows that module alone.
ARROWS: dict[str, set[str]] = {
    "peerless": {"infra", "statemachines", "contract"},
    "infra": {"statemachines", "contract.env", "contract.errors", "contract.clock"},
    "peer_agent": {"contract"},
    "lambdas": {"contract"},
    "statemachines": {"contract.errors"},
    "contract": set(),
}

#: Libraries that stand for a port, and the only places (path prefixes) that may import them.
PORTS: dict[str, tuple[str, ...]] = {
    "time": ("contract/clock.py", "infra/local/guard.py"),
    "boto3": ("contract/store.py", "infra/", "peerless/launch/", "peer_agent/compute/stepfunctions.py"),
    "pika": ("peer_agent/exchange/",),
    "qsgd_compress": ("contract/codec.py",),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
}

SOURCES = sorted(path for room in ARROWS for path in (ROOT / room).rglob("*.py"))


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module that a syntax tree imports, wherever the statement stands; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed(module: str, room: str) -> bool:
    """Whether `room` may import `module`, one of our own."""
    return any(module == target or module.startswith(f"{target}.") for target in {room, *ARROWS[room]})


def violations(source: str, path: str) -> list[str]:
    """What a file of ours does against the arrows; `path` is relative to the repository."""
    room, wrong = path.split("/")[0], []
    for module in sorted(imported_modules(ast.parse(source))):
        top = module.split(".")[0]
        if top in ARROWS and not allowed(module, room):
            wrong.append(f"{path}: {room} must not import {module}")
        if top in PORTS and not any(path.startswith(place) for place in PORTS[top]):
            wrong.append(f"{path}: {top} belongs in {', '.join(PORTS[top]) or 'no room'}")
    return wrong


def test_every_file_keeps_to_the_arrows() -> None:
    assert len(SOURCES) > 40, "the rooms were not found"
    wrong = [line for path in SOURCES for line in violations(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import peerless", "contract/wire.py"),
        ("from peer_agent.round import Round", "peerless/cli.py"),
        ("from contract import config", "statemachines/definition.py"),
        ("from contract.errors import DataError\nimport contract.store", "infra/local/cloud.py"),
        ("def f():\n    import time", "peer_agent/runner.py"),
        ("import pickle", "contract/wire.py"),
        ("import pika.exceptions", "peer_agent/runner.py"),
        ("import boto3", "peer_agent/runner.py"),
    ],
)
def test_a_wrong_import_is_found(source: str, path: str) -> None:
    assert violations(source, path)


def test_torch_stays_out_of_what_the_infrastructure_reads() -> None:
    """`infra` synthesises stacks on machines without torch, so what it imports must not need it."""
    import subprocess

    code = "import sys, contract.env, contract.errors, contract.clock, statemachines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_importing_peerless_starts_nothing_and_loads_no_heavy_library() -> None:
    import subprocess

    code = "import sys, peerless; sys.exit(bool({'torch', 'boto3', 'pika', 'infra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
