"""Whether a world gives the rewards of the game, and ends when it does.

Up to a horizon a start counts that either has so many steps after it, or whose game ended before by itself: of games
that were cut nobody knows. Rewards are compared from the start to the horizon, or to the end of the game.

Shape legend: S starts, T steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.data.token_clips import arriving_rewards, reward_classes
from playserve_trainer.worlds.judged import Judged

__all__ = ["outcomes"]


def outcomes(judged: Judged, horizon: int) -> dict[str, Any]:
    """Return "reward" and "end" up to a horizon; see :func:`_reward` and :func:`_end`."""
    cache = judged.subject.cache
    steps_S = np.array([start.steps for start in judged.starts])
    ends_S = cache.terminated_E[[start.episode for start in judged.starts]]
    known_S = (steps_S >= horizon) | ends_S
    upto_S = np.minimum(steps_S, horizon)
    step_T = np.arange(1, judged.measured.dreamed_reward.shape[1] + 1)
    there_ST = (step_T <= upto_S[:, None]) & known_S[:, None]
    ended_S = ends_S & (steps_S <= horizon)
    return {"reward": _reward(judged, there_ST, known_S), "end": _end(judged, there_ST, known_S, ended_S)}


def _reward(judged: Judged, there_ST: NDArray[np.bool_], known_S: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what is said of rewards up to a horizon.

    "steps": share of steps whose class of reward is right, of the world and of always 0. "sum_error": mean absolute
    error of the sum, of the world and of 0. "real_sum", "dreamed_sum": means. "found": share of the rewarded steps at
    which the world rewards, too, with the same sign; "true": share of the steps at which the world rewards where the
    game does, too, with the same sign.
    """
    cache, values = judged.subject.cache, judged.subject.world.config.reward_values
    first_S = np.array([cache.starts_E[start.episode] + start.frame for start in judged.starts])
    place_ST = np.minimum(first_S[:, None] + 1 + np.arange(there_ST.shape[1]), cache.num_frames - 1)
    real_ST = np.where(there_ST, arriving_rewards(cache)[place_ST], 0.0)
    dream_ST = np.where(there_ST, judged.measured.dreamed_reward, 0.0)
    classes = [
        reward_classes(of.ravel(), values).reshape(of.shape) for of in (real_ST, dream_ST, np.zeros_like(real_ST))
    ]
    same_ST = (np.sign(real_ST) == np.sign(dream_ST)) & there_ST
    sums = {name: np.where(known_S, of.sum(1), np.nan) for name, of in (("real", real_ST), ("dream", dream_ST))}
    return {
        "steps": {
            "dream": judged.summary(_share(classes[0] == classes[1], there_ST)),
            "nothing": judged.summary(_share(classes[0] == classes[2], there_ST)),
        },
        "sum_error": {
            "dream": judged.summary(np.abs(sums["dream"] - sums["real"])),
            "nothing": judged.summary(np.abs(sums["real"])),
        },
        "real_sum": judged.summary(sums["real"]),
        "dreamed_sum": judged.summary(sums["dream"]),
        "found": judged.summary(_share(same_ST, real_ST != 0)),
        "true": judged.summary(_share(same_ST, dream_ST != 0)),
    }


def _end(
    judged: Judged, there_ST: NDArray[np.bool_], known_S: NDArray[np.bool_], ended_S: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return what is said of ends up to a horizon.

    "agree": share of starts after which the world says by then that the game is over, if and only if it is; "never":
    the same of saying that it never is. "real", "dreamed": shares of starts with an end. "found": share of the real
    ends by which the world has said so.
    """
    said_S: NDArray[np.bool_] = np.any(judged.measured.dreamed_end & there_ST, axis=1)

    def of(values_S: NDArray[np.bool_], among_S: NDArray[np.bool_] = known_S) -> dict[str, Any] | None:
        return judged.summary(np.where(among_S, values_S.astype(np.float64), np.nan))

    return {
        "agree": of(np.equal(said_S, ended_S)), "never": of(~ended_S), "real": of(ended_S), "dreamed": of(said_S),
        "found": of(said_S, known_S & ended_S),
    }  # fmt: skip


def _share(right_ST: NDArray[np.bool_], among_ST: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of some steps of each start that are right, float64 [S]; nan where there are none."""
    count_S = among_ST.sum(1)
    right_S = (right_ST & among_ST).sum(1).astype(np.float64)
    shares_S: NDArray[np.float64] = np.divide(right_S, count_S, out=np.full(len(count_S), np.nan), where=count_S > 0)
    return shares_S
