"""The user's own code: what is shipped, under which name, and what is refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from contract.config import CodeConfig, RunConfig
from contract.errors import CodeError
from peerless.launch import shipping

SCRIPT = """
from __future__ import annotations
import torch
WIDTH = 8
dataset = torch.zeros(3)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 2)
raise SystemExit("running the script again would train again")
"""


def test_a_scripts_definitions_become_a_module_that_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extracted_net.py").write_text(shipping.definitions([SCRIPT]))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("extracted_net")
    assert module.Net().layer.in_features == 8
    assert not hasattr(module, "dataset"), "only literal constants are kept"


def test_cells_that_failed_are_left_out_and_later_cells_win() -> None:
    source = shipping.definitions(["A = 1", "A = 2", "this is no python", "import math"])
    scope: dict[str, object] = {}
    exec(source, scope)  # noqa: S102 - the text under test
    assert scope["A"] == 2
    assert "math" in scope


def test_the_bundle_is_a_copy_with_a_digest_of_its_content(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    code = CodeConfig(include=(str(package),))
    copied, first = shipping.bundle(code, tmp_path / "run1")
    assert copied.include == (str(tmp_path / "run1" / "mine"),)
    assert sorted(path.name for path in (tmp_path / "run1").rglob("*")) == ["__init__.py", "mine"]
    (package / "__init__.py").write_text("x = 2")
    _, second = shipping.bundle(code, tmp_path / "run2")
    assert first != second


def test_no_own_code_makes_no_folder(tmp_path: Path) -> None:
    assert shipping.bundle(CodeConfig(), tmp_path / "code") == (CodeConfig(), "")
    assert not (tmp_path / "code").exists()


@pytest.mark.parametrize(
    ("include", "requirements", "named"),
    [
        (("missing.py",), (), "missing.py does not exist"),
        ((), ("no-such-package-here==1",), "no-such-package-here"),
        ((), ("numpy==0.0.1",), "numpy==0.0.1 is asked for"),
    ],
)
def test_what_cannot_be_shipped_is_named(include: tuple[str, ...], requirements: tuple[str, ...], named: str) -> None:
    with pytest.raises(CodeError, match=named):
        shipping.check(CodeConfig(include=include, requirements=requirements))


def test_two_items_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").touch()
    items = (str(tmp_path / "a" / "model.py"), str(tmp_path / "b" / "model.py"))
    with pytest.raises(CodeError, match=r"two items are named model\.py"):
        shipping.check(CodeConfig(include=items))


def test_a_class_of_a_package_is_named_with_the_package_to_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shipped_pkg"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "deep" / "__init__.py").touch()
    (package / "deep" / "nets.py").write_text("class Net: ...\nmake = lambda: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    nets = importlib.import_module("shipped_pkg.deep.nets")
    assert shipping.import_name(nets.Net, tmp_path) == ("shipped_pkg.deep.nets:Net", package)
    with pytest.raises(CodeError, match="not a lambda"):
        shipping.import_name(nets.make, tmp_path)
    sys.modules.pop("shipped_pkg.deep.nets")


def test_an_installed_class_needs_no_shipping(tmp_path: Path) -> None:
    import torch

    assert shipping.import_name(torch.nn.Linear, tmp_path) == ("torch.nn.modules.linear:Linear", None)


def test_relative_paths_start_at_the_configuration(tmp_path: Path) -> None:
    config = RunConfig(init_from="w.safetensors", code=CodeConfig(include=("src",)))
    resolved = shipping.resolve_paths(config, tmp_path)
    assert resolved.init_from == str(tmp_path / "w.safetensors")
    assert resolved.code.include == (str(tmp_path / "src"),)
    assert resolved.data.path == ""
