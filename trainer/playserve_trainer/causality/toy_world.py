"""The toy environment: an obstacle, a brake light that shows the last action, three inputs of noise.

A driver brakes if and only if there is an obstacle. The light is on where the driver braked a step ago, so that the
light predicts the action well (an obstacle stays for 40 steps on average) and causes nothing. Everything is one endless
stream of that driver; there are no episodes.

Shape legend: K steps, I = 5 inputs, R replicas (streams).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["APPEARS", "DISAPPEARS", "LIGHT_ONLY", "NUM_INPUTS", "OBSTACLE_ONLY", "Streams"]

#: Chance at each step that an obstacle comes where there is none.
APPEARS = 0.1
#: Chance at each step that it goes where there is one.
DISAPPEARS = 0.025
#: Obstacle, brake light, and noise.
NUM_INPUTS = 5
_NUM_NOISE = 3

#: What the metric compares: an obstacle and no light, and a light and no obstacle.
OBSTACLE_ONLY = (1.0, 0.0, 0.0, 0.0, 0.0)
LIGHT_ONLY = (0.0, 1.0, 0.0, 0.0, 0.0)

# Keeps streams apart from all else that is drawn of a seed.
_STREAM = 0x746F79


class Streams:
    """Endless streams of the driver, one a seed; each begins on a free road.

    Args:
        seeds: One a replica.
    """

    def __init__(self, seeds: tuple[int, ...]) -> None:
        self._rngs = [np.random.default_rng([_STREAM, seed]) for seed in seeds]
        self._obstacle_R = np.zeros(len(seeds), np.bool_)

    def next(self, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the next inputs [K, I, R] and what the driver did upon them [K, R], 1 where it braked."""
        uniform_KXR = np.stack([rng.random((steps, 1 + _NUM_NOISE)) for rng in self._rngs], axis=-1)
        before_R = self._obstacle_R
        obstacle_KR = obstacles(uniform_KXR[:, 0], before_R)
        light_KR = np.concatenate([before_R[None], obstacle_KR[:-1]])
        self._obstacle_R = obstacle_KR[-1]
        inputs_KIR = np.concatenate([obstacle_KR[:, None], light_KR[:, None], uniform_KXR[:, 1:]], axis=1)
        return inputs_KIR, obstacle_KR.astype(np.float64)


def obstacles(uniform_KR: NDArray[np.float64], before_R: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether there is an obstacle at each step [K, R], from a uniform draw for each and how it was before.

    A draw below :data:`DISAPPEARS` turns the road over either way, one below :data:`APPEARS` puts an obstacle there
    whatever was before, any other leaves it. So the state is what the last "puts" made of it, turned over as often as
    was drawn since: no loop over the steps.
    """
    turns_KR = uniform_KR < DISAPPEARS
    puts_KR = (uniform_KR < APPEARS) & ~turns_KR
    turns_so_far_KR = np.cumsum(turns_KR, axis=0)
    # 1 + the last step that put an obstacle there, 0: none did.
    last_KR = np.maximum.accumulate(np.where(puts_KR, np.arange(1, len(puts_KR) + 1)[:, None], 0), axis=0)
    at_last_KR = np.take_along_axis(np.concatenate([np.zeros_like(turns_so_far_KR[:1]), turns_so_far_KR]), last_KR, 0)
    odd_KR = (turns_so_far_KR - at_last_KR) % 2 == 1
    found: NDArray[np.bool_] = np.where(last_KR > 0, True, before_R) ^ odd_KR
    return found
