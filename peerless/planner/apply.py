"""A plan written back into the configuration file, whose comments, order and everything else stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from contract.config import from_mapping, from_toml
from contract.errors import ConfigError, UserError


def applied(text: str, changes: Mapping[str, Any]) -> str:
    """`text`, TOML, with dotted keys set. A key that is not there is added to its section, a section at the end.

    Raises ConfigError where the text is not TOML, or a section is a value.
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    for key, value in changes.items():
        *path, last = key.split(".")
        table: Any = document
        for part in path:
            if part not in table:
                table[part] = tomlkit.table()
            table = table[part]
            if not isinstance(table, dict):
                raise ConfigError(f"{key} cannot be set: {part} is a value, not a table")
        if not path and last not in table:
            # Behind the last table's header it would belong to that table.
            text = f"{last} = {tomlkit.item(value).as_string()}\n" + tomlkit.dumps(document)
            document = tomlkit.parse(text)
        else:
            table[last] = value
    return tomlkit.dumps(document)


def apply(path: Path, changes: Mapping[str, Any]) -> None:
    """Write the changes into the file, whole or not at all, once the outcome is a valid configuration.

    Raises ConfigError, UserError.
    """
    wanted = from_toml(path, [f"{key}={tomlkit.item(value).as_string()}" for key, value in changes.items()])
    try:
        text = applied(path.read_text(encoding="utf-8"), changes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if from_mapping(tomlkit.parse(text).unwrap(), str(path)) != wanted:
        raise ConfigError(f"{path}: the plan cannot be written into this file; set {', '.join(changes)} by hand")
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: the plan cannot be written ({error.strerror})") from error
