"""Where a world is let go: held-out frames, evenly drawn, each with the recorded frames before and after it.

Shape legend: B starts, T steps after the start, C frames that are given (the start is the last of them), N frames of
all episodes, K tokens of a frame, H numbers of an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.models.policy import UNKNOWN_ACTION

__all__ = ["Start", "Trail", "choose_starts", "trail_of"]


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        number: Among those chosen; decides what is drawn from it.
        episode: Index of its episode.
        frame: Of the episode, the last that is given.
        steps: Frames of the episode after it.
        other: Index of another held-out episode, which has frames of the same ages; -1: there is none.
    """

    number: int
    episode: int
    frame: int
    steps: int
    other: int


def choose_starts(cache: TokenCache, count: int, *, given: int, seed: int) -> list[Start]:
    """Return at most so many different starts, those with the most steps after them first.

    They are drawn evenly from the held-out frames that have `given` - 1 frames before them and one after them. So
    early and late moments and ends of games are in, and fewer starts than chosen have 100 steps after them.

    Args:
        cache: The games.
        count: How many.
        given: Frames that the world is given, the start included.
        seed: Of the draw.

    Raises:
        BadSettingError: No held-out episode has given + 1 frames.
    """
    rng = np.random.default_rng([seed, 0x737461])
    held = cache.select(held_out=True)
    lengths = cache.lengths_E[held]
    pairs = [(int(e), f) for e, length in zip(held, lengths, strict=True) for f in range(given - 1, int(length) - 1)]
    if not pairs:
        raise BadSettingError(f"no held-out episode has {given + 1} frames: {given} that are given, and one to predict")
    drawn = sorted(rng.choice(len(pairs), size=min(count, len(pairs)), replace=False).tolist())
    starts = []
    for number, (episode, frame) in enumerate(pairs[i] for i in drawn):
        others = held[(held != episode) & (lengths > frame + 1)]
        other = int(rng.choice(others)) if len(others) else -1
        steps = int(cache.lengths_E[episode]) - 1 - frame
        starts.append(Start(number, episode, frame, steps, other))
    return sorted(starts, key=lambda start: -start.steps)


@dataclass(frozen=True, slots=True)
class Trail:
    """What was recorded around some starts.

    Attributes:
        given_BC: int64, indices in the cache of the frames that are given.
        executed_BCH: int64, the action before each of them; UNKNOWN_ACTION before the first.
        place_BT: int64, indices of the frames after the start; of those behind the episode's end, its last frame's.
        there_BT: bool, whether there is a frame.
        acted_BTH: int64, the action before each frame after the start.
        other_BT: int64, indices of the frames of another episode at the same ages, the start's before them: [B, T + 1].
        other_there_BT: bool [B, T + 1].
    """

    given_BC: NDArray[np.int64]
    executed_BCH: NDArray[np.int64]
    place_BT: NDArray[np.int64]
    there_BT: NDArray[np.bool_]
    acted_BTH: NDArray[np.int64]
    other_BT: NDArray[np.int64]
    other_there_BT: NDArray[np.bool_]


def trail_of(cache: TokenCache, starts: Sequence[Start], *, given: int, steps: int) -> Trail:
    """Return what was recorded around some starts.

    Args:
        cache: The games.
        starts: From :func:`choose_starts` with the same `given`.
        given: C.
        steps: T.
    """
    episode_B = np.array([start.episode for start in starts])
    frame_B = np.array([start.frame for start in starts])
    begin_B1 = cache.starts_E[episode_B][:, None]
    given_BC = begin_B1 + frame_B[:, None] + np.arange(1 - given, 1)
    executed_BCH = cache.executed_NH[given_BC - 1].astype(np.int64)
    executed_BCH[:, 0] = UNKNOWN_ACTION  # what is before the first frame is not given
    age_BT = frame_B[:, None] + np.arange(1, steps + 1)
    place_BT, there_BT = _at(cache, episode_B, age_BT)
    other_B = np.array([start.other for start in starts])
    other_age_BT = frame_B[:, None] + np.arange(steps + 1)
    other_BT, other_there_BT = _at(cache, np.maximum(other_B, 0), other_age_BT)
    return Trail(
        given_BC=given_BC,
        executed_BCH=executed_BCH,
        place_BT=place_BT,
        there_BT=there_BT,
        acted_BTH=cache.executed_NH[place_BT - 1].astype(np.int64),
        other_BT=other_BT,
        other_there_BT=other_there_BT & (other_B >= 0)[:, None],
    )


def _at(
    cache: TokenCache, episode_B: NDArray[np.int64], age_BT: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    last_B1 = cache.lengths_E[episode_B][:, None] - 1
    return cache.starts_E[episode_B][:, None] + np.minimum(age_BT, last_B1), age_BT <= last_B1
