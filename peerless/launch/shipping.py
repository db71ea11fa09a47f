"""The user's own code on its way to peers and workers: `[code] include` becomes a folder, named by its digest.

The folder is put on the import path of every peer and worker; on AWS it goes into their images. Nothing is pickled:
what cannot be imported by name from shipped files cannot be shipped.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from contract.code import code_digest
from contract.config import CodeConfig, RunConfig
from contract.errors import CodeError, ConfigError
from peerless.launch.definitions import extract

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".venv", ".ipynb_checkpoints")


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """Make the paths in a configuration absolute; relative ones start from `base`, the configuration's folder.

    Raises ConfigError for a path that no configuration file can hold.
    """

    def absolute(path: str) -> str:
        if not path:
            return ""
        try:
            found = str((base / Path(path).expanduser()).resolve())
        except RuntimeError as error:
            raise ConfigError(f"{path}: there is no such user's home folder") from error
        try:
            found.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{found!a}: in this locale the path is not text; set LC_ALL=C.UTF-8, or move the files"
            ) from error
        return found

    data = config.data.model_copy(
        update={"path": absolute(config.data.path), "test_path": absolute(config.data.test_path)}
    )
    code = config.code.model_copy(update={"include": tuple(absolute(item) for item in config.code.include)})
    cost = config.cost.model_copy(update={"prices": absolute(config.cost.prices)})
    return config.model_copy(update={"data": data, "code": code, "cost": cost, "init_from": absolute(config.init_from)})


def check(code: CodeConfig) -> None:
    """Raise CodeError for a file that is missing, two of one name, or a requirement that this environment lacks."""
    names: set[str] = set()
    for item in code.include:
        if not Path(item).exists():
            raise CodeError(f"code.include: {item} does not exist")
        if Path(item).name in names:
            raise CodeError(f"code.include: two items are named {Path(item).name}; their copies would collide")
        names.add(Path(item).name)
    check_requirements(code.requirements)


@contextmanager
def importable(code: CodeConfig) -> Iterator[None]:
    """Put the included items on the import path for a while, as peers and workers will have them.

    Modules that were imported from them before are set aside: peers import what the files say now, and so must we.
    """
    folders = list(dict.fromkeys(str(Path(item).parent) for item in code.include))
    before, aside = list(sys.path), _take_modules(code)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        _take_modules(code)
        sys.modules.update(aside)


def _take_modules(code: CodeConfig) -> dict[str, ModuleType]:
    """Remove the imported modules of the included items from Python's list; returns them by name."""
    items = {Path(item).stem: Path(item).resolve() for item in code.include}
    taken = {}
    for name, module in list(sys.modules.items()):
        item, file = items.get(name.partition(".")[0]), getattr(module, "__file__", None)
        if item is not None and file and Path(file).resolve().is_relative_to(item):
            taken[name] = sys.modules.pop(name)
    return taken


def bundle(code: CodeConfig, folder: Path) -> tuple[CodeConfig, str]:
    """Copy the included files and folders into `folder`; return the section that names the copies, and the digest.

    Without own code the digest is "" and no folder is made. Raises CodeError.
    """
    if not code.include:
        return code, ""
    copies = []
    for item in code.include:
        source, target = Path(item), folder.resolve() / Path(item).name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=_IGNORED)
            else:
                shutil.copyfile(source, target)
        except (OSError, shutil.Error) as error:
            raise CodeError(f"code.include: {item} cannot be copied to {target} ({error})") from error
        copies.append(str(target))
    return code.model_copy(update={"include": tuple(copies)}), code_digest(folder)


def check_requirements(requirements: tuple[str, ...]) -> None:
    """Raise CodeError for a requirement that this environment lacks: peers and workers of a local run share it."""
    for requirement in requirements:
        name = re.split(r"[\s<>=!~;\[@]", requirement.strip(), maxsplit=1)[0]
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise CodeError(
                f"code.requirements: {requirement} is missing; run: {sys.executable} -m pip install '{requirement}'"
            ) from error
        exact = re.search(r"==\s*([^\s,;]+)", requirement)
        if exact and exact[1] != installed and not installed.startswith(f"{exact[1]}+"):
            raise CodeError(
                f"code.requirements: {requirement} is asked for, but {installed} is installed; "
                f"run: {sys.executable} -m pip install '{requirement}'"
            )


def import_name(builder: Callable[..., Any], folder: Path) -> tuple[str, Path | None]:
    """Name a model class or function as `module:attribute`, with the file or package to ship (None: it is installed).

    What a script or notebook defines itself is written to a module in `folder` first. Raises CodeError for what no
    other process can import: lambdas and nested functions.
    """
    name = getattr(builder, "__qualname__", "")
    if not name or "<" in name:
        raise CodeError(
            "model: peers import the model by name, so pass a class or a function of a module, not a lambda"
        )
    module = builder.__module__
    if module == "__main__":
        source = extract(_main_source(), name.partition(".")[0]).encode()
        # Named by its content, because a notebook trains again after a change, and Python imports a name but once.
        file = folder / f"peerless_main_{hashlib.sha256(source).hexdigest()[:12]}.py"
        file.write_bytes(source)
        return f"{file.stem}:{name}", file
    try:
        file = Path(inspect.getfile(builder)).resolve()
    except (TypeError, OSError) as error:
        raise CodeError(f"model: {module}.{name} has no source file; put it into a .py file") from error
    if "site-packages" in file.parts or file.is_relative_to(Path(sys.base_prefix).resolve()):
        return f"{module}:{name}", None
    return f"{module}:{name}", _top(module, file)


def _top(module: str, file: Path) -> Path:
    """The outermost package of a module, regular or namespace, or the module's own file where it is in none."""
    above = module.count(".") - (file.name != "__init__.py")
    top = file.parents[above] if above >= 0 else file
    return top if top.stem == module.split(".")[0] else file


def _main_source() -> list[str]:
    """The source of the running script, or of the notebook's executed cells in order."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file and Path(file).exists():
        return [Path(file).read_text(encoding="utf-8")]
    shell = getattr(main, "get_ipython", None)
    if shell is None:
        raise CodeError("model: what is typed at a prompt has no source; put the model into a .py file and import it")
    interpreter = shell()
    return [interpreter.input_transformer_manager.transform_cell(cell) for cell in interpreter.user_ns["In"]]
