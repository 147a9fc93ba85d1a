"""Settings of each family in which it differs from RLConfig's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.rl.config import RLConfig

__all__ = ["PRESETS", "with_presets"]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Found on two shared cores: many environments, because each waits for the others' turns on the processor, and
        # two replayed unrolls for each new one, because playing a step costs several times what learning from it does.
        "atari": MappingProxyType({"model": {"width": 16}, "num_envs": 64, "actor_processes": 2, "replay": 16}),
        # Rewards are score points, from 1 for a step of exploring to hundreds for a kill, and games are long. Meant for
        # a GPU beside 16 cores.
        "nethack": MappingProxyType(
            {
                "game": "mon-hum-neu-mal",
                "model": {"width": 192},
                "num_envs": 128,
                "actor_processes": 8,
                "unroll": 64,
                "batch": 32,
                "replay": 0,
                "replay_size": 0,
                "queue": 64,
                "discount": 0.999,
                "reward": "tanh",
                "reward_scale": 100.0,
                "lr": 3e-4,
                "entropy_cost": 0.001,
                "life_ends": False,
            }
        ),
    }
)


def with_presets(family: str, given: Mapping[str, Any]) -> RLConfig:
    """Return the settings of a run: those given, over the family's, over the defaults.

    Raises:
        BadSettingError: A setting is wrong, or the game is missing.
    """
    preset = PRESETS.get(family, {})
    values = {"game": "", **preset, **given, "family": family}
    for name in ("model", "env_options"):
        values[name] = {**preset.get(name, {}), **given.get(name, {})}
    if family == "atari" and not values["game"]:
        raise BadSettingError("which game? give --game, such as --game breakout")
    return RLConfig.from_json(values)
