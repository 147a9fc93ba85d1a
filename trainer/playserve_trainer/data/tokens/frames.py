"""Batches of single frames for tokenizers, out of a cache that keeps them; their labels are their own pixels.

Shape legend: B rows, N frames, H, W, C of a frame, P = H * W * C.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.data.batches import Batch, ShuffledOrder
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.models.policy import UNKNOWN_ACTION
from playserve_trainer.models.tokenizer.base import FRAME

__all__ = ["ShuffledFrames", "evenly", "kept_frames", "place_statistics"]

# A place that hardly ever changes counts as if it changed by this many levels.
_LEAST_SPREAD = 4.0


def kept_frames(cache: TokenCache) -> NDArray[np.uint8]:
    """Return the frames uint8 [N, H, W, C] of a cache; BadSettingError where it keeps none."""
    if cache.frames is None:
        raise BadSettingError(
            f"the cache {cache.digest[:16]} keeps no frames: make one with `playserve data tokenize --frames`"
        )
    return cache.frames


class ShuffledFrames:
    """Single frames (T = 1) in random order, every frame once an epoch; a BatchSource.

    Inputs: `frame` uint8 [B, 1, H, W, C]; labels int16 [B, 1, P], the pixels.

    Args:
        cache: A cache that keeps its frames.
        chosen: Indices of the episodes to take from.
        batch_size: B.
        seed: Of the order.
        every: Every how many-th frame of the chosen ones is taken.
    """

    sequence_length = 1
    carries_state = False

    def __init__(
        self, cache: TokenCache, chosen: NDArray[np.int64], *, batch_size: int, seed: int, every: int = 1
    ) -> None:
        self._frames = kept_frames(cache)
        self._places = cache.frames_of(chosen)[::every]
        self._order = ShuffledOrder(len(self._places), batch_size, seed)
        self.batch_size = batch_size
        self.num_samples = len(self._places)

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        frames_BHWC = self._frames[self._places[self._order.items(index)]]
        rows = len(frames_BHWC)
        return Batch(
            {FRAME: torch.from_numpy(frames_BHWC).unsqueeze(1)},
            torch.full((rows, 1, 1), UNKNOWN_ACTION),
            torch.ones((rows, 1), dtype=torch.bool),
            torch.from_numpy(frames_BHWC.astype(np.int16)).view(rows, 1, -1),
            rows,
        )


def evenly(places: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of some places, evenly spread over them."""
    return places[:: max(1, -(-len(places) // most))]


def place_statistics(frames_NHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and spread of each place of some frames, float32 [H, W, C], in levels; no spread is near 0."""
    mean = frames_NHWC.mean(0, dtype=np.float64)
    spread = np.sqrt(np.maximum((frames_NHWC.astype(np.float32) ** 2).mean(0, dtype=np.float64) - mean**2, 0.0))
    return mean.astype(np.float32), np.maximum(spread, _LEAST_SPREAD).astype(np.float32)
