"""What the settings of every kind of run check alike, and how they are kept as JSON. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from playserve.errors import BadSettingError

__all__ = ["check_at_least", "check_choices", "check_resumes", "settings_json"]

ConfigT = TypeVar("ConfigT")


def check_at_least(config: object, at_least: Mapping[str, float]) -> None:
    """Raise BadSettingError if a setting is below its least value, or is no number."""
    for name, least in at_least.items():
        if not getattr(config, name) >= least:
            raise BadSettingError(f"{name} is at least {least}, not {getattr(config, name)}")


def check_choices(config: object, choices: Mapping[str, Collection[str]]) -> None:
    """Raise BadSettingError if a setting is none of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise BadSettingError(f"{name} is one of {', '.join(known)}, not {getattr(config, name)!r}")


def check_resumes(config: ConfigT, before: ConfigT, free: Collection[str]) -> None:
    """Raise BadSettingError if a run begun with the settings `before` may not go on with `config`.

    Args:
        config: A dataclass.
        before: Another one of its kind.
        free: Settings that a resumed run may set anew.
    """
    changed = [
        f"{f.name} was {getattr(before, f.name)!r}, now {getattr(config, f.name)!r}"
        for f in dataclasses.fields(config)  # type: ignore[arg-type]  # it is one
        if f.name not in free and getattr(before, f.name) != getattr(config, f.name)
    ]
    if changed:
        raise BadSettingError(f"a resumed run keeps its settings, but {'; '.join(changed)}")


def settings_json(config: object) -> dict[str, Any]:
    """Return a JSON object with every setting of a dataclass."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
