"""What a dataset of NetHack games holds: which keys follow which, and how the games went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError
from playserve_client.nethack.keys import ACTION_NAMES, KEY_TO_ACTION, NUM_ACTIONS
from playserve_client.nethack.shard_format import GameMeta
from playserve_client.nethack.tty_dataset import TtyDataset

__all__ = ["KeyStatistics", "collect_dataset_stats", "key_statistics"]

_FORMAT = "playserve-nethack-key-statistics-1"


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """How often the expert chose which action.

    Attributes:
        counts: int64 [121], by action.
        bigram: int64 [121, 121], by (action executed before, action); a game's first key counts in no row.
    """

    counts: NDArray[np.int64]
    bigram: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write JSON; pairs that never came are left out."""
        before, after = np.nonzero(self.bigram)
        pairs = np.stack([before, after, self.bigram[before, after]], axis=1)
        path.write_text(json.dumps({"format": _FORMAT, "counts": self.counts.tolist(), "bigram": pairs.tolist()}))

    @classmethod
    def load(cls, path: Path) -> KeyStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            DataLossError: The file is not that.
        """
        try:
            value = json.loads(path.read_text())
            if value["format"] != _FORMAT:
                raise ValueError(f"format is {value['format']}, wanted {_FORMAT}")
            counts = np.array(value["counts"], np.int64)
            pairs = np.array(value["bigram"], np.int64).reshape(-1, 3)
            bigram = np.zeros((NUM_ACTIONS, NUM_ACTIONS), np.int64)
            bigram[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
            if counts.shape != (NUM_ACTIONS,):
                raise ValueError(f"there are counts of {counts.shape} actions, wanted {NUM_ACTIONS}")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataLossError(f"{path} holds no key statistics: {error}") from error
        return cls(counts, bigram)


def key_statistics(dataset: TtyDataset, games: Sequence[int] | NDArray[np.int64] | None = None) -> KeyStatistics:
    """Count the keys of some games (None: all). Keys that are not the expert's, or no action's, are not counted."""
    counts = np.zeros(NUM_ACTIONS, np.int64)
    bigram = np.zeros(NUM_ACTIONS * NUM_ACTIONS, np.int64)
    for game in range(len(dataset.games)) if games is None else games:
        actions = KEY_TO_ACTION[dataset.keys(int(game))].astype(np.int64)
        learnt = dataset.expert(int(game)) & (actions >= 0)
        counts += np.bincount(actions[learnt], minlength=NUM_ACTIONS)
        pairs = learnt[1:] & (actions[:-1] >= 0)
        pair = actions[:-1][pairs] * NUM_ACTIONS + actions[1:][pairs]
        bigram += np.bincount(pair, minlength=NUM_ACTIONS * NUM_ACTIONS)
    return KeyStatistics(counts, bigram.reshape(NUM_ACTIONS, NUM_ACTIONS))


def collect_dataset_stats(dataset: TtyDataset) -> dict[str, Any]:
    """Return what a user wants to know before training, as a JSON value."""
    with_keys = [game for game, meta in enumerate(dataset.games) if meta.has_keys]
    counts = key_statistics(dataset, with_keys).counts
    learnt = int(sum(int(dataset.expert(game).sum()) for game in with_keys))
    frames = int(dataset.lengths[with_keys].sum())
    order = np.argsort(-counts, kind="stable")
    return {
        "directory": str(dataset.directory),
        "digest": dataset.digest,
        "bytes": dataset.nbytes,
        "games": len(dataset.games),
        "frames": dataset.frames_total,
        "expert_frames": learnt,
        "masked_frames": frames - learnt,
        "frames_without_keys": dataset.frames_total - frames,
        "keys_of_no_action": learnt - int(counts.sum()),
        "sources": _tally([meta.source for meta in dataset.games]),
        "characters": _tally([meta.character for meta in dataset.games]),
        "score": _distribution([meta.score for meta in dataset.games]),
        "steps": _distribution([meta.steps for meta in dataset.games]),
        "turns": _distribution([meta.turns for meta in dataset.games if meta.turns is not None]),
        "depth": _distribution([meta.depth for meta in dataset.games if meta.depth is not None]),
        "experience_level": _distribution(
            [meta.experience_level for meta in dataset.games if meta.experience_level is not None]
        ),
        "ends": _tally([_short_end(meta) for meta in dataset.games]),
        "keys": {ACTION_NAMES[action]: int(counts[action]) for action in order if counts[action]},
        "has_inventory": dataset.has_inventory,
        "has_blstats": dataset.has_blstats,
        "damaged": [{"path": str(error.path), "error": str(error)} for error in dataset.damaged],
        "duplicates": dataset.duplicates,
        "unfinished_shards": dataset.unfinished,
    }


def _distribution(values: Sequence[int]) -> Mapping[str, Any] | None:
    """Return count, mean, median, deciles (9) and extremes; None where there is no value."""
    if not values:
        return None
    array = np.array(values, np.float64)
    return {
        "games": len(values),
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "min": float(array.min()),
        "max": float(array.max()),
        "deciles": [float(value) for value in np.percentile(array, np.arange(10, 100, 10))],
    }


def _tally(names: Sequence[str]) -> dict[str, int]:
    """Return how often each came, the most frequent first."""
    found = dict.fromkeys(names, 0)
    for name in names:
        found[name] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _short_end(meta: GameMeta) -> str:
    """Return how a game ended without what the player did meanwhile."""
    return meta.end.partition(" while ")[0] or "unknown"
