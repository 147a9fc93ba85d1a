"""The recipe of each family, by name: what `train` and grids can train."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from playserve.errors import BadSettingError
from playserve_trainer.recipes import Recipe, atari, char, nethack, p2p, tokenizer, worlds

__all__ = ["RECIPES", "recipe_of"]

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "atari": atari,
        "bc-cnn": worlds.BC_CNN,
        "bc-token": worlds.BC_TOKEN,
        "char": char,
        "nethack": nethack,
        "p2p": p2p,
        "tokenizer": tokenizer,
        "wm-token": worlds.WM_TOKEN,
    }
)


def recipe_of(family: str) -> Recipe:
    """Return the recipe of a family.

    Raises:
        BadSettingError: There is none.
    """
    if family not in RECIPES:
        raise BadSettingError(f"family is one of {', '.join(RECIPES)}, not {family!r}")
    return RECIPES[family]
