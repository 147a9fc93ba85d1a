"""What a run needs to know of each family: the policy to begin with, and the environments that it plays in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from playserve.errors import BadSettingError
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build
from playserve_trainer.rl.config import RLConfig

__all__ = ["Start", "begin"]

# Random steps from which the game's background is taken.
_LOOK_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
        policy: Freshly initialised under the run's seed.
        model: Its config, with what the environment decided.
        env: Environments' family, or module:factory.
        env_options: Arguments of their factory.
        frame_skip: Frames of the game that a step lasts.
    """

    policy: Policy
    model: Mapping[str, Any]
    env: str
    env_options: Mapping[str, Any] = field(default_factory=dict)
    frame_skip: int = 1


def begin(config: RLConfig) -> Start:
    """Return the start of a run.

    Raises:
        BadSettingError: The family is not known, or the model's settings are wrong.
    """
    known = _FAMILIES.get(config.family, _any)
    model, options, frame_skip = known(config)
    torch.manual_seed(config.seed)
    policy = build(config.family, model)
    return Start(
        policy=policy, model=model, env=config.env or config.family, env_options=options, frame_skip=frame_skip
    )


_Found = tuple[dict[str, Any], dict[str, Any], int]


def _atari(config: RLConfig) -> _Found:
    from playserve_client.envs.atari import AtariEnv

    options = dict(config.env_options)
    env = AtariEnv(config.game, **options)
    given = {"pixel_background", "pixel_scale"} <= set(config.model)
    background, scale = (0.0, 1.0) if given else _pixels(env, config.seed)
    protocol = {
        "game": config.game, "num_actions": len(env.action_names), "action_names": list(env.action_names),
        "frame_skip": env.frame_skip, "stickiness": env.stickiness, "pixel_background": background,
        "pixel_scale": scale,
    }  # fmt: skip
    return {**protocol, **config.model}, options, env.frame_skip


def _pixels(env: Any, seed: int) -> tuple[float, float]:
    """Return what the recipe takes from recordings, of frames of random play."""
    import numpy as np

    from playserve_trainer.recipes.atari import pixel_statistics

    rng, frames = np.random.default_rng(seed), []
    env.reset(seed=seed)
    for _ in range(_LOOK_STEPS):
        _, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        frames.append(env.single_frame())
        if terminated or truncated:
            env.reset(seed=None, options={"reseed": False})
    return pixel_statistics(np.stack(frames))


def _nethack(config: RLConfig) -> _Found:
    from playserve_client.nethack.keys import ACTION_NAMES, NUM_ACTIONS

    protocol = {"character": config.game, "num_actions": NUM_ACTIONS, "action_names": list(ACTION_NAMES)}
    options = dict(config.env_options)
    if config.model.get("inventory"):
        options.setdefault("inventory", True)
    return {**protocol, **config.model}, options, 1


def _any(config: RLConfig) -> _Found:
    if not config.env:
        raise BadSettingError(
            f"family {config.family!r} has no environments of its own: name them, as module:factory, or learn "
            f"{', '.join(_FAMILIES)}"
        )
    return dict(config.model), dict(config.env_options), 1


_FAMILIES: Mapping[str, Callable[[RLConfig], _Found]] = {"atari": _atari, "nethack": _nethack}
