"""Games for reinforcement learning: the observation says which action pays, at once or from the episode's begin on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

LENGTH = 8
ACTIONS = 3


class Bandit(gymnasium.Env):
    """Eight steps an episode; the lit field of the observation is the action that pays 1.

    Args:
        name: Ignored; a study's task.
        crash: A file; while it is there, the process that steps dies.
        lives: Lives; one is lost after four steps.
    """

    def __init__(self, name: str = "", *, crash: str = "", lives: int = 0) -> None:
        self._crash, self._all_lives = crash, lives
        self.observation_space: Any = gymnasium.spaces.Box(0, 255, (ACTIONS,), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._rng, self._t = np.random.default_rng(seed), 0
        return self._show(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._crash and Path(self._crash).exists():
            os._exit(3)
        reward = float(int(action) == self._lit)
        self._t += 1
        return self._show(), reward, self._t >= LENGTH, False, {}

    def lives(self) -> int:
        return max(0, self._all_lives - self._t // 4)

    def _show(self) -> Any:
        self._lit = int(self._rng.integers(ACTIONS))
        frame = np.zeros(ACTIONS, np.uint8)
        frame[self._lit] = 255
        return frame
