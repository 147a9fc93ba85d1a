"""Frozen dataclasses from tables of TOML or JSON; a wrong key or value is an error that names what is known."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from playserve.errors import BadSettingError

__all__ = ["merged", "parse", "to_json"]

T = TypeVar("T")


def parse(cls: type[T], table: Any, where: str) -> T:
    """Return the dataclass of a table; nested dataclasses are nested tables, what is left out takes its default.

    Args:
        cls: A dataclass whose fields are bool, int, float, str, None, tuples and mappings of them, or dataclasses.
        table: What was read.
        where: Names the table in errors.

    Raises:
        BadSettingError: A key is unknown, missing or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    if not isinstance(table, Mapping):
        raise BadSettingError(f"{where} is a table of {', '.join(fields)}, not {table!r}")
    unknown = sorted(set(table) - set(fields))
    missing = [
        name
        for name, field in fields.items()
        if name not in table and field.default is MISSING and field.default_factory is MISSING
    ]
    if unknown or missing:
        raise BadSettingError(f"{where}: unknown {unknown}, missing {missing}; known are {', '.join(fields)}")
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], item, f"{where}.{name}") for name, item in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(get_args(hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise BadSettingError(f"{where} is a list, not {value!r}")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping or hint is Mapping:
        if not isinstance(value, Mapping):
            raise BadSettingError(f"{where} is a table, not {value!r}")
        inner = get_args(hint)[1] if get_args(hint) else Any
        return {str(key): _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return parse(cast(type[Any], hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)  # 3e12 is a float in TOML
    if hint is type(None) and value is None:
        return None
    if type(value) is not hint:
        raise BadSettingError(f"{where} is {hint.__name__}, not {value!r}")
    return value


def _one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    for hint in hints:
        if type(value) is hint:
            return value
    wanted = [hint for hint in hints if hint is not type(None)]
    if len(wanted) == 1:
        return _value(wanted[0], value, where)
    for hint in hints:
        try:
            return _value(hint, value, where)
        except BadSettingError:
            continue
    raise BadSettingError(f"{where} is {' or '.join(hint.__name__ for hint in hints)}, not {value!r}")


def to_json(value: Any) -> Any:
    """Return a dataclass of :func:`parse` as a JSON value, which `parse` reads again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables laid over each other: tables are merged, everything else of `above` replaces what is below."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        out[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return out
