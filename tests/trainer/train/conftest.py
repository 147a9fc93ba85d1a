"""Small policies, small data, and runs of the loop on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playserve_trainer.data.batches import Batch, ShuffledOrder
from playserve_trainer.models.policy import UNKNOWN_ACTION
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer


class EchoSource:
    """Sequences of 2 x 2 observations whose label is the bright cell; with `delay` the one before it.

    With `carries_state` each row is one endless episode that began at batch 0: the label of a batch's first step can
    then only be known by memory.
    """

    num_samples = 10_000

    def __init__(
        self,
        batch_size: int = 8,
        sequence_length: int = 6,
        *,
        seed: int = 0,
        delay: int = 0,
        carries_state: bool = False,
    ) -> None:
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.carries_state = carries_state
        self._seed, self._delay = seed, delay
        self._order = ShuffledOrder(1000, batch_size, seed)

    def batch(self, index: int) -> Batch:
        cells = np.stack([self._cells(index, b) for b in range(self.batch_size)])
        steps = slice(self._delay, None)
        now = torch.from_numpy(cells[:, steps])
        before = torch.from_numpy(cells[:, : cells.shape[1] - self._delay])
        first = torch.zeros(self.batch_size, self.sequence_length, dtype=torch.bool)
        first[:, 0] = index == 0 or not self.carries_state
        observation = torch.nn.functional.one_hot(now, 4).view(*now.shape, 2, 2).float()
        executed = torch.full((*now.shape, 1), UNKNOWN_ACTION)
        return Batch({"observation": observation}, executed, first, before.unsqueeze(-1), now.numel())

    def _cells(self, index: int, row: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if not self.carries_state:
            seed = [self._seed, int(self._order.items(index)[row])]
            return np.random.default_rng(seed).integers(0, 4, self.sequence_length + self._delay)
        blocks = (
            [
                np.random.default_rng([self._seed, row, i]).integers(0, 4, self.sequence_length)
                for i in (index - 1, index)
            ]
            if index
            else [
                np.zeros(self.sequence_length, np.int64),
                np.random.default_rng([self._seed, row, 0]).integers(0, 4, self.sequence_length),
            ]
        )
        return np.concatenate(blocks)[self.sequence_length - self._delay :]


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Return a function of settings that makes a trainer of a tiny recurrent policy in the folder `out`."""

    def make(
        out: str = "run",
        *,
        source: Any = None,
        policy: Any = None,
        resume: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        digest: str = "data",
        **settings: Any,
    ) -> Trainer:
        directory = tmp_path / out
        directory.mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "family": "tiny_recurrent", "task": "echo", "data": "", "out": str(directory), "lr": 0.02, "threads": 1,
            "precision": "fp32", "batch_size": 8, "sequence_length": 6, "warmup_steps": 5, "eval_samples": 96,
            "eval_every_steps": 10, "save_every_s": 0.0, "device": "cpu", **settings,
        }  # fmt: skip
        if not any(name.startswith("max_") for name in settings):
            values["max_steps"] = 60
        config = TrainConfig(**values)
        torch.manual_seed(config.seed)
        shape = {"observation_shape": (2, 2), "observation_dtype": "float32", "value_head": False}
        policy = policy or TinyRecurrentPolicy(TinyRecurrentConfig(num_actions=4, hidden=16, **shape))
        source = source or EchoSource(seed=config.seed)
        held_out = EchoSource(seed=99, delay=source._delay, carries_state=source.carries_state)
        trainer = Trainer(config, policy, source, held_out, data_digest=digest, should_stop=should_stop)
        if resume:
            trainer.resume()
        return trainer

    return make


@pytest.fixture
def echo_source() -> type[EchoSource]:
    """Return the class of the small sources."""
    return EchoSource
