"""Atari recordings as games of a token cache: an episode's file is a unit. Shape legend: N steps, H, W of a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.resize import AREA_V1, resize
from playserve.specs import DiscreteActionSpec
from playserve_client.recordings import EpisodeMeta, list_episodes, read_episode, read_meta
from playserve_trainer.data.split import split_hash
from playserve_trainer.data.tokens.games import GameEpisode
from playserve_trainer.models.tokenizer.actions import action_spec_to_json

__all__ = ["PROBES", "AtariGames"]

#: Bytes of RAM that say what is on the screen, by game and name; of other games every byte is a probe.
PROBES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "breakout": MappingProxyType({"ball_x": 99, "ball_y": 101, "paddle_x": 72, "score_low": 77}),
        "pong": MappingProxyType({"ball_x": 49, "ball_y": 54, "paddle_y": 51, "enemy_y": 50}),
        "freeway": MappingProxyType({"chicken_y": 14, **{f"car_{lane}": 108 + lane for lane in range(10)}}),
    }
)

_RAM = 128
_FRAMES_PER_S = 60


class AtariGames:
    """The recorded episodes of one game; a GameSource.

    Args:
        directory: Episodes of one game, in any depth.
        game: The game, in snake case.
        size: H and W of the frames; smaller than the recorded ones they are resized by area-v1.

    Raises:
        NotFoundError: There is no episode that can be read.
        BadSettingError: The episodes are of another game.
    """

    def __init__(self, directory: Path, game: str, *, size: tuple[int, int] = (84, 84)) -> None:
        self._directory, self._size = directory, size
        self._paths = list_episodes(directory)
        self._meta = self._first_meta()
        if (self._meta.env, self._meta.game) != ("atari", game):
            raise BadSettingError(f"{directory} holds {self._meta.env}/{self._meta.game}, not atari/{game}")
        self._probes = dict(PROBES.get(game) or {f"ram_{address:03d}": address for address in range(_RAM)})
        self.frame_shape = (*size, 1)
        self.probe_names = tuple(self._probes)
        self.digest = self._digest()

    @property
    def action(self) -> Mapping[str, Any]:
        """One number an action: the game's own index."""
        names = self._meta.action_names
        return {"spec": action_spec_to_json(DiscreteActionSpec(n=len(names), names=names)), "heads": [len(names)]}

    @property
    def game(self) -> Mapping[str, Any]:
        """The game and its protocol."""
        meta = self._meta
        return {
            "env": "atari", "game": meta.game, "rate_hz": _FRAMES_PER_S / meta.frame_skip,
            "frame_skip": meta.frame_skip, "stickiness": float(meta.stickiness), "resize_id": "",
        }  # fmt: skip

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._paths)

    def read(self, unit: int) -> Sequence[GameEpisode]:
        """Return the episode of a file; raises DataLossError where it is damaged, or does not fit the others."""
        path = self._paths[unit]
        try:
            episode = read_episode(path, arrays=("frames", "executed", "label", "reward", "probes"))
        except OSError as error:
            raise DataLossError(f"{path} cannot be read: {error}") from error
        meta = episode.meta
        mine = (self._meta.env, self._meta.game, self._meta.action_names, self._meta.frame_skip)
        if (meta.env, meta.game, meta.action_names, meta.frame_skip) != mine:
            raise DataLossError(f"{path} is an episode of {meta.env}/{meta.game} {meta.action_names}, not of {mine}")
        return [
            GameEpisode(
                name=f"seed-{meta.seed}",
                seed=meta.seed,
                place=split_hash(meta.env, meta.game, meta.seed),
                frames_NHWC=self._sized(episode.frames)[..., None],
                executed_NA=episode.executed.astype(np.int32)[:, None],
                labels_NA=episode.label.astype(np.int32)[:, None],
                reward_N=episode.reward,
                terminated=meta.terminated,
                probes_NP=episode.probes[:, list(self._probes.values())].astype(np.float32),
            )
        ]

    def _sized(self, frames_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if frames_NHW.shape[1:] == self._size:
            return frames_NHW
        sized = [resize(frame, *self._size, AREA_V1) for frame in frames_NHW]
        return np.stack(sized) if sized else np.zeros((0, *self._size), np.uint8)

    def _first_meta(self) -> EpisodeMeta:
        errors = []
        for path in self._paths:
            try:
                return read_meta(path)
            except (DataLossError, OSError) as error:
                errors.append(str(error))
        raise NotFoundError(
            f"{self._directory} has no whole episode-*.npz; record some with `playserve data record atari`"
            + "".join(f"\n  {error}" for error in errors[:5])
        )

    def _digest(self) -> str:
        """Return the sha256 over names, bytes and size of the frames."""
        digest = hashlib.sha256(f"atari {self._size} {list(self._probes.items())}\n".encode())
        for path in self._paths:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self._directory)} {content}\n".encode())
        return digest.hexdigest()
