"""Budget of training p2p: frames/s of `playserve train p2p` against a bare loop over the same model.

Ours reads Doom recordings (frames decoded once into the cache) with their executed actions and instructions, augments,
clips, counts and saves. The bare loop has one synthetic batch in memory: random frames, actions, first steps and texts
of the same shapes. Both run in turns in each round; the ratio of a round is ours / bare. The bare loop is also the
probe of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_train_p2p.py --out runs/bench/train_p2p.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import machine, report_console
from rich.console import Console
from training_race import GOAL, Loop, add_arguments, our_loop, race, show

from playserve_trainer.data.batches import Batch
from playserve_trainer.models.registry import build, describe
from playserve_trainer.recipes import p2p
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer
from playserve_trainer.train.parallel import Group
from playserve_trainer.train.passes import count_labels


def _record(out: Path, frames: int) -> None:
    """Record scripted Doom experts."""
    playserve = Path(sys.executable).with_name("playserve")
    subprocess.run(
        [playserve, "data", "record", "doom", "--scenario", "basic", "--scenario", "defend_the_center",
         "--frames", str(frames), "--min-frames", "500", "--workers", "2", "--out", str(out)],
        check=True,
    )  # fmt: skip


def _synthetic(batch: Batch) -> Batch:
    """Return a batch of random frames with the shapes, labels and texts of a real one."""
    inputs = {
        name: torch.randint_like(tensor, 256) if tensor.dtype == torch.uint8 else tensor
        for name, tensor in batch.inputs.items()
    }
    return Batch(inputs, batch.executed_BTH, batch.first_BT, batch.labels_BTH, batch.samples)


def _loops(config: TrainConfig) -> tuple[Trainer, Loop, Loop]:
    """Return the trainer, and two functions that run some steps of its loop, or of the bare one: frames/s."""
    prepared = p2p.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source)
    frames = config.batch_size * config.sequence_length
    policy = build(*describe(prepared.policy)).to(trainer.device).train()
    optimizer = make_optimizer(policy, config)
    batch = _synthetic(prepared.source.batch(1).to(trainer.device))
    counts, _ = count_labels([batch], Group(), trainer.device)

    def bare(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with autocast(trainer.device, trainer.precision):
                output = policy(batch.inputs, batch.executed_BTH, batch.first_BT, None)
            loss = policy.loss(output.logits, batch.labels_BTH, counts)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * frames / (time.perf_counter() - began)

    return trainer, our_loop(trainer, frames), bare


def _measure(size: str, data: Path, out: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    settings = p2p.settings({
        "data": str(data), "out": str(out), "size": size, "max_steps": 1, "held_out": 0.0, "eval_every_steps": 0,
        "batch_size": args.batch_size, "sequence_length": args.sequence_length, "text_encoder": "words",
        "threads": args.threads, "device": args.device, "precision": args.precision,
    })  # fmt: skip
    config = TrainConfig.from_json({**settings, "lr": 1e-5})
    out.mkdir()
    trainer, ours, bare = _loops(config)
    frames = config.batch_size * config.sequence_length
    shape = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
    return {"size": size, **shape, **race(trainer, ours, bare, frames, size, args, console)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train_p2p.json"))
    parser.add_argument("--data", type=Path, help="recordings (default: records scripted Doom)")
    parser.add_argument("--frames", type=int, default=4000, help="of each scenario to record (default %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["1m", "6m"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=32)
    add_arguments(parser, seconds=4.0)
    return parser.parse_args()


def main() -> int:
    """Measure every size; return 1 if a budget is missed."""
    args, console = _arguments(), report_console()
    report: dict[str, Any] = {"benchmark": "train_p2p", "goal_ratio": GOAL}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "doom"
        if args.data is None:
            _record(data, args.frames)
        report["results"] = [_measure(size, data, Path(folder) / size, args, console) for size in args.sizes]
    return show(report, "size", f"goal: median ratio {GOAL} or more", args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
