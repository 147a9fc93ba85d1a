"""Budget of training worlds and agents on tokens: frames/s of `playserve train` against a bare compiled loop.

Ours reads a token cache of a made-up game, with all that the training loop does. The bare loop has one batch in memory,
goes through torch.compile, and neither clips nor measures nor saves; with --eager neither side is compiled. Both run in
turns in each round; the ratio of a round is ours / bare. The bare loop is also the probe of the machine: where it
jitters, nothing is concluded.

    python tests/bench/bench_train_world.py --out runs/bench/train_world.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine, report_console
from rich.console import Console
from torch.nn import functional as F
from training_race import GOAL, Loop, add_arguments, our_loop, race, show

from playserve_trainer.data.batches import IGNORED_LABEL
from playserve_trainer.data.tokens.cache import write_cache
from playserve_trainer.data.tokens.games import GameEpisode
from playserve_trainer.models.policy import by_choices
from playserve_trainer.models.registry import build, describe
from playserve_trainer.models.tokenizer import Tokenizer
from playserve_trainer.recipes.families import recipe_of
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.optimize import make_optimizer

_SIDE = 64
_ACTIONS = 4


class _Noise:
    """Episodes of noise; a GameSource."""

    digest = "noise"
    frame_shape = (_SIDE, _SIDE, 1)
    probe_names: tuple[str, ...] = ()
    action: Mapping[str, Any] = {"spec": {"discrete": {"n": _ACTIONS}}, "heads": [_ACTIONS]}
    game: Mapping[str, Any] = {"game": "noise", "rate_hz": 0.0, "frame_skip": 1}

    def __len__(self) -> int:
        return 4

    def read(self, unit: int) -> Sequence[GameEpisode]:
        rng, count = np.random.default_rng(unit), 500
        told = rng.integers(0, _ACTIONS, (count, 1)).astype(np.int32)
        return [
            GameEpisode(
                name=f"noise-{unit}", seed=unit, place=0.5, executed_NA=told, labels_NA=told, terminated=True,
                frames_NHWC=rng.integers(0, 256, (count, _SIDE, _SIDE, 1), dtype=np.uint8),
                reward_N=np.zeros(count, np.float32), probes_NP=np.zeros((count, 0), np.float32),
            )
        ]  # fmt: skip


def _tokenise(folder: Path, tokens: int) -> None:
    config = {"height": _SIDE, "width": _SIDE, "channels": 1, "tokens": tokens, "filters": 8, "decoder_filters": 8}
    tokenizer = build("tokenizer", config).eval()
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"{type(tokenizer).__name__} is no tokenizer")
    write_cache(folder, _Noise(), tokenizer, keep_frames=True, held_out=0.0)


def _loops(config: TrainConfig, family: str, compiled: bool) -> tuple[Trainer, Loop, Loop]:
    """Return the trainer, and two functions that run some steps of its loop, or of the bare one: frames/s."""
    prepared = recipe_of(family).prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source)
    frames = config.batch_size * config.sequence_length
    policy = build(*describe(prepared.policy)).to(trainer.device).train()
    forward = torch.compile(policy) if compiled else policy
    optimizer = make_optimizer(policy, config)
    batch = prepared.source.batch(1).to(trainer.device)

    def bare(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with autocast(trainer.device, trainer.precision):
                output = forward(batch.inputs, batch.executed_BTH, batch.first_BT)
            parts = by_choices(output.logits, batch.labels_BTH)
            losses = [F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL) for logits, labels, _ in parts]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * frames / (time.perf_counter() - began)

    return trainer, our_loop(trainer, frames), bare


def _measure(family: str, data: Path, out: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    recipe = recipe_of(family)
    settings = recipe.settings({
        "game": "noise", "tokens": args.tokens, "data": str(data), "out": str(out), "width": args.width,
        "context": args.context, "batch_size": args.batch_size, "max_steps": 1, "held_out": 0.0, "eval_every_steps": 0,
        "threads": args.threads, "device": args.device, "precision": args.precision, "compile": not args.eager,
    })  # fmt: skip
    config = TrainConfig.from_json({**settings, "lr": 1e-5})
    out.mkdir(exist_ok=True)
    trainer, ours, bare = _loops(config, family, not args.eager)
    result = race(trainer, ours, bare, config.batch_size * config.sequence_length, family, args, console)
    shape = {"batch_size": config.batch_size, "sequence_length": config.sequence_length, "tokens": args.tokens}
    return {"family": family, "model": {"width": args.width, "context": args.context}, **shape, **result}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/train_world.json"))
    parser.add_argument("--families", nargs="+", default=["wm-token", "bc-token", "bc-cnn"])
    parser.add_argument("--tokens", type=int, default=36, help="of a frame (default %(default)s)")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--context", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--eager", action="store_true", help="compile neither side")
    add_arguments(parser, seconds=3.0)
    return parser.parse_args()


def main() -> int:
    """Measure each family; return 1 if a budget is missed."""
    args, console = _arguments(), report_console()
    report: dict[str, Any] = {"benchmark": "train_world", "goal_ratio": GOAL, "compiled": not args.eager}
    with machine(report), tempfile.TemporaryDirectory() as folder:
        _tokenise(Path(folder) / f"noise-{args.tokens}", args.tokens)
        report["results"] = [
            _measure(family, Path(folder), Path(folder) / family, args, console) for family in args.families
        ]
    return show(report, "family", f"goal: median ratio {GOAL} or more", args.out, console)


if __name__ == "__main__":
    raise SystemExit(main())
