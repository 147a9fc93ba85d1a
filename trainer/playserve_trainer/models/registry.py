"""The families by name, and their configs as JSON. A new family is one line in :data:`FAMILIES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from playserve.errors import BadSettingError
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.gpt import (
    CharConfig,
    CharPolicy,
    CnnAgent,
    CnnAgentConfig,
    TokenAgent,
    TokenAgentConfig,
    WorldConfig,
    WorldPolicy,
)
from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy
from playserve_trainer.models.p2p import P2PConfig, P2PPolicy
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.models.tokenizer import (
    NetHackTokenizer,
    NetHackTokenizerConfig,
    TokenizerConfig,
    VQTokenizer,
)

__all__ = ["FAMILIES", "Family", "build", "config_from_json", "config_to_json", "describe"]


ConfigT = TypeVar("ConfigT")


class Family(NamedTuple):
    """A family's frozen config dataclass, and its policy class, which takes that config as its only argument."""

    config: type[Any]
    policy: Callable[[Any], Policy]


#: Every family that checkpoints may name.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "atari": Family(AtariConfig, AtariPolicy),
        "bc-cnn": Family(CnnAgentConfig, CnnAgent),
        "bc-token": Family(TokenAgentConfig, TokenAgent),
        "char": Family(CharConfig, CharPolicy),
        "nethack": Family(NetHackConfig, NetHackPolicy),
        "p2p": Family(P2PConfig, P2PPolicy),
        "tiny_recurrent": Family(TinyRecurrentConfig, TinyRecurrentPolicy),
        "tokenizer": Family(TokenizerConfig, VQTokenizer),
        "tokenizer-nethack": Family(NetHackTokenizerConfig, NetHackTokenizer),
        "wm-token": Family(WorldConfig, WorldPolicy),
    }
)


def build(family: str, config_json: Mapping[str, Any]) -> Policy:
    """Return a freshly initialised policy (torch's global generator draws its weights).

    Raises:
        BadSettingError: The family is unknown, or the config has an unknown, missing or ill-typed key.
    """
    entry = _family(family)
    return entry.policy(config_from_json(entry.config, config_json))


def describe(policy: Policy) -> tuple[str, dict[str, Any]]:
    """Return the family name and the config JSON from which :func:`build` makes a policy like this one."""
    for name, entry in FAMILIES.items():
        if type(policy) is entry.policy:
            return name, config_to_json(cast(Any, policy).config)
    raise BadSettingError(f"{type(policy).__name__} is the policy of no family: {', '.join(FAMILIES)}")


def config_to_json(config: Any) -> dict[str, Any]:
    """Return a family's config dataclass as a JSON object."""
    return {
        field.name: list(value) if isinstance(value := getattr(config, field.name), tuple) else value
        for field in dataclasses.fields(config)
    }


def config_from_json(cls: type[ConfigT], value: Mapping[str, Any]) -> ConfigT:
    """Return the frozen dataclass `cls` from a JSON object; what is left out takes its default.

    Raises:
        BadSettingError: A key is unknown, missing or of another type; all such keys are named.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(value) - set(fields))
    missing = [
        name
        for name, field in fields.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if unknown or missing:
        raise BadSettingError(
            f"{cls.__name__}: unknown keys {unknown}, missing keys {missing}; known are {', '.join(fields)}"
        )
    hints = get_type_hints(cls)
    return cls(**{name: _convert(f"{cls.__name__}.{name}", hints[name], item) for name, item in value.items()})


def _convert(where: str, hint: Any, value: Any) -> Any:
    """Return the JSON `value` as the type `hint`: bool, int, float, str, a tuple of one of them, or a mapping."""
    if get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise BadSettingError(f"{where}: {value!r} is not an object")
        item_hint = get_args(hint)[1]
        return {
            key: item if item_hint is Any else _convert(f"{where}.{key}", item_hint, item)
            for key, item in value.items()
        }
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise BadSettingError(f"{where}: {value!r} is not a list")
        return tuple(_convert(f"{where}[{i}]", get_args(hint)[0], item) for i, item in enumerate(value))
    # bool is an int to Python, and an integral float is written as an int by some JSON writers.
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise BadSettingError(f"{where}: {value!r} is {type(value).__name__}, not {hint.__name__}")
    return value


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise BadSettingError(f"family {name!r} is none of {', '.join(FAMILIES)}")
    return FAMILIES[name]
