"""The curve of a run: curve.jsonl, a line every so many updates, and episodes.jsonl, a line an episode."""

from __future__ import annotations

import contextlib
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from playserve_trainer.rl.learner import LearnerMeans
from playserve_trainer.rl.unrolls import EpisodeEnd
from playserve_trainer.train.metrics import MetricsLog

__all__ = ["CURVE_NAME", "EPISODES_NAME", "WINDOW", "Curve"]

CURVE_NAME = "curve.jsonl"
EPISODES_NAME = "episodes.jsonl"
#: Episodes behind "return_mean".
WINDOW = 100


class Curve:
    """Both files; a context manager. Lines of updates that a resumed run does again are cut off.

    Args:
        out: Folder of the run.
        resume_at: Update that the run goes on from; None: begin anew.
        scores: The newest scores at that update.
        episodes: How many episodes had ended.
    """

    def __init__(self, out: Path, resume_at: int | None, scores: Iterable[float] = (), episodes: int = 0) -> None:
        self._stack = contextlib.ExitStack()
        self._curve = self._stack.enter_context(MetricsLog(out / CURVE_NAME, resume_at))
        self._episodes = self._stack.enter_context(MetricsLog(out / EPISODES_NAME, resume_at))
        self.scores = deque(scores, WINDOW)
        self.episodes = episodes
        self._lengths: deque[int] = deque(maxlen=WINDOW)
        self._lag_versions: list[tuple[int, int]] = []
        self._lag_updates: list[tuple[int, int]] = []

    def __enter__(self) -> Curve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_episode(self, episode: EpisodeEnd, *, update: int, steps: int) -> None:
        """Take an episode that has ended; `steps` are those that were learnt from by then."""
        self.scores.append(episode.score)
        self._lengths.append(episode.steps)
        self.episodes += 1
        self._episodes.write(
            step=update, steps=steps, score=episode.score, length=episode.steps, version=episode.version,
            seed=episode.seed,
        )  # fmt: skip

    def add_lag(self, *, versions: int, updates: int, steps: int) -> None:
        """Take how old the policy was that acted for some steps, when they were learnt from."""
        self._lag_versions.append((versions, steps))
        self._lag_updates.append((updates, steps))

    def line(self, numbers: Mapping[str, Any], means: LearnerMeans) -> dict[str, Any]:
        """Write a line of curve.jsonl and return it.

        Args:
            numbers: "step", the update, and what else the run counts.
            means: Of the learner since the line before.
        """
        lag_versions, _ = _mean_and_most(self._lag_versions)
        lag_updates, lag_updates_max = _mean_and_most(self._lag_updates)
        value = {
            **numbers,
            "episodes": self.episodes,
            "return_mean": statistics.fmean(self.scores) if self.scores else None,
            "return_max": max(self.scores, default=None),
            "length_mean": statistics.fmean(self._lengths) if self._lengths else None,
            "lag_versions": lag_versions,
            "lag_updates": lag_updates,
            "lag_updates_max": lag_updates_max,
            **{name: round(number, 6) for name, number in means.values.items()},
        }
        self._curve.write(**value)
        self._lag_versions, self._lag_updates = [], []
        return value


def _mean_and_most(pairs: list[tuple[int, int]]) -> tuple[float | None, int | None]:
    """Return the mean of values by their weights, and the largest."""
    weight = sum(steps for _, steps in pairs)
    if not weight:
        return None, None
    return round(sum(value * steps for value, steps in pairs) / weight, 3), max(value for value, _ in pairs)
