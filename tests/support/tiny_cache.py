"""A small token cache of made-up games, for tests of what is trained on caches.

A bright bar stands in one of four columns of a frame 16 x 16; the actions 1 and 2 move it, and the reward is 1 where it
comes to the last column. An episode ends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from playserve_trainer.data.tokens.cache import TokenCache, write_cache
from playserve_trainer.data.tokens.games import GameEpisode
from playserve_trainer.models.registry import build
from playserve_trainer.models.tokenizer import Tokenizer

__all__ = ["ACTION", "TOKENIZER", "Bars", "tiny_cache", "tiny_tokenizer"]

ACTIONS = 3
ACTION: Mapping[str, Any] = {"spec": {"discrete": {"n": ACTIONS, "names": ["NOOP", "LEFT", "RIGHT"]}}, "heads": [3]}
TOKENIZER: Mapping[str, Any] = {
    "family": "tokenizer",
    "config": {
        "height": 16, "width": 16, "channels": 1, "tokens": 4, "codes": 8, "filters": 4, "decoder_filters": 4,
        "game": "bars",
    },
}  # fmt: skip


def tiny_tokenizer(seed: int = 0) -> Tokenizer:
    """Return an untrained tokenizer: 4 tokens of 8 codes."""
    torch.manual_seed(seed)
    tokenizer = build(TOKENIZER["family"], TOKENIZER["config"])
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer.eval()


class Bars:
    """The games; a GameSource.

    Args:
        episodes: How many.
        frames: Most frames of each.
    """

    digest = "bars"
    frame_shape = (16, 16, 1)
    probe_names = ("column",)
    action = ACTION
    game: Mapping[str, Any] = {"game": "bars", "rate_hz": 20.0, "frame_skip": 1}

    def __init__(self, episodes: int = 12, frames: int = 40) -> None:
        self._episodes, self._frames = episodes, frames

    def __len__(self) -> int:
        return self._episodes

    def read(self, unit: int) -> Sequence[GameEpisode]:
        rng = np.random.default_rng(unit)
        columns, actions, rewards = [int(rng.integers(0, 3))], [], []
        while True:
            actions.append(int(rng.integers(0, ACTIONS)))
            column = int(np.clip(columns[-1] + (0, -1, 1)[actions[-1]], 0, 3))
            rewards.append(float(column == 3))
            if column == 3 or len(columns) == self._frames:
                break
            columns.append(column)
        frames = np.zeros((len(columns), 16, 16, 1), np.uint8)
        for number, column in enumerate(columns):
            frames[number, :, 4 * column : 4 * column + 4] = 255
        told = np.array(actions, np.int32)[:, None]
        return [
            GameEpisode(
                name=f"bars-{unit}", seed=unit, place=(unit * 7 % self._episodes) / self._episodes,
                frames_NHWC=frames, executed_NA=told, labels_NA=told, reward_N=np.array(rewards, np.float32),
                terminated=rewards[-1] > 0, probes_NP=np.array(columns, np.float32)[:, None],
            )
        ]  # fmt: skip


def tiny_cache(folder: Path, *, episodes: int = 12, frames: bool = True) -> TokenCache:
    """Write the cache of the games, with their frames, a quarter of them held out."""
    return write_cache(folder, Bars(episodes), tiny_tokenizer(), keep_frames=frames, held_out=0.25)
