"""Budget of the training loop: frames/s of `playserve train atari` against a bare loop over the same model.

The bare loop has its batch in memory: no data, no clipping, no metrics, no saves. Both run in turns in each round; the
ratio of a round is ours / bare. The bare loop is also the probe of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_train.py --out runs/bench/train.json
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine, report_console
from rich.console import Console
from torch.nn import functional as F
from training_race import GOAL, Loop, add_arguments, our_loop, race, show

from playserve_client.recordings import Episode, EpisodeMeta, episode_path, write_episode
from playserve_trainer.models.atari import AtariPolicy
from playserve_trainer.recipes import atari
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer

_ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


def _record(root: Path, episodes: int, steps: int) -> None:
    """Write random episodes of a made-up game."""
    rng = np.random.default_rng(0)
    for seed in range(episodes):
        label = rng.integers(0, 4, steps).astype(np.int16)
        meta = EpisodeMeta(
            env="atari", game="bench", seed=seed, steps=steps, score=0.0, terminated=True, truncated=False,
            action_names=_ACTIONS, frame_skip=4,
        )  # fmt: skip
        frames = np.repeat(rng.integers(0, 256, (steps, 84, 12), dtype=np.uint8), 7, axis=2)
        episode = Episode(
            meta=meta, frames=frames, label=label, executed=label, reward=np.zeros(steps, np.float32),
            probes=np.zeros((steps, 128), np.uint8),
        )  # fmt: skip
        write_episode(episode_path(root, "atari", "bench", seed), episode)


def _bare_loop(config: TrainConfig, trainer: Trainer) -> Loop:
    """Return a function that runs some steps of the bare loop and returns frames/s."""
    device, batch = trainer.device, config.batch_size
    policy = AtariPolicy(trainer.policy.config).to(device).to(memory_format=torch.channels_last)  # type: ignore[arg-type, call-overload]
    optimizer = make_optimizer(policy, config)
    frames = torch.randint(0, 256, (batch, 84, 84, 4), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 4, (batch,), device=device)

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with autocast(device, trainer.precision):
                logits = policy.logits(frames)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * batch / (time.perf_counter() - began)

    return run


def _measure(width: int, args: argparse.Namespace, root: Path, console: Console) -> dict[str, Any]:
    config = TrainConfig(
        family="atari", task="bench", data=str(root), out=str(root), model={"width": width}, max_steps=1,
        batch_size=args.batch_size, threads=args.threads, device=args.device, precision=args.precision, lr=1e-4,
        eval_every_steps=0,
    )  # fmt: skip
    config = dataclasses.replace(config, held_out=0.0)
    prepared = atari.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source, prepared.held_out)
    ours, bare = our_loop(trainer, config.batch_size), _bare_loop(config, trainer)
    return {"width": width, **race(trainer, ours, bare, config.batch_size, f"width {width}", args, console)}


def main() -> int:
    """Measure every width; return 1 if a budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train.json"))
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 23, 34, 50])
    parser.add_argument("--batch-size", type=int, default=128)
    add_arguments(parser, seconds=2.0)
    args, console = parser.parse_args(), report_console()
    report: dict[str, Any] = {"benchmark": "train", "goal_ratio": GOAL, "batch_size": args.batch_size}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        _record(Path(folder), episodes=4, steps=2500)
        report["results"] = [_measure(width, args, Path(folder), console) for width in args.widths]
    return show(report, "width", f"goal: median ratio {GOAL} or more", args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
