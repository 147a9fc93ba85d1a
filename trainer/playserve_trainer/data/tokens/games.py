"""What a cache is made of: recorded games, whatever they were recorded in, as episodes with their frames.

Shape legend: N frames of an episode, H, W, C of a frame, A numbers of an action, P probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNKNOWN", "GameEpisode", "GameSource"]

#: Stands in actions where nothing was executed, or where nobody knows what was, or what the expert wanted.
UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class GameEpisode:
    """One recorded episode.

    Attributes:
        name: Unique in its data.
        seed: Of the episode; -1: unknown.
        place: Between 0 and 1, decides its side of the split (:func:`playserve_trainer.data.split.split_hash`);
            episodes of one recording share it.
        frames_NHWC: uint8, as the tokenizer wants them.
        executed_NA: int32, the action that was executed upon each frame, UNKNOWN where there was none.
        labels_NA: int32, the expert's action upon each frame, UNKNOWN where there is none to learn.
        reward_N: float32, what the action upon each frame brought.
        terminated: Whether the game ended by itself, with the last frame or by what was done upon it.
        probes_NP: float32, inner state at each frame that no learner may see.
    """

    name: str
    seed: int
    place: float
    frames_NHWC: NDArray[np.uint8]
    executed_NA: NDArray[np.int32]
    labels_NA: NDArray[np.int32]
    reward_N: NDArray[np.float32]
    terminated: bool
    probes_NP: NDArray[np.float32]


class GameSource(Protocol):
    """Recorded games, in units that are read whole: an episode's file, or a recording of several episodes."""

    @property
    def digest(self) -> str:
        """Digest of the data: the same data, read in the same way, the same digest."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """H, W, C of the frames."""

    @property
    def probe_names(self) -> tuple[str, ...]:
        """Name of each probe, [P]."""

    @property
    def action(self) -> Mapping[str, Any]:
        """What the numbers of an action mean, a JSON object; see :class:`..tokens.cache.TokenCache`."""

    @property
    def game(self) -> Mapping[str, Any]:
        """What is played, a JSON object: "game", "rate_hz" (0: turn based), "frame_skip", and what else there is."""

    def __len__(self) -> int:
        """Return the number of units."""

    def read(self, unit: int) -> Sequence[GameEpisode]:
        """Return the episodes of a unit; safe to ask from several threads.

        Raises:
            PlayserveError: The unit is damaged; the message names it.
        """
