"""Small runs of the training loop for tests over several processes.

``python -m torch.distributed.run --nproc-per-node 2 tests/support/train_processes.py OUT`` does every run of RUNS into
OUT/<its name>, as one process with the same settings would.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toy_tokens import square_frames, tiny_tokenizer

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
    "tokenizer": {
        "family": "tokenizer",
        "lr": 1e-3,
    },  # slower: which of two codes is nearer must not hang on a rounding
}
#: Runs in which something is drawn: two processes do not equal one, but each other.
DRAWN: dict[str, dict[str, Any]] = {"tokenizer_kmeans": {"family": "tokenizer", "max_steps": 12}}
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


class Squares:
    """Frames of a square in one of 16 places for a tokenizer, every pixel its own label."""

    batch_size, sequence_length, num_samples, carries_state = _B, 1, 1000, False

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.asked: list[tuple[int, int]] = []

    def batch(self, index: int) -> Batch:
        return self.part(index, 0, _B)

    def part(self, index: int, start: int, stop: int) -> Batch:
        self.asked.append((start, stop))
        places = np.array([np.random.default_rng([self._seed, index, row]).integers(16) for row in range(start, stop)])
        frames = torch.from_numpy(square_frames(places)).unsqueeze(1)
        executed, first = torch.full((len(places), 1, 1), UNKNOWN_ACTION), torch.ones(len(places), 1, dtype=torch.bool)
        return Batch({"frame": frames}, executed, first, frames.to(torch.int16).view(len(places), 1, -1), len(places))


def small_tokenizer(*, drawn: bool) -> Policy:
    """Return a tokenizer of 16 codes: to be put by k-means, and moved when dead, or where they lie for good."""
    policy = tiny_tokenizer(codes=16, dead_below=0.5 if drawn else 0.0)
    if not drawn:
        policy.codebook.learner._codebook.initted.fill_(True)
    return policy


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
    drawn = settings.pop("drawn", False)
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
    elif config.family == "tokenizer":
        policy, sources = small_tokenizer(drawn=drawn), [Squares(seed) for seed in (0, 1)]
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


def assert_alike(policy: Policy, group: Group) -> None:
    """Raise unless all processes hold the same numbers, bit for bit."""
    mine = [hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for t in policy.state_dict().values()]
    everybodys: list[Any] = [None] * group.size
    torch.distributed.all_gather_object(everybodys, mine)
    for name, *digests in zip(policy.state_dict(), *everybodys, strict=True):
        assert len(set(digests)) == 1, f"{name} is not the same in all processes"


def main(out: Path) -> None:
    with processes() as group:
        for name, settings in [*RUNS.items(), *DRAWN.items()]:
            trainer = train(out / name, group, drawn=name in DRAWN, **settings)
            rows = group.rows(_B)
            assert all(rows[0] <= start < stop <= rows[1] for start, stop in trainer._source.asked)  # type: ignore[attr-defined]
            if settings.get("parallel") != "fsdp":  # which has shards
                assert_alike(trainer.policy, group)
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
