"""The recipe of each family, by name: what `train` and grids can train."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from playserve.errors import BadSettingError
from playserve_trainer.recipes import Recipe, atari, nethack, p2p

__all__ = ["RECIPES", "recipe_of"]

RECIPES: Mapping[str, Recipe] = MappingProxyType({"atari": atari, "nethack": nethack, "p2p": p2p})


def recipe_of(family: str) -> Recipe:
    """Return the recipe of a family.

    Raises:
        BadSettingError: There is none.
    """
    if family not in RECIPES:
        raise BadSettingError(f"family is one of {', '.join(RECIPES)}, not {family!r}")
    return RECIPES[family]
