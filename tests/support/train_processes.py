"""Small runs of the training loop for tests over several processes.

``python -m torch.distributed.run --nproc-per-node 2 tests/support/train_processes.py OUT`` does every run of RUNS into
OUT/<its name>, as one process with the same settings would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from playserve_trainer.data.batches import IGNORED_LABEL, Batch
from playserve_trainer.models.p2p import P2PPolicy, config_of_size
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION, Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.parallel import Group, processes

#: Settings of each run; "stop_at": steps after which it is stopped, and resumed.
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_passes": {"accumulate": 2, "ema_decay": 0.9, "carries_state": True},
    "ddp_resumed": {"accumulate": 2, "ema_decay": 0.9, "carries_state": True, "stop_at": 4},
    "fsdp": {"parallel": "fsdp", "ema_decay": 0.9, "accumulate": 2},
    "fsdp_resumed": {"parallel": "fsdp", "ema_decay": 0.9, "accumulate": 2, "stop_at": 4},
    "p2p_ddp": {"family": "p2p", "max_steps": 3, "freeze": "image.trunk."},
    "p2p_fsdp": {"family": "p2p", "max_steps": 3, "parallel": "fsdp", "accumulate": 2},
}
_B, _T = 8, 5


class Cells:
    """Which of four cells is bright; every row has another number of labels. A row is one endless episode."""

    batch_size, sequence_length, num_samples = _B, _T, 1000

    def __init__(self, seed: int, carries_state: bool) -> None:
        self._seed, self.carries_state = seed, carries_state
        self.asked: list[tuple[int, int]] = []

    def batch(self, index: int) -> Batch:
        return self.part(index, 0, _B)

    def part(self, index: int, start: int, stop: int) -> Batch:
        self.asked.append((start, stop))
        rows = [np.random.default_rng([self._seed, index, row]) for row in range(start, stop)]
        now = torch.from_numpy(np.stack([rng.integers(0, 4, _T) for rng in rows]))
        labels = now.clone()
        for row in range(start, stop):
            labels[row - start, : row % _T] = IGNORED_LABEL
        first = torch.zeros(stop - start, _T, dtype=torch.bool)
        first[:, 0] = index == 0 or not self.carries_state
        observation = torch.nn.functional.one_hot(now, 4).view(*now.shape, 2, 2).float()
        executed = torch.full((*now.shape, 1), UNKNOWN_ACTION)
        return Batch({"observation": observation}, executed, first, labels.unsqueeze(-1), now.numel())


class Screens:
    """Random frames and actions for a small p2p policy; every row has another number of labels."""

    batch_size, sequence_length, num_samples, carries_state = _B, _T, 1000, False

    def __init__(self, seed: int, heads: tuple[int, ...]) -> None:
        self._seed, self._heads = seed, heads
        self.asked: list[tuple[int, int]] = []

    def batch(self, index: int) -> Batch:
        return self.part(index, 0, _B)

    def part(self, index: int, start: int, stop: int) -> Batch:
        self.asked.append((start, stop))
        rows = [np.random.default_rng([self._seed, index, row]) for row in range(start, stop)]
        frames = torch.from_numpy(np.stack([rng.integers(0, 256, (_T, 32, 32, 3), np.uint8) for rng in rows]))
        tokens = np.stack([np.stack([rng.integers(0, n, _T) for n in self._heads], -1) for rng in rows])
        targets, text = torch.from_numpy(tokens), torch.zeros(stop - start, _T, 16)
        text[:, 2:] = torch.from_numpy(np.stack([rng.normal(size=16) for rng in rows])).float()[:, None]
        labels = targets.clone()
        for row in range(start, stop):
            labels[row - start, : row % _T] = IGNORED_LABEL
        first = torch.zeros(stop - start, _T, dtype=torch.bool)
        first[:, 0] = True
        executed = torch.cat([torch.full_like(targets[:, :1], UNKNOWN_ACTION), targets[:, :-1]], 1)
        inputs = {"frame": frames, TARGETS: targets, INSTRUCTION: text}
        return Batch(inputs, executed, first, labels, first.numel())


def small_p2p() -> Policy:
    """Return a p2p policy of a few thousand parameters; nothing in it is drawn while it trains."""
    changes: dict[str, Any] = {
        "layers": 2, "width": 32, "heads": 2, "decoder_layers": 1, "decoder_heads": 2, "frame_size": 32,
        "history": (4,), "dropout": 0.0, "text_encoder": "words", "text_width": 16,
    }  # fmt: skip
    return P2PPolicy(config_of_size("1m", **changes))


def train(out: Path, group: Group | None = None, *, resume: bool = False, **settings: Any) -> Trainer:
    """Do one run; with `stop_at` it is stopped after so many steps, and a second trainer goes on with it."""
    group = group or Group()
    carries_state, stop_at = settings.pop("carries_state", False), settings.pop("stop_at", None)
    out.mkdir(parents=True, exist_ok=True)
    config = TrainConfig.from_json(
        {
            "family": "tiny_recurrent", "task": "cells", "data": "", "out": str(out), "lr": 0.02, "threads": 1,
            "precision": "fp32", "batch_size": _B, "sequence_length": _T, "warmup_steps": 2, "max_steps": 8,
            "eval_samples": 80, "eval_every_steps": 4, "save_every_s": 0.0, "device": "cpu", "weight_decay": 0.1,
            "log_every_steps": 2, **settings,
        }
    )  # fmt: skip
    torch.manual_seed(config.seed)
    sources: list[Any]
    policy: Policy
    if config.family == "p2p":
        policy = small_p2p()
        sources = [Screens(seed, policy.heads()) for seed in (0, 1)]
    else:
        shape = {"observation_shape": (2, 2), "observation_dtype": "float32"}
        policy = TinyRecurrentPolicy(TinyRecurrentConfig(num_actions=4, hidden=7, **shape))
        sources = [Cells(seed, carries_state) for seed in (0, 1)]
    stopped: list[Trainer] = []
    trainer = Trainer(
        config, policy, *sources, group=group,
        should_stop=lambda: stop_at is not None and bool(stopped) and stopped[0].step >= stop_at,
    )  # fmt: skip
    stopped.append(trainer)
    if resume:
        trainer.resume()
    if not trainer.run():
        return train(out, group, resume=True, carries_state=carries_state, **settings)
    return trainer


def main(out: Path) -> None:
    with processes() as group:
        for name, settings in RUNS.items():
            trainer = train(out / name, group, **settings)
            rows = group.rows(_B)
            assert all(rows[0] <= start < stop <= rows[1] for start, stop in trainer._source.asked)  # type: ignore[attr-defined]
            with trainer.published_policy() as policy:
                assert (policy is not None) == group.is_main
                if policy is not None:
                    torch.save(policy.state_dict(), out / name / "published.pt")
                    evaluation = trainer.last_evaluation
                    assert evaluation is not None
                    numbers = {"loss": evaluation.loss, "labels": evaluation.labels, "samples": trainer.samples}
                    (out / name / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
