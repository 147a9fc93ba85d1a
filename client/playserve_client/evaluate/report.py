"""What a run amounts to: one summary a row, and the JSON file with every episode. Missing results are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from playserve_client.evaluate.families import Recorded, Role
from playserve_client.evaluate.journal import Result
from playserve_client.evaluate.plan import Row, Settings
from playserve_client.evaluate.statistics import (
    RESAMPLES,
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    deciles,
    normalised_score,
)

__all__ = ["RowSummary", "build_report", "summarize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary:
    """Statistics of one row; None where there is nothing to tell.

    Attributes:
        key: Name for programs.
        name: Name for people.
        role: The served policy, a player that knows nothing, or the expert.
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
        fact_means: Mean of each number that the environment says of its episodes; of those that say it.
        fact_counts: How often it said which word, the most frequent first.
    """

    key: str
    name: str
    role: Role
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
    fact_means: dict[str, float]
    fact_counts: dict[str, dict[str, int]]


def summarize(settings: Settings, results: Mapping[tuple[str, int], Result]) -> list[RowSummary]:
    """Return one summary a row, in the table's order."""
    return [_of_row(row, _finished(row, settings, results), settings) for row in settings.rows()]


def _finished(row: Row, settings: Settings, results: Mapping[tuple[str, int], Result]) -> list[Result]:
    planned = row.assignments(settings.seed_start, settings.shard)
    return [results[a.row, a.number] for a in planned if (a.row, a.number) in results]


def _of_row(row: Row, finished: Sequence[Result], settings: Settings) -> RowSummary:
    planned = len(row.assignments(settings.seed_start, settings.shard))
    by_seed = settings.env.rules.seeds_are_games
    distinct = {(result.digest, result.env_seed if by_seed else None) for result in finished}
    return _summary(
        finished,
        key=row.key,
        name=row.name,
        role=row.role,
        stickiness=row.stickiness,
        planned=planned,
        distinct=len(distinct),
    )


def _summary(
    finished: Sequence[Result],
    *,
    key: str,
    name: str,
    role: Role,
    planned: int,
    distinct: int,
    stickiness: float | None = None,
) -> RowSummary:
    scores = [result.score for result in finished]
    tenths = deciles(scores)
    means, counts = _facts(finished)
    return RowSummary(
        key=key,
        name=name,
        role=role,
        stickiness=stickiness,
        planned=planned,
        episodes=len(finished),
        mean=sum(scores) / len(scores) if scores else None,
        mean_interval=bootstrap_mean(scores),
        median=tenths[4] if tenths else None,
        deciles=tenths,
        minimum=min(scores, default=None),
        maximum=max(scores, default=None),
        mean_steps=sum(result.steps for result in finished) / len(finished) if finished else None,
        truncated=sum(result.truncated for result in finished),
        distinct=distinct,
        replayed=sum(result.attempts - 1 for result in finished),
        fact_means=means,
        fact_counts=counts,
    )


def _elsewhere(item: Recorded) -> RowSummary:
    games = len(item.results)
    distinct = len({result.digest for result in item.results})
    return _summary(item.results, key=item.key, name=item.name, role="expert", planned=games, distinct=distinct)


def _facts(finished: Sequence[Result]) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    numbers: dict[str, list[float]] = {}
    words: dict[str, Counter[str]] = {}
    for result in finished:
        for name, value in result.facts.items():
            if isinstance(value, str):
                words.setdefault(name, Counter())[value] += 1
            elif isinstance(value, int | float):
                numbers.setdefault(name, []).append(float(value))
    means = {name: sum(values) / len(values) for name, values in numbers.items()}
    return means, {name: dict(counter.most_common()) for name, counter in words.items()}


def build_report(
    settings: Settings,
    results: Mapping[tuple[str, int], Result],
    extra: Mapping[str, Any],
    recorded: Sequence[Recorded] = (),
) -> dict[str, Any]:
    """Return the JSON value of ``results.json``: settings, protocol, rows, differences, every episode, and `extra`.

    Args:
        settings: Of the run.
        results: Finished episodes by (row key, number).
        extra: Further entries. Its "notes" are lines for people.
        recorded: Rows that nobody plays; they stand last.
    """
    rows = summarize(settings, results)
    elsewhere = [_elsewhere(item) for item in recorded]
    rules = settings.env.rules
    finished = {row.key: _finished(row, settings, results) for row in settings.rows()}
    return {
        **extra,
        "notes": [*extra.get("notes", ()), *(note for item in recorded for note in item.notes)],
        "title": rules.title(settings.env),
        "columns": [asdict(column) for column in rules.columns],
        "settings": settings.to_json(),
        "protocol": settings.protocol(),
        "statistics": {
            "interval": f"95% percentile bootstrap of the mean, {RESAMPLES} resamples, seed 0",
            "deciles": "10th to 90th percentile, linear interpolation",
        },
        "complete": all(row.episodes == row.planned for row in rows),
        "rows": [asdict(row) for row in [*rows, *elsewhere]],
        "versus_best_baseline": _versus(rows, finished),
        "normalised": _normalised(rows, finished) if rules.normalises else [],
        "episodes": [asdict(result) for row in settings.rows() for result in finished[row.key]],
    }


def _normalised(rows: Sequence[RowSummary], finished: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Return, for each row, which part of the way from the random player to the expert it went, with its interval."""
    found = []
    for row in rows:
        beside = [other for other in rows if other.stickiness == row.stickiness and other.mean is not None]
        low = next((other for other in beside if other.key.partition("-")[0] == "random"), None)
        high = next((other for other in beside if other.role == "expert"), None)
        if row.mean is None or low is None or high is None or row in (low, high):
            continue
        scores = ([result.score for result in finished[key]] for key in (row.key, low.key, high.key))
        found.append({"row": row.key, **asdict(normalised_score(*scores))})
    return found


def _versus(rows: Sequence[RowSummary], finished: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Return, for each agent row, how far it is above the best player that knows nothing."""
    found = []
    for agent in rows:
        if agent.role != "agent":
            continue
        baselines = [
            row
            for row in rows
            if row.stickiness == agent.stickiness and row.role == "baseline" and row.mean is not None
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
