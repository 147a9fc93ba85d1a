"""What came out: reads the JSON files, the curves and the film that the demo's commands wrote, and judges the goals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import DataLossError, NotFoundError
from playserve_trainer.demo.doom.film import film_paths
from playserve_trainer.demo.files import read_json
from playserve_trainer.demo.plan import DemoPlan, GamePlan
from playserve_trainer.demo.recorded import describe_recorded
from playserve_trainer.demo.steps import data_folder

__all__ = ["Curve", "GameOutcome", "is_played", "is_trained", "read_outcome", "read_outcomes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One learning curve.

    Attributes:
        samples: Frames trained on at each point.
        loss: Nats a label.
        accuracy: 0 to 1.
    """

    samples: Sequence[float]
    loss: Sequence[float]
    accuracy: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GameOutcome:
    """Everything that the page tells of one game.

    Attributes:
        plan: What was wanted.
        recorded: What the agent learnt from, for people.
        summary: summary.json of the training; empty where the checkpoint is carried.
        manifest: manifest.json of the published checkpoint.
        results: results.json of the rollout.
        learning: Running means over training batches.
        held_out: Evaluations on held-out episodes.
        video: What the film shows, or None.
        film: Its bytes (GIF, of Doom MP4), or None.
        ttyrec: The recording of the agent's best recorded game of NetHack, or None.
    """

    plan: GamePlan
    recorded: str
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    learning: Curve
    held_out: Curve
    video: Mapping[str, Any] | None
    film: bytes | None
    ttyrec: Path | None = None

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the score table."""
        rows: Sequence[Mapping[str, Any]] = self.results["rows"]
        return rows

    def row(self, key: str) -> Mapping[str, Any] | None:
        """Return a row by its key, None where it was not played."""
        return next((row for row in self.rows if row["key"] == key), None)

    def name_of(self, row: Mapping[str, Any]) -> str:
        """Return a row's name for people, with the action's name instead of its number."""
        kind, _, number = str(row["name"]).rstrip(")").partition(" (")
        names = self.manifest["config"].get("action_names") or []
        if row["key"].startswith("constant") and number.isdigit() and int(number) < len(names):
            return f"always {names[int(number)]}"
        return f"{kind} ({number})" if number else kind

    def scores(self, key: str) -> list[float]:
        """Return the score of each episode of a row."""
        return [episode["score"] for episode in self.results["episodes"] if episode["row"] == key]

    def judge(self) -> dict[str, Any]:
        """Return mean, interval and goal of the agent as a JSON value; `met` is None where no goal was set."""
        key, goal = self.plan.agent_row, self.plan.goal
        row = self.row(key) or {}
        mean, interval = row.get("mean"), row.get("mean_interval")
        low = interval["low"] if interval else None
        above = self._above_baselines(key) if self.plan.beats_baselines else None
        beats = above is not None and above["interval"] is not None and above["interval"]["low"] > 0
        met = mean is not None and goal is not None and mean >= goal and (beats or not self.plan.beats_baselines)
        return {
            "game": self.plan.game,
            "row": key,
            "episodes": row.get("episodes", 0),
            "mean": mean,
            "interval": interval,
            "goal": goal,
            "goal_note": self.plan.goal_note,
            "met": None if goal is None else met,
            "lower_bound_met": None if goal is None else low is not None and low >= goal,
            "above_best_baseline": above,
        }

    def _above_baselines(self, key: str) -> Mapping[str, Any] | None:
        """Return how far the agent is above the best baseline: its row, the difference, and its interval."""
        return next((item for item in self.results.get("versus_best_baseline", []) if item["row"] == key), None)


def read_outcomes(plan: DemoPlan, out: Path) -> list[GameOutcome]:
    """Return the outcome of each game; raises as :func:`read_outcome`."""
    return [read_outcome(game, out) for game in plan.games]


def read_outcome(game: GamePlan, out: Path) -> GameOutcome:
    """Return the outcome of one game.

    Raises:
        NotFoundError: A file is missing.
        DataLossError: A file is damaged.
    """
    if game.carried:
        return _read_carried(game, out)
    train, rollout = out / "train" / game.game, out / "rollout" / game.game
    summary, results = read_json(train / "summary.json"), read_json(rollout / "results.json")
    learning, held_out = _read_curves(train / "metrics.jsonl")
    video = results["videos"][0] if results["videos"] else None
    film = rollout / video["path"] if video else None
    return GameOutcome(
        plan=game,
        recorded=describe_recorded(game, data_folder(game, out)),
        summary=summary,
        manifest=read_json(_published(summary, out / "store")),
        results=results,
        learning=learning,
        held_out=held_out,
        video=video,
        film=film.read_bytes() if film is not None and film.exists() else None,
        ttyrec=_best_recording(results, rollout),
    )


def _read_carried(game: GamePlan, out: Path) -> GameOutcome:
    """Return the outcome of a game whose checkpoint was made elsewhere: no training, and a film with its own story."""
    film, described = film_paths(out, game.scenario, game.scenario_goal)
    return GameOutcome(
        plan=game,
        recorded=describe_recorded(game, out),
        summary={},
        manifest=read_json(out / "store" / game.game / "1" / "manifest.json"),
        results=read_json(out / "rollout" / game.game / "results.json"),
        learning=_curve(()),
        held_out=_curve(()),
        video=_read_or_none(described),
        film=film.read_bytes() if film.exists() else None,
    )


def _best_recording(results: Mapping[str, Any], rollout: Path) -> Path | None:
    recordings = results.get("recordings") or []
    return rollout / max(recordings, key=lambda item: item["score"])["path"] if recordings else None


def is_begun(folder: Path) -> bool:
    """Return whether a training in `folder` left a state that it goes on from."""
    return (folder / "state.safetensors").exists()


def is_published(folder: Path) -> bool:
    """Return whether the policy's `folder` in the store has its first version."""
    return (folder / "1" / "manifest.json").exists()


def is_trained(folder: Path, store: Path) -> bool:
    """Return whether the training in `folder` reached its end and its checkpoint is in the store."""
    summary = _read_or_none(folder / "summary.json")
    if summary is None or not summary["finished"] or not summary["published"]:
        return False
    return _published(summary, store).exists()


def is_played(folder: Path) -> bool:
    """Return whether the rollout in `folder` is whole."""
    results = _read_or_none(folder / "results.json")
    return bool(results and results["complete"] and not results.get("failed"))


def _published(summary: Mapping[str, Any], store: Path) -> Path:
    # By its place in the demo's folder: the summary's own path means something only where the demo was started.
    published = summary["published"]
    return store / str(published["name"]) / str(published["version"]) / "manifest.json"


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (NotFoundError, DataLossError):
        return None


def _read_curves(path: Path) -> tuple[Curve, Curve]:
    points: dict[str, list[tuple[float, float, float]]] = {"train": [], "eval": []}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there: no learning curve to show") from error
    for line in lines:
        try:
            item = json.loads(line)
            prefix = "held_out_" if item["kind"] == "eval" else ""
            points[item["kind"]].append((item["samples"], item[f"{prefix}loss"], item[f"{prefix}accuracy"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(f"{path} has a line that is no metric: {line[:80]!r}") from error
    return _curve(points["train"]), _curve(points["eval"])


def _curve(points: Sequence[tuple[float, float, float]]) -> Curve:
    samples, loss, accuracy = zip(*points, strict=True) if points else ((), (), ())
    return Curve(samples=samples, loss=loss, accuracy=accuracy)
