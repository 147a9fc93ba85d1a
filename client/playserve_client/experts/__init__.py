"""Scripted experts: they read the emulator's RAM, which the agents that learn from them never see."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError

__all__ = ["EXPERTS", "Expert", "make_expert"]

#: Where each game's expert is; imported when it is asked for.
EXPERTS: dict[str, str] = {
    "breakout": "playserve_client.experts.breakout:BreakoutExpert",
    "freeway": "playserve_client.experts.freeway:FreewayExpert",
    "pong": "playserve_client.experts.pong:PongExpert",
}


class Expert(Protocol):
    """A player that knows the inside of the game.

    Attributes:
        name: Written into recordings.
        version: Raised with every change of behaviour.
    """

    name: str
    version: str

    def reset(self) -> None:
        """Forget the last episode."""

    def act(self, ram: NDArray[np.uint8]) -> int:
        """Return an index of the game's minimal action set for `ram`, uint8 [128]."""

    def serving(self, ram: NDArray[np.uint8]) -> bool:
        """Return whether the game waits for the expert, and nothing is lost by letting it wait."""


def make_expert(game: str) -> Expert:
    """Return a new expert of the Atari game `game`."""
    if game not in EXPERTS:
        raise BadSettingError(f"there is no expert for {game!r}; there are experts for {', '.join(EXPERTS)}")
    module, _, name = EXPERTS[game].partition(":")
    return cast("Expert", getattr(importlib.import_module(module), name)())
