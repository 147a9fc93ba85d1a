"""Small tokenizers, and a small source of games whose frames show where a square is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError
from playserve.specs import DiscreteActionSpec
from playserve_client.nethack.keys import KEY_TO_ACTION
from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.tty import TtyChunk
from playserve_trainer.data.split import split_hash
from playserve_trainer.data.tokens.games import UNKNOWN, GameEpisode
from playserve_trainer.models.tokenizer import TokenizerConfig, VQTokenizer
from playserve_trainer.models.tokenizer.actions import action_spec_to_json

SIDE = 16
MONK = "mon-hum-neu-mal"


def tiny_tokenizer(**settings: Any) -> VQTokenizer:
    """Return a freshly initialised tokenizer of 16 x 16 grey frames, 4 tokens of 8 codes."""
    values = {"height": SIDE, "width": SIDE, "channels": 1, "tokens": 4, "codes": 8, "code_width": 4, "filters": 8}
    return VQTokenizer(TokenizerConfig(**{**values, "decoder_filters": 8, **settings}))


def square_frames(places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return frames uint8 [N, 16, 16, 1] with a bright 4 x 4 square in one of 16 places each."""
    frames = np.zeros((len(places), SIDE, SIDE, 1), np.uint8)
    for frame, place in zip(frames, places, strict=True):
        row, column = 4 * (place // 4), 4 * (place % 4)
        frame[row : row + 4, column : column + 4] = 200
    return frames


class SquareGames:
    """A GameSource: one episode a unit, of the lengths given; `broken` units are damaged."""

    frame_shape = (SIDE, SIDE, 1)
    probe_names = ("row", "column", "still")
    game: Mapping[str, Any] = {"env": "toy", "game": "squares", "rate_hz": 10.0, "frame_skip": 1}
    action: Mapping[str, Any] = {"spec": action_spec_to_json(DiscreteActionSpec(n=4)), "heads": [4]}

    def __init__(self, lengths: Sequence[int], broken: Sequence[int] = (), digest: str = "squares") -> None:
        self.lengths, self.broken, self.digest = tuple(lengths), tuple(broken), digest

    def __len__(self) -> int:
        return len(self.lengths)

    def places(self, unit: int) -> NDArray[np.int64]:
        """Return where the square is in each frame of an episode."""
        return np.random.default_rng([7, unit]).integers(0, 16, self.lengths[unit])

    def read(self, unit: int) -> Sequence[GameEpisode]:
        if unit in self.broken:
            raise DataLossError(f"unit {unit} is broken")
        places, steps = self.places(unit), np.arange(self.lengths[unit])
        executed = (steps % 4).astype(np.int32)[:, None]
        executed[-1] = UNKNOWN
        probes = np.stack([places // 4, places % 4, np.zeros_like(places)], 1).astype(np.float32)
        return [
            GameEpisode(
                name=f"episode-{unit}",
                seed=unit,
                place=split_hash("toy", "squares", unit),
                frames_NHWC=square_frames(places),
                executed_NA=executed,
                labels_NA=executed[::-1].copy(),
                reward_N=steps.astype(np.float32),
                terminated=unit % 2 == 0,
                probes_NP=probes,
            )
        ]


def nethack_shards(folder: Path, seeds: range = range(3)) -> dict[int, TtyChunk]:
    """Write random NetHack games into shards; return them by seed. The first one ends by itself."""
    games = {seed: _nethack_game(seed, 20 + 3 * seed) for seed in seeds}
    with ShardWriter(folder, max_shard_bytes=1 << 30, keyframe_every=16) as writer:
        for seed, game in games.items():
            end = "" if seed else "killed by a newt"
            writer.begin(GameMeta(name=f"{seed}", character=MONK, source="test", score=0, steps=1, seed=seed, end=end))
            writer.append(game)
            writer.end()
    return games


def _nethack_game(seed: int, frames: int) -> TtyChunk:
    rng = np.random.default_rng(seed)
    expert = np.ones(frames, np.bool_)
    expert[-2:] = False
    return TtyChunk(
        rng.integers(32, 127, (frames, 24, 80), np.uint8),
        rng.integers(0, 32, (frames, 24, 80), np.int8),
        rng.integers(4, 20, (frames, 2)).astype(np.uint8),
        rng.choice(np.flatnonzero(KEY_TO_ACTION >= 0), frames).astype(np.uint8),
        np.arange(frames, dtype=np.int32) ** 2,
        expert,
    )
