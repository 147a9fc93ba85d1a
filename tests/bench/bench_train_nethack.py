"""Budgets of training NetHack: frames/s of `playserve train nethack` against a bare loop, and its waits for data.

Ours reads replayed expert games from shards. The bare loop has one batch of them in memory, and neither clips nor
measures nor saves; it carries the memory, as a recurrent policy must. Both run in turns in each round; the ratio of a
round is ours / bare. The bare loop is also the probe of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_train_nethack.py --out runs/bench/train_nethack.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import machine, report_console
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from training_race import GOAL, Loop, add_arguments, our_loop, race, show

from playserve_trainer.data.batches import IGNORED_LABEL
from playserve_trainer.models.registry import build, describe
from playserve_trainer.recipes import nethack
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer

_WAIT_GOAL = 0.05  # share of the time that the loop may wait for data


def _replay(out: Path, steps: int) -> None:
    """Play the carried games again, into shards."""
    playserve = Path(sys.executable).with_name("playserve")
    subprocess.run([playserve, "data", "replay", "--out", str(out), "--steps", str(steps)], check=True)


def _loops(config: TrainConfig) -> tuple[Trainer, Loop, Loop]:
    """Return the trainer, and two functions that run some steps of its loop, or of the bare one: frames/s."""
    prepared = nethack.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source)
    frames = config.batch_size * config.sequence_length

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

    return trainer, our_loop(trainer, frames), bare


def _measure(core: str, data: Path, out: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    flags = {name: getattr(args, name) for name in ("width", "batch_size", "sequence_length") if getattr(args, name)}
    settings = nethack.settings({
        "data": str(data), "out": str(out), "core": core, "max_steps": 1, "held_out": 0.0, "eval_every_steps": 0,
        "threads": args.threads, "device": args.device, "precision": args.precision, **flags,
    })  # fmt: skip
    config = TrainConfig.from_json({**settings, "lr": 1e-5})
    trainer, ours, bare = _loops(config)
    frames = config.batch_size * config.sequence_length
    result = race(trainer, ours, bare, frames, core, args, console)
    if result["verdict"] == "met" and result["data_wait_fraction"] >= _WAIT_GOAL:
        result["verdict"] = "missed"
    shape = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
    return {"core": core, "model": dict(config.model), **shape, **result}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train_nethack.json"))
    parser.add_argument("--data", type=Path, help="replayed games (default: replays some of the carried ones)")
    parser.add_argument("--steps", type=int, default=200_000, help="steps to replay (default %(default)s)")
    parser.add_argument("--cores", nargs="+", default=["lstm", "transformer"])
    parser.add_argument("--width", type=int, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--sequence-length", type=int)
    add_arguments(parser, seconds=3.0)
    return parser.parse_args()


def main() -> int:
    """Measure both cores; return 1 if a budget is missed."""
    args, console = _arguments(), report_console()
    report: dict[str, Any] = {"benchmark": "train_nethack", "goal_ratio": GOAL, "goal_data_wait": _WAIT_GOAL}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "games"
        if args.data is None:
            _replay(data, args.steps)
        report["results"] = [_measure(core, data, Path(folder), args, console) for core in args.cores]
    goals = f"goals: median ratio {GOAL} or more, waits below {_WAIT_GOAL:.0%}"
    return show(report, "core", goals, args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
