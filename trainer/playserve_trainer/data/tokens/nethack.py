"""NetHack games out of shards as games of a token cache: a game is a unit. Shape legend: N frames of a game."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.specs import DiscreteActionSpec
from playserve_client.nethack.keys import ACTION_NAMES, KEY_TO_ACTION, NUM_ACTIONS
from playserve_trainer.data.nethack import game_hash, load_nethack
from playserve_trainer.data.tokens.games import UNKNOWN, GameEpisode
from playserve_trainer.models.tokenizer.actions import action_spec_to_json
from playserve_trainer.models.tokenizer.nethack import crop_screens

__all__ = ["NetHackTokenGames"]

# Frames that are decoded at once: 4 MB of screens.
_CHUNK = 2048

# Games that went on after their last frame.
_NOT_OVER = ("", "stopped")


class NetHackTokenGames:
    """NetHack games with keys, as crops of their screens; a GameSource.

    Args:
        directory: Shards.
        crop: Rows and columns around the cursor; (24, 80): the whole screen.
        character: Only games of this character are taken; "@": all.

    Raises:
        NotFoundError: There is no shard, or no game of the character.
        NoKeysError: Games have no keys.
    """

    def __init__(self, directory: Path, *, crop: tuple[int, int] = (9, 9), character: str = "@") -> None:
        self._dataset = load_nethack(directory, held_out_fraction=0.0, character=character).dataset
        self._crop, self._character = crop, character
        self._actions = KEY_TO_ACTION.astype(np.int32)
        self.frame_shape = (*crop, 1)
        self.probe_names = ("score",)
        key = [self._dataset.digest, crop, self.probe_names]
        self.digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    @property
    def action(self) -> Mapping[str, Any]:
        """One number an action: its index among NetHackChallenge's."""
        spec = DiscreteActionSpec(n=NUM_ACTIONS, names=ACTION_NAMES)
        return {"spec": action_spec_to_json(spec), "heads": [NUM_ACTIONS]}

    @property
    def game(self) -> Mapping[str, Any]:
        """The game; it is turn based."""
        return {
            "env": "nethack", "game": "nethack", "character": self._character, "rate_hz": 0.0, "frame_skip": 1,
            "crop": list(self._crop), "resize_id": "",
        }  # fmt: skip

    def __len__(self) -> int:
        """Return the number of games."""
        return len(self._dataset.games)

    def read(self, unit: int) -> Sequence[GameEpisode]:
        """Return a game."""
        meta, frames = self._dataset.games[unit], int(self._dataset.lengths[unit])
        crops = [self._crops(unit, start, min(start + _CHUNK, frames)) for start in range(0, frames, _CHUNK)]
        expert_N = self._dataset.expert(unit)
        executed_N = self._actions[self._dataset.keys(unit)]
        scores_N = self._dataset.scores(unit).astype(np.float32)
        return [
            GameEpisode(
                name=meta.name,
                seed=UNKNOWN if meta.seed is None else meta.seed,
                place=game_hash(meta),
                frames_NHWC=np.concatenate(crops),
                executed_NA=executed_N[:, None],
                labels_NA=np.where(expert_N, executed_N, UNKNOWN).astype(np.int32)[:, None],
                reward_N=np.diff(scores_N, append=scores_N[-1:]).astype(np.float32),
                terminated=meta.end not in _NOT_OVER,
                probes_NP=scores_N[:, None],
            )
        ]

    def _crops(self, unit: int, start: int, stop: int) -> NDArray[np.uint8]:
        chunk = self._dataset.read(unit, start, stop)
        crops: NDArray[np.uint8] = crop_screens(
            torch.from_numpy(chunk.chars), torch.from_numpy(chunk.cursor), *self._crop
        ).numpy()
        return crops
