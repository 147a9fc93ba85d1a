"""Budget of the training loop: frames/s of `playserve train atari` against a bare loop over the same model.

The bare loop has its batch in memory: no data, no clipping, no metrics, no saves. Both run in turns in each round; the
ratio of a round is ours / bare. The bare loop is also the probe of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_train.py --out runs/bench/train.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from playserve_client.recordings import Episode, EpisodeMeta, episode_path, write_episode
from playserve_trainer.models.atari import AtariPolicy
from playserve_trainer.recipes import atari
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer

_GOAL = 0.8
_JITTER = 0.3  # relative spread (interquartile range over median) of the bare loop beyond which nothing is concluded
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


def _our_loop(config: TrainConfig) -> tuple[Trainer, Callable[[int], float]]:
    """Return the trainer, and a function that runs some steps and returns frames/s."""
    prepared = atari.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source, prepared.held_out)

    def run(steps: int) -> float:
        trainer.config = dataclasses.replace(config, max_steps=trainer.step + steps)
        began = time.perf_counter()
        trainer.run()
        return steps * config.batch_size / (time.perf_counter() - began)

    return trainer, run


def _bare_loop(config: TrainConfig, trainer: Trainer) -> Callable[[int], float]:
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
    trainer, ours = _our_loop(dataclasses.replace(config, held_out=0.0))
    bare = _bare_loop(config, trainer)
    ours(5), bare(5)
    steps = max(5, round(args.seconds * bare(5) / args.batch_size))
    rounds: list[tuple[float, float]] = []
    for number in track(range(args.rounds), f"width {width}", console=console, transient=True):
        # Who is first changes: a machine that warms up or slows down must not favour one of them.
        if number % 2:
            bare_fps = bare(steps)
            rounds.append((ours(steps), bare_fps))
        else:
            rounds.append((ours(steps), bare(steps)))
    ours_fps, bare_fps_all = [r[0] for r in rounds], [r[1] for r in rounds]
    quartiles = statistics.quantiles(bare_fps_all, n=4) if len(rounds) > 1 else [0.0, 0.0, 0.0]
    median_ratio = statistics.median(a / b for a, b in rounds)
    jitter = (quartiles[2] - quartiles[0]) / statistics.median(bare_fps_all)
    verdict = "inconclusive" if jitter > _JITTER else "met" if median_ratio >= _GOAL else "missed"
    return {
        "width": width, "num_params": trainer.policy.num_params(), "flops_per_sample": trainer.flops_per_sample,
        "steps_per_round": steps, "precision": trainer.precision, "threads": trainer.threads,
        "ours_fps": {"best": max(ours_fps), "median": statistics.median(ours_fps), "rounds": ours_fps},
        "bare_fps": {"best": max(bare_fps_all), "median": statistics.median(bare_fps_all), "rounds": bare_fps_all},
        "ratio": {"best": max(ours_fps) / max(bare_fps_all), "median": median_ratio},
        "data_wait_fraction": trainer.data_wait_s / trainer.loop_s, "bare_jitter": jitter, "verdict": verdict,
    }  # fmt: skip


def main() -> int:
    """Measure every width; return 1 if a budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train.json"))
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 23, 34, 50])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one side of a round (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    console = Console()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        _record(Path(folder), episodes=4, steps=2500)
        results = [_measure(width, args, Path(folder), console) for width in args.widths]
    report = {
        "benchmark": "train", "goal_ratio": _GOAL, "batch_size": args.batch_size, "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__, "capabilities": torch.backends.cpu.get_cpu_capability(), "load_before": load,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("width", "ours best", "ours median", "bare best", "bare median", "ratio", "waits for data", "verdict")
    for row in results:
        table.add_row(
            str(row["width"]),
            *(f"{row[side][kind]:,.0f}" for side in ("ours_fps", "bare_fps") for kind in ("best", "median")),
            f"{row['ratio']['median']:.2f} (best {row['ratio']['best']:.2f})", f"{row['data_wait_fraction']:.1%}",
            row["verdict"],
        )  # fmt: skip
    console.print(table)
    console.print(f"frames/s; goal: median ratio {_GOAL} or more; load before {load:.1f}; {args.out}", soft_wrap=True)
    return 1 if any(row["verdict"] == "missed" for row in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
