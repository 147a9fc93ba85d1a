"""A demo's folder as its commands leave it, without the minutes that they take."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playserve_trainer.demo.plan import DemoPlan, GamePlan

# Two pictures of 1x1, with a loop extension, a colour table for all and a graphic control before each.
GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
    b"!\xf9\x04\x00\x0a\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
    b"!\xf9\x04\x00\x0a\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02L\x01\x00;"
)
_NAMES = {"sample": "agent (sampled)", "argmax": "agent (argmax)", "random": "random",
          "constant": "most frequent action (1)", "expert": "expert"}  # fmt: skip


def game_plan(game: str = "breakout", goal: float | None = 10.0) -> GamePlan:
    return GamePlan(
        game=game,
        goal=goal,
        goal_note="random scores 0.2",
        steps=60_000,
        minutes=3.0,
        episodes=24,
        argmax_episodes=3,
        baseline_episodes=3,
    )


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_game(out: Path, game: str, means: dict[str, float], *, film: bytes | None = GIF) -> None:
    write_json(out / "data" / "atari" / game / "summary.json", {
        "frames": 60_210, "interrupted": False, "score_mean": 341.0, "settings": {"epsilon": 0.03}, "episodes": 30,
    })  # fmt: skip
    config = {"model": {"width": 34}, "seed": 0}
    write_json(out / "train" / game / "summary.json", {
        "finished": True, "published": {"store": "elsewhere", "name": game, "version": "1"}, "family": "atari",
        "num_params": 100_814, "samples_seen": 240_000, "epochs": 4.1, "flops": 12_300_000_000_000,
        "flops_6nd": 145_000_000_000, "flops_convention": "per layer", "elapsed_s": 195.2, "samples_per_s": 1230.0,
        "precision": "fp32", "threads": 2, "config": config,
        "data": {"episodes": 30, "held_out_episodes": 3, "held_out_samples": 6500, "damaged": []},
    })  # fmt: skip
    lines = [
        {"kind": "train", "samples": 1280 * step, "loss": 0.45 + 0.8 / step, "accuracy": 0.84 - 0.3 / step}
        for step in range(1, 188)
    ] + [
        {"kind": "eval", "samples": 32_000 * step, "held_out_loss": 0.5 + 0.4 / step,
         "held_out_accuracy": 0.81 - 0.15 / step}
        for step in range(1, 8)
    ]  # fmt: skip
    (out / "train" / game / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(out / "store" / game / "1" / "manifest.json", {
        "data_digest": "d1" * 32, "weights_sha256": "ab" * 32, "code_version": "0.1.0+gabc",
        "created_at": "2026-01-01T00:00:00+00:00", "config": {"action_names": ["NOOP", "FIRE", "RIGHT", "LEFT"]},
    })  # fmt: skip
    rows, episodes = [], []
    draw = random.Random(0)
    for sticky in (0.0, 0.25):
        for kind, mean in means.items():
            key = f"{kind}-s{sticky:g}"
            scores = [float(max(0, round(draw.gauss(mean, mean / 4)))) for _ in range(24 if kind == "sample" else 3)]
            if kind == "sample":
                scores = [mean - 1, mean + 1] * 12
            centre = statistics.fmean(scores)
            rows.append({
                "key": key, "name": _NAMES[kind], "stickiness": sticky, "episodes": len(scores), "planned": len(scores),
                "mean": centre, "mean_interval": {"low": centre * 0.9, "high": centre * 1.1},
                "median": statistics.median(scores), "deciles": [min(scores)] * 5 + [max(scores)] * 4,
                "mean_steps": 2000.0, "truncated": 0, "distinct": len(scores), "replayed": 0,
            })  # fmt: skip
            episodes += [{"row": key, "number": n, "score": score} for n, score in enumerate(scores)]
    videos = []
    if film is not None:
        videos = [{"path": "videos/best.gif", "row": "sample-s0", "number": 1, "score": 42.0, "steps": 1800,
                   "shown_steps": 1500, "seconds": 100.0}]  # fmt: skip
        (out / "rollout" / game / "videos").mkdir(parents=True, exist_ok=True)
        (out / "rollout" / game / "videos" / "best.gif").write_bytes(film)
    write_json(out / "rollout" / game / "results.json", {
        "complete": True, "failed": False, "rows": rows, "episodes": episodes, "videos": videos,
        "protocol": ["sampled: temperature 1; argmax: the most probable action", "frame skip 4, 1 to 30 no-ops"],
        "notes": ["action 1 is the most frequent <in> data"], "packages": {"ale-py": "0.12.1"},
    })  # fmt: skip


BREAKOUT = {"sample": 15.0, "argmax": 4.0, "random": 0.2, "constant": 0.0, "expert": 380.0}
FREEWAY = {"sample": 30.0, "argmax": 31.0, "random": 0.0, "constant": 21.8, "expert": 31.4}


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., tuple[DemoPlan, Path]]:
    """Return a function that writes a finished demo of both games and returns its plan and folder."""

    def make(*, breakout: float = 15.0, judged: bool = True, film: bytes | None = GIF) -> tuple[DemoPlan, Path]:
        out = tmp_path / "demo"
        write_game(out, "breakout", {**BREAKOUT, "sample": breakout}, film=film)
        write_game(out, "freeway", FREEWAY, film=film)
        games = (game_plan("freeway", 26.0 if judged else None), game_plan("breakout", 10.0 if judged else None))
        return DemoPlan(name="full", games=games), out

    return make
