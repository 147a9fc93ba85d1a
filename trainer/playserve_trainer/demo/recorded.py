"""The expert's games that an agent of the demo learns from: whether they are whole, and what they are."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from playserve.errors import DataLossError, NotFoundError, PlayserveError
from playserve_trainer.demo.files import read_json
from playserve_trainer.demo.plan import GamePlan

if TYPE_CHECKING:
    from playserve_client.nethack.shards import TtyDataset

__all__ = ["describe_recorded", "is_recorded"]

_SUMMARY = "summary.json"


def is_recorded(game: GamePlan, folder: Path) -> bool:
    """Return whether the expert's games in `folder` are all there."""
    if game.family == "nethack":
        try:
            return _nethack(folder).frames_total >= game.steps
        except PlayserveError:
            return False
    try:
        summary = read_json(folder / _SUMMARY)
    except (NotFoundError, DataLossError):
        return False
    return not summary["interrupted"] and summary["frames"] >= game.steps


def describe_recorded(game: GamePlan, folder: Path) -> str:
    """Return what the games are, for people.

    Raises:
        NotFoundError: There are none.
        DataLossError: Their description is damaged.
    """
    if game.carried:
        return "none here: the package carries the checkpoint"
    if game.family == "nethack":
        dataset = _nethack(folder)
        scores = [meta.score for meta in dataset.games if meta.score is not None]
        mean = f", expert's mean {fmean(scores):,.0f}" if scores else ""
        return f"{len(dataset.games)} games replayed from seeds and keys, {dataset.frames_total:,} steps{mean}"
    summary = read_json(folder / _SUMMARY)
    return (
        f"{summary['episodes']} episodes, {summary['frames']:,} steps, expert's mean {summary['score_mean']:.1f} with "
        f"noise {summary['settings']['epsilon']:g}"
    )


def _nethack(folder: Path) -> TtyDataset:
    from playserve_client.nethack.shards import TtyDataset

    return TtyDataset.open(folder)
