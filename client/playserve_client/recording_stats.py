"""What a folder of recordings holds: counts, scores, actions, and the files that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError
from playserve_client.recordings import list_episodes, read_episode

__all__ = ["GameStats", "collect_stats"]


@dataclass(slots=True)
class GameStats:
    """One game of one environment family.

    Attributes:
        env: Environment family.
        game: Game.
        action_names: Names of the action indices.
        scores: Score of each episode.
        steps: Steps of each episode.
        truncated: Episodes that were cut.
        labels: How often the expert chose each action, int64 [A].
        executed: How often each action was executed, int64 [A].
        differing: Steps that executed something else than the label.
    """

    env: str
    game: str
    action_names: tuple[str, ...]
    scores: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    truncated: int = 0
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    executed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    differing: int = 0

    def __post_init__(self) -> None:
        self.labels = np.zeros(len(self.action_names), np.int64)
        self.executed = np.zeros(len(self.action_names), np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return the statistics for programs."""
        low, *quartiles, high = np.percentile(self.scores, [0, 25, 50, 75, 100]).tolist()
        return {
            "env": self.env,
            "game": self.game,
            "episodes": len(self.scores),
            "frames": sum(self.steps),
            "truncated": self.truncated,
            "score_mean": float(np.mean(self.scores)),
            "score_min": low,
            "score_quartiles": quartiles,
            "score_max": high,
            "labels": dict(zip(self.action_names, self.labels.tolist(), strict=True)),
            "executed": dict(zip(self.action_names, self.executed.tolist(), strict=True)),
            "differing": self.differing,
        }


def collect_stats(
    directory: Path, on_file: Callable[[int], None] = lambda _files: None
) -> tuple[list[GameStats], list[Path]]:
    """Read every episode under `directory`, all arrays checked.

    Args:
        directory: Any folder of recordings.
        on_file: Called with the number of files, after each of them.

    Returns:
        The statistics of each game, and the damaged files.
    """
    games: dict[tuple[str, str], GameStats] = {}
    damaged = []
    paths = list_episodes(directory)
    for path in paths:
        try:
            episode = read_episode(path)
        except DataLossError:
            damaged.append(path)
        else:
            meta = episode.meta
            stats = games.setdefault((meta.env, meta.game), GameStats(meta.env, meta.game, meta.action_names))
            stats.scores.append(meta.score)
            stats.steps.append(meta.steps)
            stats.truncated += meta.truncated
            stats.labels += np.bincount(episode.label[episode.label >= 0], minlength=len(meta.action_names))
            stats.executed += np.bincount(episode.executed[episode.executed >= 0], minlength=len(meta.action_names))
            stats.differing += int((episode.label != episode.executed).sum())
        on_file(len(paths))
    return list(games.values()), damaged
