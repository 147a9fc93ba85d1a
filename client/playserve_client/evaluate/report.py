"""What a run amounts to: one summary a row, and the JSON file with every episode. Missing results are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from playserve_client.evaluate.journal import Result
from playserve_client.evaluate.plan import Row, Settings
from playserve_client.evaluate.statistics import RESAMPLES, Interval, bootstrap_difference, bootstrap_mean, deciles

__all__ = ["RowSummary", "build_report", "summarize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary:
    """Statistics of one row; None where there is nothing to tell.

    Attributes:
        key: Name for programs.
        name: Name for people.
        stickiness: Of the emulator.
        planned: Episodes assigned.
        episodes: Episodes finished.
        mean: Mean score.
        mean_interval: Its 95% bootstrap interval.
        median: Median score.
        deciles: 10th to 90th percentile.
        minimum: Lowest score.
        maximum: Highest score.
        mean_steps: Mean length.
        truncated: Episodes that were cut.
        distinct: Episodes that differ in an action or a reward: a deterministic player repeats itself.
        replayed: Attempts that were lost and played again.
    """

    key: str
    name: str
    stickiness: float | None
    planned: int
    episodes: int
    mean: float | None
    mean_interval: Interval | None
    median: float | None
    deciles: list[float] | None
    minimum: float | None
    maximum: float | None
    mean_steps: float | None
    truncated: int
    distinct: int
    replayed: int


def summarize(settings: Settings, results: Mapping[tuple[str, int], Result]) -> list[RowSummary]:
    """Return one summary a row, in the table's order."""
    return [_summary(row, _finished(row, settings, results), settings) for row in settings.rows()]


def _finished(row: Row, settings: Settings, results: Mapping[tuple[str, int], Result]) -> list[Result]:
    planned = row.assignments(settings.seed_start, settings.shard)
    return [results[a.row, a.number] for a in planned if (a.row, a.number) in results]


def _summary(row: Row, finished: Sequence[Result], settings: Settings) -> RowSummary:
    scores = [result.score for result in finished]
    tenths = deciles(scores)
    return RowSummary(
        key=row.key,
        name=row.name,
        stickiness=row.stickiness,
        planned=len(row.assignments(settings.seed_start, settings.shard)),
        episodes=len(finished),
        mean=sum(scores) / len(scores) if scores else None,
        mean_interval=bootstrap_mean(scores),
        median=tenths[4] if tenths else None,
        deciles=tenths,
        minimum=min(scores, default=None),
        maximum=max(scores, default=None),
        mean_steps=sum(result.steps for result in finished) / len(finished) if finished else None,
        truncated=sum(result.truncated for result in finished),
        distinct=len({result.digest for result in finished}),
        replayed=sum(result.attempts - 1 for result in finished),
    )


def build_report(
    settings: Settings, results: Mapping[tuple[str, int], Result], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON value of ``results.json``: settings, protocol, rows, differences, every episode, and `extra`."""
    rows = summarize(settings, results)
    finished = {row.key: _finished(row, settings, results) for row in settings.rows()}
    return {
        **extra,
        "settings": settings.to_json(),
        "protocol": settings.protocol(),
        "statistics": {
            "interval": f"95% percentile bootstrap of the mean, {RESAMPLES} resamples, seed 0",
            "deciles": "10th to 90th percentile, linear interpolation",
        },
        "complete": all(row.episodes == row.planned for row in rows),
        "rows": [asdict(row) for row in rows],
        "versus_best_baseline": _versus(rows, finished),
        "episodes": [asdict(result) for row in settings.rows() for result in finished[row.key]],
    }


def _versus(rows: Sequence[RowSummary], finished: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Return, for each agent row, how far it is above the best player that knows nothing."""
    found = []
    for agent in rows:
        if agent.key.partition("-")[0] not in ("sample", "argmax"):
            continue
        baselines = [
            row
            for row in rows
            if row.stickiness == agent.stickiness
            and row.key.partition("-")[0] in ("random", "constant")
            and row.mean is not None
        ]
        if not baselines or agent.mean is None:
            continue
        best = max(baselines, key=lambda row: row.mean or 0.0)
        scores = [[result.score for result in finished[key]] for key in (agent.key, best.key)]
        interval = bootstrap_difference(*scores)
        found.append({
            "row": agent.key,
            "baseline": best.key,
            "difference": agent.mean - (best.mean or 0.0),
            "interval": None if interval is None else asdict(interval),
        })  # fmt: skip
    return found
