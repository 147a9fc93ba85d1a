"""What the benchmarks of training share: our loop against a bare one, in turns, and the report."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from playserve_trainer.train.loop import Trainer

__all__ = ["GOAL", "Loop", "add_arguments", "our_loop", "race", "show"]

#: Least share of the bare loop's frames/s.
GOAL = 0.8
# Relative spread (interquartile range over median) of the bare loop beyond which nothing is concluded.
_JITTER = 0.3

#: Runs so many steps and returns frames/s.
Loop = Callable[[int], float]


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Add the arguments of every benchmark of training."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=seconds, help="of one side of a round (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")


def our_loop(trainer: Trainer, frames_a_step: int) -> Loop:
    """Return a function that trains on by some steps, with all that the training loop does."""
    config = trainer.config

    def run(steps: int) -> float:
        trainer.config = dataclasses.replace(config, max_steps=trainer.step + steps)
        began = time.perf_counter()
        trainer.run()
        return steps * frames_a_step / (time.perf_counter() - began)

    return run


def race(
    trainer: Trainer, ours: Loop, bare: Loop, frames_a_step: int, title: str, args: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Run both in turns; return rates, ratio, waits for data and the verdict."""
    ours(3), bare(3)
    steps = max(3, round(args.seconds * bare(5) / frames_a_step))
    waited, looped = trainer.data_wait_s, trainer.loop_s
    rounds: list[tuple[float, float]] = []
    for number in track(range(args.rounds), title, console=console, transient=True):
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
    return {
        "num_params": trainer.policy.num_params(), "flops_per_sample": trainer.flops_per_sample,
        "steps_per_round": steps, "precision": trainer.precision, "threads": trainer.threads,
        "device": str(trainer.device),
        "ours_fps": {"best": max(ours_fps), "median": statistics.median(ours_fps), "rounds": ours_fps},
        "bare_fps": {"best": max(all_bare), "median": statistics.median(all_bare), "rounds": all_bare},
        "ratio": {"best": max(ours_fps) / max(all_bare), "median": ratio},
        "data_wait_fraction": (trainer.data_wait_s - waited) / (trainer.loop_s - looped), "bare_jitter": jitter,
        "verdict": "inconclusive" if jitter > _JITTER else "met" if ratio >= GOAL else "missed",
    }  # fmt: skip


def show(report: dict[str, Any], key: str, goals: str, out: Path, console: Console) -> int:
    """Write the report, print its table; return 1 if a budget is missed. `key` names what the rows differ in."""
    report["machine"] |= {"torch": torch.__version__, "capabilities": torch.backends.cpu.get_cpu_capability()}
    write_json(out, report)
    table = Table(key, "ours best", "ours median", "bare best", "bare median", "ratio", "waits for data", "verdict")
    for row in report["results"]:
        table.add_row(
            str(row[key]),
            *(f"{row[side][kind]:,.0f}" for side in ("ours_fps", "bare_fps") for kind in ("best", "median")),
            f"{row['ratio']['median']:.2f} (best {row['ratio']['best']:.2f})", f"{row['data_wait_fraction']:.1%}",
            row["verdict"],
        )  # fmt: skip
    console.print(table)
    load = report["machine"]["load_before"]
    console.print(f"frames/s; {goals}; load before {load:.1f}; {out}", soft_wrap=True)
    return 1 if any(row["verdict"] == "missed" for row in report["results"]) else 0
