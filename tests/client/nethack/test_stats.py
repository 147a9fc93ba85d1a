from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.cli import main
from playserve.errors import DataLossError
from playserve_client.nethack.keys import ACTION_NAMES, KEY_TO_ACTION, NUM_ACTIONS
from playserve_client.nethack.shards import ShardWriter, TtyDataset
from playserve_client.nethack.stats import KeyStatistics, collect_dataset_stats, key_statistics


@pytest.fixture
def dataset(tmp_path: Path, drawn: Any) -> TtyDataset:
    """Return two games with keys, and one without."""
    with ShardWriter(tmp_path / "data") as writer:
        drawn.write(writer, 1, drawn(1, 400))
        drawn.write(writer, 2, drawn(2, 300))
        drawn.write(writer, 3, drawn(3, 50), has_keys=False)
    return TtyDataset.open(tmp_path / "data")


def test_only_the_experts_keys_are_counted(dataset: TtyDataset) -> None:
    counts = np.zeros(NUM_ACTIONS, np.int64)
    bigram = np.zeros((NUM_ACTIONS, NUM_ACTIONS), np.int64)
    for game in (0, 1):
        keys, expert, before = dataset.keys(game), dataset.expert(game), -1
        for key, is_expert in zip(keys, expert, strict=True):
            action = KEY_TO_ACTION[key]
            if is_expert and action >= 0:
                counts[action] += 1
                if before >= 0:
                    bigram[before, action] += 1
            before = action
    found = key_statistics(dataset, [0, 1])
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.bigram, bigram)


def test_statistics_are_saved_and_read(dataset: TtyDataset, tmp_path: Path) -> None:
    found = key_statistics(dataset)
    found.save(tmp_path / "keys.json")
    again = KeyStatistics.load(tmp_path / "keys.json")
    np.testing.assert_array_equal(again.counts, found.counts)
    np.testing.assert_array_equal(again.bigram, found.bigram)
    for damaged in ("", "{}", '{"format": "other", "counts": [], "bigram": []}'):
        (tmp_path / "keys.json").write_text(damaged)
        with pytest.raises(DataLossError, match="no key statistics"):
            KeyStatistics.load(tmp_path / "keys.json")


def test_what_a_dataset_holds(dataset: TtyDataset) -> None:
    stats = collect_dataset_stats(dataset)
    learnt = int(dataset.expert(0).sum() + dataset.expert(1).sum())
    assert (stats["games"], stats["frames"], stats["frames_without_keys"]) == (3, 750, 50)
    assert (stats["expert_frames"], stats["masked_frames"]) == (learnt, 700 - learnt)
    assert sum(stats["keys"].values()) + stats["keys_of_no_action"] == learnt
    assert set(stats["keys"]) <= set(ACTION_NAMES)
    assert list(stats["keys"].values()) == sorted(stats["keys"].values(), reverse=True)
    assert (stats["score"]["mean"], stats["score"]["max"]) == (200, 300)
    assert len(stats["score"]["deciles"]) == 9
    assert stats["turns"] is None
    assert stats["ends"] == {"killed by a newt": 3}
    assert stats["damaged"] == []


def test_the_command_names_damaged_shards(
    dataset: TtyDataset, tmp_path: Path, drawn: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    with ShardWriter(folder) as writer:
        drawn.write(writer, 9, drawn(9, 30))
    assert main(["data", "stats", str(folder)]) == 0
    shard = next(path for path in folder.glob("shard-*") if '"game-009"' in (path / "manifest.json").read_text())
    with (shard / "scores.bin").open("r+b") as file:
        file.write(b"\xff")
    capsys.readouterr()
    assert main(["data", "stats", str(folder), "--json", str(tmp_path / "stats.json")]) == 1
    assert "sha256 of scores.bin" in capsys.readouterr().out.replace("\n", " ")
    assert shard.name in (tmp_path / "stats.json").read_text()
