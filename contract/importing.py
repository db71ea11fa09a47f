"""The user's own callables by name: `package.module:callable`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from contract.errors import ModelError


def imported(name: str, what: str) -> Callable[..., Any]:
    """Import `package.module:callable`; the part after the colon may be dotted. `what` names its purpose in the
    ModelError."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{what} {name!r} is not of the form package.module:callable")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        where = "" if module_name == missing else f" (importing {module_name})"
        raise ModelError(
            f"{what} {name}: there is no module named {missing}{where}; own code needs to be listed in code.include, "
            "its packages in code.requirements"
        ) from error
    except Exception as error:
        raise ModelError(f"{what} {name}: importing {module_name} failed: {told(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelError(f"{what} {name}: {module_name} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{what} {name}: {attribute} is {type(found).__name__}, which cannot be called")
    result: Callable[..., Any] = found
    return result


def told(error: Exception) -> str:
    """An exception of somebody else's code as a clause: its class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
