"""What came out of the Doom recipe: scores, goals with their controls, the rubric, desktops; read from JSON files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from playserve.errors import DataLossError, NotFoundError
from playserve_trainer.demo.doom.plan import DoomPlan
from playserve_trainer.demo.doom.steps import rollout_folder
from playserve_trainer.demo.files import read_json

__all__ = ["CONTROLS", "RUBRIC", "read_results", "share_interval"]

#: Columns of the table of instructions: name, text, phrasing.
CONTROLS = (
    ("unseen", "right", "held_out"),
    ("trained", "right", "training"),
    ("no text", "none", "held_out"),
    ("wrong text", "wrong", "held_out"),
)
#: Facts of an episode, and how they are told: the rubric.
RUBRIC = (
    ("idle_per_100s", "idle, s"),
    ("jitter_per_100s", "jitter"),
    ("shots_at_nothing_per_100s", "shots at nothing"),
    ("misses_per_100s", "misses"),
    ("wall_per_100s", "at walls, s"),
)
_Z = 1.959964


def share_interval(hits: int, count: int) -> dict[str, float] | None:
    """Return Wilson's 95% interval of a share: unlike a bootstrap it does not vanish where every episode is alike."""
    if not count:
        return None
    share, spread = hits / count, _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # Rounding must not keep 1 out of the interval of 50 of 50.
    return {"low": max(0.0, middle - half) if hits else 0.0, "high": min(1.0, middle + half) if hits < count else 1.0}


def read_results(plan: DoomPlan, out: Path) -> dict[str, Any]:
    """Return everything that was measured, as one JSON value.

    Raises:
        NotFoundError: A rollout is missing.
        DataLossError: A file is damaged.
    """
    read = {rollout.key: read_json(rollout_folder(rollout, out) / "results.json") for rollout in plan.rollouts()}
    scores = [_score(plan, scenario, read) for scenario in plan.scores if plan.score_episodes]
    goals = [_goal(plan, name, goal, read) for name, goals in plan.maps if plan.goal_episodes for goal in goals]
    desktops = [found for scenario in plan.scores if (found := _desktop(plan, scenario, out, read)) is not None]
    return {"scores": scores, "goals": goals, "desktop": desktops, "verdicts": _verdicts(plan, scores, goals, desktops)}


def _score(plan: DoomPlan, scenario: str, read: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rollout = plan.score_rollout(scenario)
    report = read[rollout.key]
    rows = {row["key"]: row for row in report["rows"]}
    normalised = next((item for item in report.get("normalised", ()) if item["row"] == "sample"), None)
    facts = rows["sample"].get("fact_means", {})
    return {
        "scenario": scenario,
        "goal": rollout.goal,
        "episodes": rows["sample"]["episodes"],
        "agent": _mean(rows.get("sample")),
        "random": _mean(rows.get("random")),
        "idle": _mean(rows.get("idle")),
        "expert": _mean(rows.get("expert")),
        "normalised": normalised and {"value": normalised["value"], "interval": normalised["interval"]},
        "rubric": {fact: facts.get(fact) for fact, _ in RUBRIC},
        "rubric_expert": {fact: rows.get("expert", {}).get("fact_means", {}).get(fact) for fact, _ in RUBRIC},
        "results": f"rollout/{rollout.key}/results.json",
    }


def _mean(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {"mean": row["mean"], "interval": row["mean_interval"], "episodes": row["episodes"]}


def _goal(plan: DoomPlan, scenario: str, goal: str, read: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return in which share of the episodes a goal was met: by the agent, by who cannot know it, by the expert."""
    found: dict[str, Any] = {"scenario": scenario, "goal": goal}
    for name, text, phrasing in CONTROLS:
        rollout = plan.goal_rollout(scenario, goal, text=text, phrasing=phrasing)
        report = read.get(rollout.key)
        wanted = plan.goal_episodes if name == "unseen" else plan.control_episodes
        found[name] = None if report is None else _share(report, "sample", wanted)
    right = read[plan.goal_rollout(scenario, goal).key]
    for row in ("random", "idle", "expert"):
        found[row] = _share(right, row, plan.baseline_episodes)
    return found


def _share(report: Mapping[str, Any], row: str, first: int) -> dict[str, Any] | None:
    """Return the share of a row's first episodes, those whose seeds both goals have, that met the goal."""
    episodes = sorted((item for item in report["episodes"] if item["row"] == row), key=lambda item: item["number"])
    met = [bool(item["facts"]["goal_met"]) for item in episodes[:first] if "goal_met" in item["facts"]]
    if not met:
        return None
    return {"share": sum(met) / len(met), "episodes": len(met), "interval": share_interval(sum(met), len(met))}


def _desktop(plan: DoomPlan, scenario: str, out: Path, read: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what was played at a desktop, normalised by the headless random player and expert; None: nothing was."""
    try:
        played = read_json(out / "desktop" / scenario / "results.json")
    except NotFoundError:
        return None
    report = read.get(plan.score_rollout(scenario).key)
    if report is None:
        return None
    from playserve_client.evaluate.statistics import bootstrap_mean, normalised_score

    def scores(row: str) -> list[float]:
        return [item["score"] for item in report["episodes"] if item["row"] == row]

    own = [float(episode["score"]) for episode in played["episodes"]]
    low, high = scores("random"), scores("expert")
    if not (own and low and high):
        raise DataLossError(f"desktop/{scenario}: {len(own)} episodes beside {len(low)} random and {len(high)} expert")
    around, normalised = bootstrap_mean(own), asdict(normalised_score(own, low, high))
    facts = [episode["facts"] for episode in played["episodes"]]
    return {
        "scenario": scenario,
        "episodes": len(own),
        "mean": sum(own) / len(own),
        "interval": around and asdict(around),
        "normalised": {"value": normalised["value"], "interval": normalised["interval"]},
        "rubric": {fact: sum(float(item[fact]) for item in facts) / len(facts) for fact, _ in RUBRIC},
        "play": {
            key: played["play"].get(key)
            for key in ("mean_rate_hz", "round_trip_ms", "model_ms", "capture_to_applied_ms", "tally")
        },
        "results": f"desktop/{scenario}/results.json",
    }


def _verdicts(
    plan: DoomPlan,
    scores: Sequence[Mapping[str, Any]],
    goals: Sequence[Mapping[str, Any]],
    desktops: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return for each number that has a limit whether it reaches it, and whether its lower bound does."""
    found = [
        _verdict(f"{item['scenario']}, headless", item["normalised"], "value", plan.score_limit) for item in scores
    ]
    found += [
        _verdict(f"{item['scenario']}: {item['goal']}, unseen phrasings", item["unseen"], "share", plan.goal_limit)
        for item in goals
    ]
    found += [
        _verdict(f"{item['scenario']}, desktop", item["normalised"], "value", plan.desktop_limit) for item in desktops
    ]
    return found


def _verdict(name: str, item: Mapping[str, Any] | None, key: str, limit: float | None) -> dict[str, Any]:
    value = item[key] if item else None
    interval = item["interval"] if item else None
    met = None if limit is None else value is not None and value >= limit
    sure = None if limit is None else interval is not None and interval["low"] >= limit
    return {"name": name, "value": value, "interval": interval, "limit": limit, "met": met, "lower_bound_met": sure}
