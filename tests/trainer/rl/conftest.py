"""A run on a toy game, and unrolls as an actor makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playserve_trainer.models.registry import build
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.learner import Learner
from playserve_trainer.rl.unrolls import Unroll

MODEL = {"num_actions": 3, "hidden": 8, "observation_shape": [3], "value_head": False}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RLConfig]:
    """Return a function that makes the settings of a run on the toy."""

    def make(**changes: Any) -> RLConfig:
        values: dict[str, Any] = {
            "family": "tiny_recurrent", "game": "", "env": "toy_bandit:Bandit", "out": str(tmp_path / "run"),
            "model": MODEL, "num_envs": 4, "unroll": 5, "batch": 4, "replay": 2, "replay_size": 20, "queue": 4,
            "discount": 0.5, "lr": 0.02, "max_steps": 200, "publish_every_s": 0.3, "log_every_updates": 2,
            "threads": 1, "device": "cpu", "silence_s": 60.0, "critic_hidden": 8, "warmup_updates": 0,
        }  # fmt: skip
        return RLConfig.from_json({**values, **changes})

    return make


@pytest.fixture
def make_learner(config: Callable[..., RLConfig]) -> Callable[..., Learner]:
    """Return a function that makes a learner of the toy's policy."""

    def make(**changes: Any) -> Learner:
        settings = config(**changes)
        torch.manual_seed(settings.seed)
        return Learner(settings, build(settings.family, settings.model), torch.device("cpu"))

    return make


@pytest.fixture
def make_unroll() -> Callable[..., Unroll]:
    """Return a function that makes an unroll of random play, four steps an episode."""

    def make(env_id: int = 0, number: int = 0, length: int = 5, seed: int = 0) -> Unroll:
        rng = np.random.default_rng([seed, env_id, number])
        first = (np.arange(length + 1) + number * length) % 4 == 0
        actions = rng.integers(0, 3, length)
        return Unroll(
            env_id=env_id,
            number=number,
            inputs={"observation": rng.integers(0, 256, (length + 1, 3)).astype(np.uint8)},
            executed=np.where(first, -1, np.concatenate([[0], actions])),
            first=first,
            actions=actions,
            log_probs=np.log(rng.uniform(0.1, 0.9, length)).astype(np.float32),
            rewards=rng.uniform(-2, 2, length).astype(np.float32),
            ends=first[1:],
            versions=np.ones(length, np.int64),
        )

    return make
