"""Random play: the baseline of a table, and what perturbs an expert so that a learner sees how it recovers."""

from __future__ import annotations

import numpy as np

from playserve.actions import DesktopAction
from playserve_client.doom.scenarios import Scenario

__all__ = ["RANDOM_HOLD_FRAMES", "Perturbation", "random_action"]

#: A random player holds each action so long: 4 tics, the field's frame skip.
RANDOM_HOLD_FRAMES = 2
# 6 degrees a frame, about as the game's own turning keys do.
_TURN_PX = 24.0


def random_action(scenario: Scenario, rng: np.random.Generator, *, attack: bool = True) -> DesktopAction:
    """Return an action: each key and the button by a fair coin, a turn to the left, to the right, or none."""
    keys = frozenset(key for key in scenario.keys if rng.random() < 0.5)
    buttons = frozenset({0}) if scenario.attacks and rng.random() < 0.5 and attack else frozenset[int]()
    dx = float(rng.integers(-1, 2)) * _TURN_PX if scenario.turns else 0.0
    return DesktopAction(keys, buttons, dx)


class Perturbation:
    """Now and then plays at random for a few frames.

    Args:
        scenario: What is played.
        share: Of the frames that are perturbed.
        longest: Most frames for which one random action is held.
        rng: Draws.
        attack: Whether it may attack.
    """

    def __init__(
        self, scenario: Scenario, share: float, longest: int, rng: np.random.Generator, *, attack: bool = True
    ) -> None:
        self._scenario, self._rng, self._attack, self._longest = scenario, rng, attack, longest
        mean = (1 + longest) / 2
        # So that runs of `mean` frames, begun with this chance on each other frame, are `share` of all frames.
        self._chance = min(1.0, share / ((1 - share) * mean)) if share < 1 else 1.0
        self._left = 0
        self._action = DesktopAction()

    def next(self) -> DesktopAction | None:
        """Return what is executed instead of the expert's choice on this frame; None: the expert's."""
        if not self._left:
            if self._rng.random() >= self._chance:
                return None
            self._left = int(self._rng.integers(1, self._longest + 1))
            self._action = random_action(self._scenario, self._rng, attack=self._attack)
        self._left -= 1
        return self._action
