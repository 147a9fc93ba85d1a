"""The `atari` recipe: a game's recorded episodes, shuffled steps, and settings that were found good for each game."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.recipes import Prepared, held_out_maker
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_trainer.data.episodes import Episodes
    from playserve_trainer.data.stacked import ShuffledSteps, Streams
    from playserve_trainer.models.policy import Policy

__all__ = ["DEFAULTS", "MODEL_FLAGS", "SUMMARY", "TASK_FLAG", "configure", "pixel_statistics", "prepare", "read",
           "settings", "sketch"]  # fmt: skip

SUMMARY = "the width-scaled convolutional net, on recordings of one Atari game"
TASK_FLAG = "game"
MODEL_FLAGS: tuple[str, ...] = ("width",)

_FAMILY = "atari"

#: Settings of every game, and beneath a game's name those in which it differs.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "": MappingProxyType(
            {
                "model": {"width": 34},
                "batch_size": 64,
                "optimizer": "adamw",
                "lr": 4e-3,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "warmup_steps": 100,
                "schedule": "cosine",
            }
        ),
        "freeway": MappingProxyType({"model": {"width": 23}}),
    }
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the family's flags."""
    parser.add_argument("--game", default=argparse.SUPPRESS, help="game in snake case, such as breakout")
    parser.add_argument(
        "--width", type=int, default=argparse.SUPPRESS, help="the size dial: channels of the first convolution"
    )


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given; `game` and `width` become `task` and `model`.

    Raises:
        BadSettingError: The game is missing.
    """
    rest = dict(given)
    game = rest.pop("game", None)
    if not game:
        raise BadSettingError("which game? give --game, such as --game breakout")
    values: dict[str, Any] = {**DEFAULTS[""], **DEFAULTS.get(game, {}), "family": _FAMILY, "task": game}
    values["model"] = dict(values["model"])
    if "width" in rest:
        values["model"]["width"] = rest.pop("width")
    if rest.get("schedule") == "constant" and "final_lr_fraction" not in rest:
        values.pop("final_lr_fraction", None)
    return {**values, **rest}


def read(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Episodes:
    """Read the game's episodes.

    Raises:
        NotFoundError: There are none.
    """
    from playserve_trainer.data.episodes import load_episodes

    return load_episodes(
        _folder(Path(config.data), config.task),
        held_out_fraction=config.held_out,
        memory_limit_bytes=config.memory_limit_mib << 20,
        scratch=Path(config.out),
        progress=progress,
    )


def prepare(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: Episodes | None = None
) -> Prepared:
    """Read the game's episodes, unless they are given, and make the policy for its action set.

    Raises:
        NotFoundError: There are no episodes.
        BadSettingError: They are of another game, or of mixed protocols.
    """
    import torch

    from playserve_trainer.data.split import share_digest, unique_names
    from playserve_trainer.models.registry import build

    episodes = read(config, progress) if data is None else data
    model = {**_protocol(episodes, config.task), **config.model}
    torch.manual_seed(config.seed)
    policy = build(_FAMILY, model)
    source = _source(episodes, _learnt(episodes, config.data_share), config)
    report = dataclasses.replace(
        episodes.report, samples=source.num_samples, digest=share_digest(episodes.report.digest, config.data_share)
    )
    if not config.held_out:
        return Prepared(policy=policy, source=source, held_out=None, report=report)
    names, held_out = unique_names([f"seed-{meta.seed}" for meta in episodes.metas]), episodes.select(held_out=True)
    return Prepared(
        policy=policy,
        source=source,
        held_out=_source(episodes, held_out, config),
        report=report,
        held_out_as=held_out_maker(config, names, lambda cut: _source(episodes, held_out, cut, tell_episodes=True)),
    )


def sketch(config: TrainConfig) -> Policy:
    """Return a policy of the run's shapes; the game's actions come from its first recording, or from the emulator."""
    from playserve_client.recordings import list_episodes, read_meta
    from playserve_trainer.models.registry import build

    names: tuple[str, ...] = ()
    with contextlib.suppress(NotFoundError):
        for path in list_episodes(_folder(Path(config.data), config.task)):
            with contextlib.suppress(DataLossError, OSError):
                names = read_meta(path).action_names
                break
    if not names:
        from playserve_client.envs.atari import action_names

        names = action_names(config.task)
    return build(_FAMILY, {"game": config.task, "num_actions": len(names), **config.model})


def _source(
    episodes: Episodes, chosen: NDArray[np.int64], config: TrainConfig, *, tell_episodes: bool = False
) -> ShuffledSteps | Streams:
    """Return the batches of some episodes, cut as the settings say."""
    from playserve_trainer.data.stacked import ShuffledSteps, Streams

    if config.sequence_length == 1:
        return ShuffledSteps(
            episodes, chosen, batch_size=config.batch_size, seed=config.seed, tell_episodes=tell_episodes
        )
    return Streams(
        episodes,
        chosen,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
        tell_episodes=tell_episodes,
    )


def _learnt(episodes: Episodes, share: float) -> NDArray[np.int64]:
    """Return the episodes to learn from."""
    from playserve_trainer.data.split import share_of_episodes, split_hash

    hashes = [split_hash(meta.env, meta.game, meta.seed) for meta in episodes.metas]
    return share_of_episodes(episodes.select(held_out=False), hashes, episodes.lengths_E, share)


def _folder(data: Path, game: str) -> Path:
    """Return the game's folder under a root of recordings, or the folder itself if it is one game's."""
    for folder in (data / _FAMILY / game, data):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"{data} is no directory; record episodes with `playserve data record atari --game {game}`")


def _protocol(episodes: Episodes, game: str) -> dict[str, Any]:
    """Return the part of the model's config that the recordings decide."""
    first = episodes.metas[0]
    if (first.env, first.game) != (_FAMILY, game):
        raise BadSettingError(f"{episodes.report.directory} holds {first.env}/{first.game}, not {_FAMILY}/{game}")
    protocols = sorted({(meta.frame_skip, meta.stickiness) for meta in episodes.metas})
    if len(protocols) > 1:
        raise BadSettingError(
            f"{episodes.report.directory} mixes (frame skip, stickiness) {protocols}; train on one of them"
        )
    frame_skip, stickiness = protocols[0]
    background, scale = _pixels(episodes)
    return {
        "game": game,
        "num_actions": len(first.action_names),
        "action_names": list(first.action_names),
        "frame_skip": frame_skip,
        "stickiness": float(stickiness),
        "pixel_background": background,
        "pixel_scale": scale,
    }


def _pixels(episodes: Episodes) -> tuple[float, float]:
    steps = episodes.steps_of(episodes.select(held_out=False))
    return pixel_statistics(episodes.frames_NHW[steps[:: max(1, len(steps) // 256)]])


def pixel_statistics(frames: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the commonest pixel of uint8 frames of any shape, and the root mean square distance from it."""
    import numpy as np

    background = int(np.bincount(frames.ravel(), minlength=256).argmax())
    distance = np.sqrt(np.mean((frames.astype(np.float32) - background) ** 2))
    return float(background), round(max(1.0, float(distance)), 1)
