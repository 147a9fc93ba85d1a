"""The `tokenizer` recipe: a VQ-VAE on the frames of recorded games, every frame its own label."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_trainer.recipes import Baseline, Prepared, take_flags
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_trainer.data.tokens.cache import TokenCache
    from playserve_trainer.models.policy import Policy

__all__ = ["DEFAULTS", "MODEL_FLAGS", "OPTION_FLAGS", "SUMMARY", "TASK_FLAG", "configure", "prepare", "read",
           "settings", "sketch"]  # fmt: skip

SUMMARY = "a VQ-VAE that makes tokens of frames, on recordings of one game"
TASK_FLAG = "game"
MODEL_FLAGS: tuple[str, ...] = (
    "tokens", "codes", "code_width", "filters", "decoder_filters", "missed", "adversarial", "adversarial_after",
    "perceptual", "perceptual_net",
)  # fmt: skip
OPTION_FLAGS: tuple[str, ...] = ("size", "every", "cache")

_FAMILY = "tokenizer"
_OPTIONS: Mapping[str, Any] = MappingProxyType({"size": 0, "every": 1, "cache": ""})
# Frames that mean, spread and the guess of the mean frame are taken from.
_STATISTICS_FRAMES = 4096

#: Settings of every game.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "model": MappingProxyType({"tokens": 36}),
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "beta2": 0.99,
        "clip_norm": 1.0,
        "warmup_steps": 100,
        "schedule": "cosine",
        "eval_every_steps": 1000,
        "log_every_steps": 50,
    }
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the family's flags."""
    given_only: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--game", help="an Atari game such as breakout, or doom", **given_only)
    parser.add_argument(
        "--tokens", type=int, help="the dial: tokens of a frame, such as 16, 36, 64, 100 or 256", **given_only
    )
    parser.add_argument("--codes", type=int, help="codes that a token may be (default 512)", **given_only)
    parser.add_argument("--code-width", type=int, help="numbers of a code (default 16)", **given_only)
    parser.add_argument("--filters", type=int, help="channels of the encoder (default 32)", **given_only)
    parser.add_argument("--decoder-filters", type=int, help="channels of the decoder (default 64)", **given_only)
    parser.add_argument(
        "--adversarial",
        type=float,
        help="weight of an adversary's verdict, such as 0.1 (default 0)",
        **given_only,
    )
    parser.add_argument(
        "--adversarial-after", type=int, help="training passes before that verdict counts (default 0)", **given_only
    )
    parser.add_argument(
        "--perceptual", type=float, help="weight of LPIPS (default 0; needs torchvision and its weights)", **given_only
    )
    parser.add_argument("--perceptual-net", help="its net: alex, vgg or squeeze (default vgg)", **given_only)
    parser.add_argument(
        "--size", type=int, help="side of the frames (default 84 of Atari, 64 of a desktop)", **given_only
    )
    parser.add_argument("--every", type=int, help="learn from every N-th frame only (default 1)", **given_only)
    parser.add_argument(
        "--cache", help="where decoded frames are kept (default .playserve in the data's folder)", **given_only
    )


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings for the flags given; `game`, the model's flags and the options become settings.

    Raises:
        BadSettingError: The game is missing, or nothing is learnt of it.
    """
    rest = dict(given)
    game = rest.pop(TASK_FLAG, None)
    if not game:
        raise BadSettingError("which game? give --game, such as --game breakout or --game doom")
    if game == "nethack":
        raise BadSettingError(
            "NetHack's screen is made of tokens already: `playserve data tokenize --game nethack` needs no training"
        )
    model = {**DEFAULTS["model"], **take_flags(rest, MODEL_FLAGS)}
    options = {**_OPTIONS, **take_flags(rest, OPTION_FLAGS)}
    if options["every"] < 1 or options["size"] < 0:
        raise BadSettingError(f"every is at least 1 and size at least 0, not {options['every']}, {options['size']}")
    return {**DEFAULTS, "family": _FAMILY, "task": game, "model": model, "options": options, **rest}


def read(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> TokenCache:
    """Decode the game's frames into a cache beside the data, or map the one that an earlier run made.

    Raises:
        NotFoundError: There are no recordings.
        BadSettingError: They are of another game.
    """
    from playserve_trainer.data.p2p import default_cache
    from playserve_trainer.data.tokens.cache import cache_digest, write_cache
    from playserve_trainer.data.tokens.sources import open_games

    options = {**_OPTIONS, **config.options}
    place = Path(options["cache"]) if options["cache"] else default_cache(Path(config.data))
    games = open_games(Path(config.data), config.task, size=int(options["size"]), cache=place, progress=progress)
    digest = cache_digest(games.digest, "", keep_frames=True)
    folder = place / f"frames-{digest[:16]}"
    return write_cache(folder, games, None, keep_frames=True, held_out=config.held_out, workers=2, progress=progress)


def prepare(
    config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: TokenCache | None = None
) -> Prepared:
    """Decode the frames, unless they are given, and make the tokenizer, standardised by them.

    Raises:
        NotFoundError: There are no recordings.
        BadSettingError: They are of another game, or the tokens make no grid of its frames.
    """
    import torch

    from playserve_trainer.data.tokens.frames import ShuffledFrames, evenly, kept_frames, place_statistics
    from playserve_trainer.data.tokens.learnt import learnt_episodes, report_of
    from playserve_trainer.data.tokens.scores import ProbeSet, TokenizerScores
    from playserve_trainer.models.tokenizer import VQTokenizer

    cache = read(config, progress) if data is None else data
    every = int({**_OPTIONS, **config.options}["every"])
    frames = kept_frames(cache)
    learnt = learnt_episodes(cache, config.data_share)
    torch.manual_seed(config.seed)
    policy = _build(config, cache.frame_shape, str(cache.game.get("resize_id", "")))
    if not isinstance(policy, VQTokenizer):
        raise BadSettingError(f"the {_FAMILY} family makes {type(policy).__name__}")
    mean, spread = place_statistics(frames[evenly(cache.frames_of(learnt), _STATISTICS_FRAMES)])
    policy.standardise_by(torch.from_numpy(mean), torch.from_numpy(spread))
    source = ShuffledFrames(cache, learnt, batch_size=config.batch_size, seed=config.seed, every=every)
    report = report_of(
        cache, directory=config.data, digest=cache.data_digest, share=config.data_share, samples=source.num_samples
    )
    if not config.held_out:
        return Prepared(policy=policy, source=source, held_out=None, report=report)
    aside = cache.select(held_out=True)
    return Prepared(
        policy=policy,
        source=source,
        held_out=ShuffledFrames(cache, aside, batch_size=config.batch_size, seed=config.seed, every=every),
        report=report,
        baselines=(_mean_frame(frames[evenly(cache.frames_of(aside), _STATISTICS_FRAMES)], mean, spread),),
        scores=TokenizerScores(policy, ProbeSet.of(cache)),
    )


def sketch(config: TrainConfig) -> Policy:
    """Return a tokenizer of the run's shapes; the frames' are those that the recordings would have."""
    from playserve_trainer.data.tokens.sources import frame_size_of

    size = int({**_OPTIONS, **config.options}["size"])
    return _build(config, frame_size_of(Path(config.data), config.task, size), "")


def _build(config: TrainConfig, frame_shape: tuple[int, int, int], resize_id: str) -> Policy:
    from playserve_trainer.models.registry import build

    height, width, channels = frame_shape
    shapes = {"height": height, "width": width, "channels": channels, "game": config.task, "resize_id": resize_id}
    return build(_FAMILY, {**shapes, **DEFAULTS["model"], **config.model})


def _mean_frame(
    frames_NHWC: NDArray[np.uint8], mean_HWC: NDArray[np.float32], spread_HWC: NDArray[np.float32]
) -> Baseline:
    """Return what the mean of the frames learnt from costs as the reconstruction of every held-out one."""
    import numpy as np

    from playserve_trainer.data.tokens.scores import psnr_of
    from playserve_trainer.models.tokenizer.vqvae import HIT_LEVELS

    error_NHWC = frames_NHWC.astype(np.float32) - mean_HWC
    return Baseline(
        name="mean_frame",
        loss=float(np.square(error_NHWC / spread_HWC).mean()),
        accuracy=float((np.abs(error_NHWC) <= HIT_LEVELS).mean()),
        labels=error_NHWC.size,
        scores={"psnr": psnr_of(float(np.square(error_NHWC).mean()))},
    )
