"""Doom's players that need no server: random keys and mouse, nothing at all, and the scripted experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve_client.doom.experts import make_expert
from playserve_client.doom.noise import RANDOM_HOLD_FRAMES, random_action
from playserve_client.doom.scenarios import Scenario, scenario_of

if TYPE_CHECKING:
    from playserve_client.envs.doom import DoomEnv
    from playserve_client.evaluate.players import Player

__all__ = ["make_doom_player"]


class _Random:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.reset(0)

    def reset(self, seed: int) -> None:
        self._rng, self._left = np.random.default_rng(seed), 0
        self._action = DesktopAction()

    def act(self, env: DoomEnv) -> DesktopAction:
        if not self._left:
            self._left, self._action = RANDOM_HOLD_FRAMES, random_action(self._scenario, self._rng)
        self._left -= 1
        return self._action


class _Idle:
    def reset(self, seed: int) -> None:
        pass

    def act(self, env: DoomEnv) -> DesktopAction:
        return DesktopAction()


class _Expert:
    def __init__(self, scenario: Scenario, goal: str | None) -> None:
        self._expert = make_expert(scenario, goal)

    def reset(self, seed: int) -> None:
        self._expert.reset()

    def act(self, env: DoomEnv) -> DesktopAction:
        return self._expert.act(env.view())


def make_doom_player(kind: str, scenario: str, goal: str | None) -> Player:
    """Return a new player: "random", "idle" or "expert" (which plays the goal that is asked for)."""
    found = scenario_of(scenario)
    if kind == "random":
        return _Random(found)
    if kind == "idle":
        return _Idle()
    if kind == "expert":
        return _Expert(found, goal)
    raise BadSettingError(f"there is no player {kind!r} of Doom")
