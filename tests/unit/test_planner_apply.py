"""A plan written into a configuration file: the keys change, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.config import from_toml
from contract.errors import ConfigError
from peerless.planner.apply import applied, apply

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mnist.toml"


def test_one_line_of_the_example_changes_per_key(tmp_path: Path) -> None:
    path = tmp_path / "mnist.toml"
    path.write_text(EXAMPLE.read_text())
    changes = {"compute.memory_mb": 3_538, "exchange.codec": "fp16", "aws.instance_type": "c7g.large", "peers": 8}
    apply(path, changes)
    before, after = EXAMPLE.read_text().splitlines(), path.read_text().splitlines()
    assert len(before) == len(after)
    different = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(different) == 4
    for old, new in different:
        assert old.partition("#")[2] == new.partition("#")[2]
        assert old.partition("=")[0] == new.partition("=")[0]
    assert from_toml(path) == from_toml(EXAMPLE, [
        "compute.memory_mb=3538", "exchange.codec=fp16", "aws.instance_type=c7g.large", "peers=8",
    ])  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("", {"peers": 2, "exchange.codec": "none"}),
        ("# nothing yet\n[compute]\nthreads = 1 # one\n", {"peers": 2, "compute.threads": 2}),
        ('compute = { service = "local" }\n', {"compute.service": "lambda", "compute.memory_mb": 885}),
        ('exchange.codec = "none" # plain\n', {"exchange.codec": "qsgd4", "aws.express": True}),
        ('[aws]\nname = "mine"\n\n# the end\n', {"aws.express": True, "compute.memory_mb": 885}),
    ],
)
def test_other_forms_of_the_same(text: str, changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(text)
    apply(path, changes)
    config = from_toml(path).model_dump()
    for key, value in changes.items():
        held = config
        for part in key.split("."):
            held = held[part]
        assert held == value
    for comment in ("# nothing yet", "# one", "# plain", "# the end", 'name = "mine"'):
        assert (comment in text) == (comment in path.read_text())


def test_nothing_to_change() -> None:
    assert applied(EXAMPLE.read_text(), {}) == EXAMPLE.read_text()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text("peers = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        apply(path, {"peers": 2})
    with pytest.raises(ConfigError, match="compute is a value"):
        applied("compute = 3\n", {"compute.memory_mb": 885})
    path.write_text("peers = 4\n")
    with pytest.raises(ConfigError, match="peers"):
        apply(path, {"peers": 0})
    assert path.read_text() == "peers = 4\n"
