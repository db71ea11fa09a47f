"""Frozen dataclasses to JSON and back, strictly.

What comes out of a bucket may be old, foreign or damaged, so nothing is guessed: an unknown field, a missing field, a
value of another type, a duplicate key, NaN or infinity is a `CorruptObject`. The bytes are canonical (sorted keys, no
spaces), so that two processes that write the same record write the same object.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, TypeVar

from contract.errors import CorruptObject, NonFiniteGradient

T = TypeVar("T")


def dumps(value: Any) -> bytes:
    """Canonical JSON. Raises NonFiniteGradient for NaN or infinity, which JSON cannot carry."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise NonFiniteGradient(f"a record cannot hold NaN or infinity: {error}") from error


def loads(blob: bytes | bytearray | memoryview | str, what: str) -> dict[str, Any]:
    """Parse one JSON object; `what` names it in the error. Raises CorruptObject."""
    try:
        text = blob if isinstance(blob, str) else bytes(blob).decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptObject(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptObject(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def to_dict(value: Any) -> Any:
    """Plain lists, dicts and scalars of a dataclass and everything in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], value: object, what: str) -> T:
    """Build a dataclass from the form of `to_dict`. Raises CorruptObject, naming the first field that does not fit."""
    if not isinstance(value, dict):
        raise CorruptObject(f"{what} is not a JSON object")
    hints = _hints(typing.cast(typing.Hashable, cls))
    for name in value:
        if name not in hints:
            raise CorruptObject(f"{what} holds the unknown field {name!r}")
    built = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in value:
            built[field.name] = _typed(hints[field.name], value[field.name], f"{what}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise CorruptObject(f"{what} lacks the field {field.name!r}")
    try:
        return cls(**built)
    except ValueError as error:
        raise CorruptObject(f"{what}: {error}") from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _typed(hint: Any, value: Any, what: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _typed(hint, value, what)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{what}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{what}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, what)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return value
    if hint in (int, str, bool) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise CorruptObject(f"{what} is {type(value).__name__}, expected {expected}")
