"""The expert's games that an agent of the demo learns from: whether they are whole, and what they are."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from playserve.errors import DataLossError, NotFoundError, PlayserveError
from playserve_trainer.demo.plan import GamePlan

__all__ = ["describe_recorded", "is_recorded"]

_SUMMARY = "summary.json"


def is_recorded(game: GamePlan, folder: Path) -> bool:
    """Return whether the expert's games in `folder` are all there."""
    if game.family == "nethack":
        try:
            return sum(_nethack_steps(folder)) >= game.steps
        except PlayserveError:
            return False
    try:
        summary = _summary(folder)
    except (NotFoundError, DataLossError):
        return False
    return not summary["interrupted"] and summary["frames"] >= game.steps


def describe_recorded(game: GamePlan, folder: Path) -> str:
    """Return what the games are, for people.

    Raises:
        NotFoundError: There are none.
        DataLossError: Their description is damaged.
    """
    if game.family == "nethack":
        from playserve_client.nethack.shards import TtyDataset

        games = TtyDataset.open(folder).games
        scores = [meta.score for meta in games if meta.score is not None]
        mean = f", expert's mean {fmean(scores):,.0f}" if scores else ""
        return f"{len(games)} games replayed from seeds and keys, {sum(_nethack_steps(folder)):,} steps{mean}"
    summary = _summary(folder)
    return (
        f"{summary['episodes']} episodes, {summary['frames']:,} steps, expert's mean {summary['score_mean']:.1f} with "
        f"noise {summary['settings']['epsilon']:g}"
    )


def _nethack_steps(folder: Path) -> list[int]:
    from playserve_client.nethack.shards import TtyDataset

    return [int(length) for length in TtyDataset.open(folder).lengths]


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / _SUMMARY
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there; `playserve demo` with the same --out makes it") from error
    except ValueError as error:
        raise DataLossError(f"{path} is damaged: {error}") from error
    return value
