"""The recipes `wm-token`, `bc-token` and `bc-cnn`: worlds and agents on a token cache."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer.recipes import Baseline, Prepared, held_out_maker, take_flags
from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from playserve_trainer.data.token_clips import TokenClips
    from playserve_trainer.data.tokens.cache import TokenCache
    from playserve_trainer.models.policy import Policy

__all__ = ["BC_CNN", "BC_TOKEN", "WM_TOKEN", "CacheRecipe"]

#: Settings of all three.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "model": MappingProxyType({"width": 128}),
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.01,
        "beta2": 0.99,
        "clip_norm": 1.0,
        "warmup_steps": 50,
        "schedule": "cosine",
        "eval_samples": 4096,
        "eval_every_steps": 500,
    }
)

_CONTEXT = 8  # frames, of every config
_GUESSED_FRAMES = 8192  # that a baseline is fitted on, and scored on


@dataclass(slots=True)
class CacheRecipe:
    """A recipe of :class:`playserve_trainer.recipes.Recipe` for one family on token caches.

    Attributes:
        family: Of the models.
        learns: What is learnt, a value of playserve_trainer.data.token_clips.Learns.
        SUMMARY: For the command line.
        MODEL_FLAGS: Flags of the model.
        TASK_FLAG: Flag of the game.
        OPTION_FLAGS: Flags of the data.
    """

    family: str
    learns: str
    SUMMARY: str
    MODEL_FLAGS: tuple[str, ...]
    TASK_FLAG: str = "game"
    OPTION_FLAGS: tuple[str, ...] = ("tokens",)

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the family's flags."""
        only: dict[str, Any] = {"default": argparse.SUPPRESS}
        parser.add_argument("--game", help="as it was tokenised, such as breakout or doom", **only)
        parser.add_argument(
            "--tokens", type=int, **only,
            help="tokens of a frame, where --data holds caches <game>-<tokens> of several kinds",
        )  # fmt: skip
        parser.add_argument("--width", type=int, help="the size dial (default 128)", **only)
        parser.add_argument("--layers", type=int, help="of the core (default: by the width)", **only)
        parser.add_argument("--heads", type=int, help="attention heads (default: by the width)", **only)
        parser.add_argument("--context", type=int, help=f"frames that it looks back over (default {_CONTEXT})", **only)
        if "parallel_tokens" in self.MODEL_FLAGS:
            parser.add_argument("--parallel-tokens", type=int, help="image tokens drawn at once (default 1)", **only)
            parser.add_argument("--starts", type=int, help="starts that the checkpoint carries (default 16)", **only)
            parser.add_argument("--start-frames", type=int, help="frames of each (default 4)", **only)
        if "past_actions" in self.MODEL_FLAGS:
            parser.add_argument(
                "--no-past-actions", dest="past_actions", action="store_false", help="it does not see past actions",
                **only,
            )  # fmt: skip
        if "channels" in self.MODEL_FLAGS:
            parser.add_argument("--channels", type=int, help="of the first convolution (default 16)", **only)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return training settings for the flags given; `game` becomes `task`.

        A sequence is twice the context, so that frames leave the window in training as they do in play.

        Raises:
            BadSettingError: The game is missing.
        """
        rest = dict(given)
        game = rest.pop(self.TASK_FLAG, None)
        if not game:
            raise BadSettingError("which game? give --game, such as --game breakout or --game doom")
        model = {**DEFAULTS["model"], **take_flags(rest, self.MODEL_FLAGS)}
        options = {"tokens": 0, **take_flags(rest, self.OPTION_FLAGS)}
        length = 2 * int(model.get("context", _CONTEXT))
        return {
            **DEFAULTS, "sequence_length": length, "family": self.family, "task": game, "model": model,
            "options": options, **rest,
        }  # fmt: skip

    def read(self, config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> TokenCache:
        """Map the cache: `data` itself, or the one in it that is named after game and tokens.

        Raises:
            NotFoundError: There is none.
            BadSettingError: It is of another game.
        """
        from playserve_trainer.data.tokens.cache import INDEX_NAME, cache_folder, open_cache

        root = Path(config.data)
        folder = cache_folder(root, config.task, int(config.options.get("tokens", 0)))
        if not (folder / INDEX_NAME).is_file():
            raise NotFoundError(
                f"neither {root} nor {folder} is a token cache; make one with `playserve data tokenize --game "
                f"{config.task} --out {folder} ...`"
            )
        cache = open_cache(folder, held_out=config.held_out)
        if (game := str(cache.game.get("game", ""))) != config.task:
            raise BadSettingError(f"{folder} is a cache of {game}, not of {config.task}")
        return cache

    def prepare(
        self,
        config: TrainConfig,
        progress: Callable[[int, int], None] | None = None,
        *,
        data: TokenCache | None = None,
    ) -> Prepared:
        """Map the cache, unless it is given, and make the policy with the tokenizer that made it.

        Raises:
            NotFoundError: There is no cache.
            BadSettingError: It lacks what the family sees, or is of another game.
        """
        import torch

        from playserve_trainer.data.token_scores import PartScores
        from playserve_trainer.data.tokens.learnt import learnt_episodes, report_of

        cache = self.read(config, progress) if data is None else data
        aside = cache.select(held_out=True)
        learnt = learnt_episodes(cache, config.data_share)
        make = _Clips(self.learns, cache)
        torch.manual_seed(config.seed)
        policy = self._policy(config, cache, make)
        _furnish(policy, cache, aside if len(aside) else learnt)
        source = make.source(learnt, config)
        report = report_of(
            cache, directory=config.data, digest=cache.digest, share=config.data_share, samples=source.num_samples
        )
        if not config.held_out:
            return Prepared(policy=policy, source=source, held_out=None, report=report)
        parts = ("tokens", "reward", "end") if self.learns == "world" else ("action",) * len(cache.heads)
        if len(parts) > 1 and self.learns != "world":
            parts = tuple(f"action{number}" for number in range(len(parts)))
        weights = (1 / cache.num_tokens,) * (cache.num_tokens + 2) if self.learns == "world" else ()
        return Prepared(
            policy=policy,
            source=source,
            held_out=make.source(aside, config),
            report=report,
            baselines=_baselines(self.learns, cache, learnt, aside),
            scores=PartScores(parts),
            held_out_as=held_out_maker(config, cache.names_E, lambda cut: make.source(aside, cut, tell_episodes=True)),
            head_weights=weights,
        )

    def sketch(self, config: TrainConfig) -> Policy:
        """Return a policy of the run's shapes; the cache's description decides the rest."""
        cache = self.read(config)
        return self._policy(config, cache, _Clips(self.learns, cache))

    def _policy(self, config: TrainConfig, cache: TokenCache, clips: _Clips) -> Policy:
        from playserve_trainer.data.tokens.cache import load_tokenizer
        from playserve_trainer.models.registry import build, describe

        game = {str(name): str(value) for name, value in cache.game.items()}
        known: dict[str, Any] = {
            "action": dict(cache.action), "rate_hz": float(cache.game.get("rate_hz", 0.0)), "environment": game,
        }  # fmt: skip
        if self.learns == "frames":
            background, scale = clips.pixels()
            known |= {
                "frame_shape": list(cache.frame_shape), "resize_id": str(cache.game.get("resize_id", "")),
                "pixel_background": background, "pixel_scale": scale,
            }  # fmt: skip
        else:
            family, its = describe(load_tokenizer(cache))
            known["tokenizer"] = {"family": family, "config": its}
        if self.learns == "world":
            known["reward_values"] = list(clips.values)
        return build(self.family, {**known, **config.model})


class _Clips:
    """Makes sources of a cache, for a family that learns one thing of it."""

    def __init__(self, learns: str, cache: TokenCache) -> None:
        from playserve_trainer.data.token_clips import Learns, arriving_rewards, reward_classes, reward_values

        self._learns, self._cache = Learns(learns), cache
        self.values: tuple[float, ...] = ()
        self._rewards_N: NDArray[np.int64] | None = None
        if self._learns is Learns.WORLD:
            rewards_N = arriving_rewards(cache)
            self.values = reward_values(rewards_N)
            self._rewards_N = reward_classes(rewards_N, self.values)

    def source(self, chosen: NDArray[np.int64], config: TrainConfig, *, tell_episodes: bool = False) -> TokenClips:
        """Return the clips of some episodes, cut as the settings say."""
        from playserve_trainer.data.token_clips import TokenClips

        return TokenClips(
            self._cache,
            chosen,
            self._learns,
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            rewards_N=self._rewards_N,
            tell_episodes=tell_episodes,
        )

    def pixels(self) -> tuple[float, float]:
        """Return the commonest pixel of the cache's frames, and how far others are from it."""
        from playserve_trainer.data.tokens.frames import kept_frames
        from playserve_trainer.recipes.atari import pixel_statistics

        frames = kept_frames(self._cache)
        return pixel_statistics(frames[:: max(1, len(frames) // 256)])


def _furnish(policy: Policy, cache: TokenCache, chosen: NDArray[np.int64]) -> None:
    """Give a policy the weights of its tokenizer, and a world its starts."""
    import torch

    from playserve_trainer.data.token_clips import starts_of
    from playserve_trainer.data.tokens.cache import load_tokenizer
    from playserve_trainer.models.gpt import TokenAgent, WorldPolicy

    if isinstance(policy, WorldPolicy | TokenAgent):
        policy.tokenizer.load(load_tokenizer(cache))
    if isinstance(policy, WorldPolicy):
        tokens, actions = starts_of(cache, chosen, policy.config.starts, policy.config.start_frames)
        policy.start_tokens_SCK.copy_(torch.from_numpy(tokens))
        policy.start_actions_SCH.copy_(torch.from_numpy(actions))


def _baselines(
    learns: str, cache: TokenCache, learnt: NDArray[np.int64], aside: NDArray[np.int64]
) -> tuple[Baseline, ...]:
    """Return what guesses get: of a world's tokens (nats a token), or of an agent's actions."""
    from playserve_trainer.data.token_scores import guesses

    def pairs(chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        import numpy as np

        place_M = cache.frames_of(chosen)
        place_M = place_M[~np.isin(place_M, cache.starts_E)]
        place_M = place_M[:: max(1, len(place_M) // _GUESSED_FRAMES)]
        if learns == "world":
            return cache.tokens_NK[place_M].astype(np.int64), cache.tokens_NK[place_M - 1].astype(np.int64)
        now, before = cache.labels_NH[place_M].astype(np.int64), cache.executed_NH[place_M - 1].astype(np.int64)
        known = (now >= 0).all(1)
        return now[known], before[known]

    choices = cache.vocabulary if learns == "world" else max(cache.heads)
    return guesses(pairs(learnt), pairs(aside), choices)


_SHAPE = ("width", "layers", "heads", "context")

WM_TOKEN = CacheRecipe(
    family="wm-token", learns="world", MODEL_FLAGS=(*_SHAPE, "parallel_tokens", "starts", "start_frames"),
    SUMMARY="a world that predicts the tokens of the next frame, on a token cache",
)  # fmt: skip
BC_TOKEN = CacheRecipe(
    family="bc-token", learns="tokens", MODEL_FLAGS=(*_SHAPE, "past_actions"),
    SUMMARY="an agent that sees the tokens of frames, on a token cache",
)  # fmt: skip
BC_CNN = CacheRecipe(
    family="bc-cnn", learns="frames", MODEL_FLAGS=(*_SHAPE, "past_actions", "channels"),
    SUMMARY="an agent that sees frames through a convolutional net, on a token cache that keeps them",
)  # fmt: skip
