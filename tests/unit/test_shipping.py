"""The user's own code: what is shipped, under which name, and what is refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from contract.config import CodeConfig, RunConfig
from contract.errors import CodeError, ConfigError
from peerless.launch import shipping


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


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("caf\udce9.npz", "'/base/caf.udce9.npz': in this locale"), ("~nobody-of-that-name/x.npz", "no such user's home")],
)
def test_a_path_that_cannot_be_kept_is_a_mistake(path: str, sentence: str) -> None:
    config = RunConfig()
    odd = config.model_copy(update={"init_from": path})
    with pytest.raises(ConfigError, match=sentence):
        shipping.resolve_paths(odd, Path("/base"))


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


def test_a_class_of_a_namespace_package_is_shipped_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loose_pkg" / "deep").mkdir(parents=True)
    (tmp_path / "loose_pkg" / "deep" / "nets.py").write_text("class Net: ...\n")
    (tmp_path / "loose_net.py").write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    inside = importlib.import_module("loose_pkg.deep.nets").Net
    assert shipping.import_name(inside, tmp_path) == ("loose_pkg.deep.nets:Net", tmp_path / "loose_pkg")
    alone = importlib.import_module("loose_net").Net
    assert shipping.import_name(alone, tmp_path) == ("loose_net:Net", tmp_path / "loose_net.py")


def test_a_file_that_changed_since_it_was_imported_is_imported_as_peers_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_net.py"
    file.write_text("width = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = importlib.import_module("edited_net")
    file.write_text("width = 200\n")
    with shipping.importable(CodeConfig(include=(str(file),))):
        assert importlib.import_module("edited_net").width == 200
    assert sys.modules["edited_net"] is before, "what the script imported stays its own"
    del sys.modules["edited_net"]
    with shipping.importable(CodeConfig(include=(str(file),))):
        importlib.import_module("edited_net")
    assert "edited_net" not in sys.modules


class Notebook:
    """What is asked of IPython's shell: the cells as they were typed, and how they become Python."""

    class input_transformer_manager:
        @staticmethod
        def transform_cell(cell: str) -> str:
            return cell.replace("%matplotlib inline", "get_ipython().run_line_magic('matplotlib', 'inline')")

    def __init__(self, *cells: str) -> None:
        self.user_ns = {"In": ["", *cells]}


def in_notebook(monkeypatch: pytest.MonkeyPatch, *cells: str) -> type:
    """The class `Net` as a notebook with these cells holds it."""
    main = ModuleType("__main__")
    main.get_ipython = lambda: Notebook(*cells)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)
    return type("Net", (), {"__module__": "__main__"})


def test_a_notebooks_class_becomes_a_module_of_its_own_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ["%matplotlib inline\nimport math", "class Net:\n    area = math.pi", "Net().area", "!ls"]
    net = in_notebook(monkeypatch, *cells)
    name, file = shipping.import_name(net, tmp_path)
    assert file is not None
    assert name == f"{file.stem}:Net"
    assert file.read_text() == "import math\n\nclass Net:\n    area = math.pi\n"
    net = in_notebook(monkeypatch, *cells, "class Net:\n    area = 4")
    changed, _ = shipping.import_name(net, tmp_path)
    assert changed != name, "or the first one, which Python has imported, would be taken again"


def test_a_class_typed_at_a_prompt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = in_notebook(monkeypatch)
    monkeypatch.delattr(sys.modules["__main__"], "get_ipython")
    with pytest.raises(CodeError, match="typed at a prompt"):
        shipping.import_name(net, tmp_path)
