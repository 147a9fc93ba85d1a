"""Environments by name: the families that playserve knows, and any Gymnasium environment by ``module:factory``.

Nothing is imported before it is asked for: a player's install has no emulators.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import gymnasium

from playserve.errors import BadSettingError

__all__ = ["FAMILIES", "load_factory", "make_env"]

#: Factory of each family, as ``module:factory``; it takes the game first, then the family's own options.
FAMILIES: dict[str, str] = {
    "atari": "playserve_client.envs.atari:AtariEnv",
    "doom": "playserve_client.envs.doom:DoomEnv",
    "nethack": "playserve_client.envs.nethack:NetHackEnv",
    "world": "playserve_client.envs.world:WorldEnv",
}

Env = gymnasium.Env[Any, Any]


def load_factory(path: str) -> Callable[..., Env]:
    """Return the callable that `path`, such as "my_game.env:make", names."""
    module_name, separator, attributes = path.partition(":")
    if not (separator and module_name and attributes):
        raise BadSettingError(f"environment {path!r} is not module:factory, such as my_game.env:make")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module lacks is theirs to see, with its traceback.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise BadSettingError(f"environment {path!r}: there is no module {error.name!r} on the Python path") from error
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    if not callable(found):
        raise BadSettingError(f"environment {path!r}: module {module_name!r} has no callable {attributes!r}")
    return cast("Callable[..., Env]", found)


def make_env(family: str, game: str = "", **options: Any) -> Env:
    """Return a new environment.

    Args:
        family: A name of :data:`FAMILIES`, or ``module:factory`` of a user's own Gymnasium environment.
        game: Game of the family; a user's factory gets it only where it is not empty.
        options: Passed on to the factory.
    """
    if ":" in family:
        return _checked(family, load_factory(family)(*([game] if game else []), **options))
    if family not in FAMILIES:
        raise BadSettingError(
            f"there is no environment family {family!r}; there are {', '.join(FAMILIES)}, or name your own as "
            "module:factory"
        )
    return load_factory(FAMILIES[family])(game, **options)


def _checked(path: str, env: Any) -> Env:
    if not (callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise BadSettingError(f"environment {path!r} made a {type(env).__name__}, which has no reset() and step()")
    return cast("Env", env)
