"""Budgets of training NetHack: frames/s of `playserve train nethack` against a bare loop, and its waits for data.

Ours reads replayed expert games from shards. The bare loop has one batch of them in memory, and neither clips nor
measures nor saves; it carries the memory, as a recurrent policy must. Both run in turns in each round; the ratio of a
round is ours / bare. The bare loop is also the probe of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_train_nethack.py --out runs/bench/train_nethack.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from playserve_trainer.data.batches import IGNORED_LABEL
from playserve_trainer.models.registry import build, describe
from playserve_trainer.recipes import nethack
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer

_GOAL = 0.8
_WAIT_GOAL = 0.05  # share of the time that the loop may wait for data
_JITTER = 0.3  # relative spread (interquartile range over median) of the bare loop beyond which nothing is concluded

Run = Callable[[int], float]


def _replay(out: Path, steps: int) -> None:
    """Play the carried games again, into shards."""
    playserve = Path(sys.executable).with_name("playserve")
    subprocess.run([playserve, "data", "replay", "--out", str(out), "--steps", str(steps)], check=True)


def _loops(config: TrainConfig) -> tuple[Trainer, Run, Run]:
    """Return the trainer, and two functions that run some steps of its loop, or of the bare one: frames/s."""
    prepared = nethack.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source)
    frames = config.batch_size * config.sequence_length

    def ours(steps: int) -> float:
        trainer.config = dataclasses.replace(config, max_steps=trainer.step + steps)
        began = time.perf_counter()
        trainer.run()
        return steps * frames / (time.perf_counter() - began)

    policy = build(*describe(prepared.policy)).to(trainer.device).train()
    optimizer = make_optimizer(policy, config)
    batch = prepared.source.batch(1).to(trainer.device)
    labels = batch.labels_BTH.flatten()
    state: Mapping[str, Tensor] | None = None

    def bare(steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            with autocast(trainer.device, trainer.precision):
                output = policy(batch.inputs, batch.executed_BTH, batch.first_BT, state)
            state = {name: tensor.detach() for name, tensor in output.state.items()}
            loss = F.cross_entropy(output.logits[0].flatten(0, 1).float(), labels, ignore_index=IGNORED_LABEL)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * frames / (time.perf_counter() - began)

    return trainer, ours, bare


def _measure(core: str, data: Path, out: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    flags = {name: getattr(args, name) for name in ("width", "batch_size", "sequence_length") if getattr(args, name)}
    settings = nethack.settings({
        "data": str(data), "out": str(out), "core": core, "max_steps": 1, "held_out": 0.0, "eval_every_steps": 0,
        "threads": args.threads, "device": args.device, "precision": args.precision, **flags,
    })  # fmt: skip
    config = TrainConfig.from_json({**settings, "lr": 1e-5})
    trainer, ours, bare = _loops(config)
    ours(3), bare(3)
    steps = max(3, round(args.seconds * bare(5) / (config.batch_size * config.sequence_length)))
    waited, looped = trainer.data_wait_s, trainer.loop_s
    rounds: list[tuple[float, float]] = []
    for number in track(range(args.rounds), core, console=console, transient=True):
        # Who is first changes: a machine that warms up or slows down must not favour one of them.
        if number % 2:
            bare_fps = bare(steps)
            rounds.append((ours(steps), bare_fps))
        else:
            rounds.append((ours(steps), bare(steps)))
    ours_fps, all_bare = [r[0] for r in rounds], [r[1] for r in rounds]
    quartiles = statistics.quantiles(all_bare, n=4) if len(rounds) > 1 else [0.0, 0.0, 0.0]
    ratio = statistics.median(a / b for a, b in rounds)
    jitter = (quartiles[2] - quartiles[0]) / statistics.median(all_bare)
    wait = (trainer.data_wait_s - waited) / (trainer.loop_s - looped)
    met = ratio >= _GOAL and wait < _WAIT_GOAL
    return {
        "core": core, "model": dict(config.model), "num_params": trainer.policy.num_params(),
        "flops_per_sample": trainer.flops_per_sample, "batch_size": config.batch_size,
        "sequence_length": config.sequence_length, "steps_per_round": steps, "precision": trainer.precision,
        "threads": trainer.threads, "device": str(trainer.device),
        "ours_fps": {"best": max(ours_fps), "median": statistics.median(ours_fps), "rounds": ours_fps},
        "bare_fps": {"best": max(all_bare), "median": statistics.median(all_bare), "rounds": all_bare},
        "ratio": {"best": max(ours_fps) / max(all_bare), "median": ratio}, "data_wait_fraction": wait,
        "bare_jitter": jitter, "verdict": "inconclusive" if jitter > _JITTER else "met" if met else "missed",
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train_nethack.json"))
    parser.add_argument("--data", type=Path, help="replayed games (default: replays some of the carried ones)")
    parser.add_argument("--steps", type=int, default=200_000, help="steps to replay (default %(default)s)")
    parser.add_argument("--cores", nargs="+", default=["lstm", "transformer"])
    parser.add_argument("--width", type=int, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one side of a round (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    return parser.parse_args()


def main() -> int:
    """Measure both cores; return 1 if a budget is missed."""
    args, console = _arguments(), Console()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "games"
        if args.data is None:
            _replay(data, args.steps)
        results = [_measure(core, data, Path(folder), args, console) for core in args.cores]
    report = {
        "benchmark": "train_nethack", "goal_ratio": _GOAL, "goal_data_wait": _WAIT_GOAL, "results": results,
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__, "capabilities": torch.backends.cpu.get_cpu_capability(), "load_before": load,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("core", "ours best", "ours median", "bare best", "bare median", "ratio", "waits for data", "verdict")
    for row in results:
        table.add_row(
            row["core"],
            *(f"{row[side][kind]:,.0f}" for side in ("ours_fps", "bare_fps") for kind in ("best", "median")),
            f"{row['ratio']['median']:.2f} (best {row['ratio']['best']:.2f})", f"{row['data_wait_fraction']:.1%}",
            row["verdict"],
        )  # fmt: skip
    console.print(table)
    console.print(
        f"frames/s; goals: median ratio {_GOAL} or more, waits below {_WAIT_GOAL:.0%}; load before {load:.1f}; "
        f"{args.out}",
        soft_wrap=True,
    )
    return 1 if any(row["verdict"] == "missed" for row in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
