"""A folder of the Doom recipe as its commands leave it, without the hour that they take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playserve_trainer.demo.doom.film import film_paths
from playserve_trainer.demo.doom.plan import QUICK_PLAN, DoomPlan, Rollout
from playserve_trainer.demo.doom.steps import rollout_folder

PLAN = dataclasses.replace(
    QUICK_PLAN,
    scores=("basic",),
    score_episodes=6,
    baseline_episodes=4,
    goal_episodes=6,
    control_episodes=4,
    desktop_episodes=4,
    score_limit=0.7,
    goal_limit=0.8,
    desktop_limit=0.6,
)
SCORES = {"sample": 76.0, "random": -120.0, "idle": -300.0, "expert": 86.0}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rollout(out: Path, rollout: Rollout, met: float) -> None:
    """Write a rollout whose agent meets the goal in a share `met` of the episodes, the first ones."""
    counts = {"sample": rollout.episodes}
    if rollout.baseline_episodes:
        counts |= dict.fromkeys(("random", "idle", "expert"), rollout.baseline_episodes)
    rows, episodes = [], []
    for key, count in counts.items():
        share = {"sample": met, "random": 0.25, "idle": 0.0, "expert": 1.0}[key]
        facts = {"idle_per_100s": 1.5, "jitter_per_100s": 10.0, "shots_at_nothing_per_100s": 0.0,
                 "misses_per_100s": 2.0, "wall_per_100s": 0.25}  # fmt: skip
        for number in range(count):
            goal_met = {} if rollout.scenario == "basic" else {"goal_met": number < share * count}
            score = SCORES[key] + (-1) ** number
            episodes.append({"row": key, "number": number, "score": score, "facts": {**facts, **goal_met}})
        interval = {"low": SCORES[key] - 1, "high": SCORES[key] + 1}
        rows.append({"key": key, "name": key, "episodes": count, "mean": SCORES[key], "mean_interval": interval,
                     "fact_means": facts})  # fmt: skip
    way = SCORES["expert"] - SCORES["random"]
    normalised = {"row": "sample", "value": (SCORES["sample"] - SCORES["random"]) / way,
                  "interval": {"low": 0.9, "high": 0.98}}  # fmt: skip
    write_json(rollout_folder(rollout, out) / "results.json", {
        "complete": True, "rows": rows, "episodes": episodes, "normalised": [normalised],
    })  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., tuple[DoomPlan, Path]]:
    """Return a function that writes a finished folder, whose agent obeys as often as it is told."""

    def make(*, obeys: float = 1.0) -> tuple[DoomPlan, Path]:
        out = tmp_path / "doom"
        goals = [
            {"scenario": scenario, "goal": goal, "frames": PLAN.frames}
            for scenario, goal in (("basic", "shoot_monster"), ("two_vests", "green"), ("two_vests", "red"))
        ]
        write_json(out / "data" / "summary.json", {
            "interrupted": False, "goals": goals, "frames": 900, "frames_per_second": 45.0, "seconds": 3.0,
        })  # fmt: skip
        published = {"store": "elsewhere", "name": "doom", "version": "1"}
        write_json(out / "train" / "summary.json", {"finished": True, "published": published, "elapsed_s": 100.0})
        write_json(out / "store" / "doom" / "1" / "manifest.json", {
            "num_params": 1_694_944, "samples_seen": 900_000, "flops": 10**14, "flops_6nd": 10**13,
            "metrics": {"loss": 0.2}, "data_digest": "d1" * 32, "weights_sha256": "ab" * 32, "code_version": "0.1.0",
            "created_at": "2026-01-01T00:00:00+00:00",
        })  # fmt: skip
        for rollout in PLAN.rollouts():
            met = {"right": obeys, "none": 0.5, "wrong": 0.0}[rollout.text]
            write_rollout(out, rollout, met)
        facts = {"idle_per_100s": 1.0, "jitter_per_100s": 0.0, "shots_at_nothing_per_100s": 0.0,
                 "misses_per_100s": 0.0, "wall_per_100s": 0.0}  # fmt: skip
        write_json(out / "desktop" / "basic" / "results.json", {
            "episodes": [{"episode": n, "score": 60.0 + n, "facts": facts} for n in range(4)],
            "play": {"mean_rate_hz": 20.0, "model_ms": {"count": 9, "p50": 9.0, "p99": 12.0},
                     "capture_to_applied_ms": {"count": 9, "p50": 12.0, "p99": 19.0}},
        })  # fmt: skip
        for scenario, goal in PLAN.filmed:
            path, described = film_paths(out, scenario, goal)
            write_json(described, {
                "path": f"films/{path.name}", "scenario": scenario, "goal": goal, "instruction": "kill <it>",
                "tries": 3, "episodes": [{"seed": 1, "score": 91.0}], "score": 91.0, "goal_met": None, "whole": True,
                "bytes": 5, "frames": 12, "round_trip_ms": {"p50": 9.1, "p99": 14.0},
            })  # fmt: skip
            path.write_bytes(b"films")
        return PLAN, out

    return make
