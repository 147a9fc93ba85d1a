from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.evaluate.families import family_of
from playserve_client.nethack.expert_statistics import (
    ExpertStatistics,
    carried_statistics,
    count_keys,
    main,
    read_statistics,
)
from playserve_client.nethack.keys import KEY_TO_ACTION


def _record(seed: int, keys: bytes, **changes) -> SimpleNamespace:
    wanted = {"seed": seed, "character": "mon-hum-neu-mal", "score": 10 * seed, "steps": len(keys),
              "turns": 7, "experience_level": 2, "max_depth": 3, "end": "finished",
              "keys": np.frombuffer(keys, np.uint8)}  # fmt: skip
    return SimpleNamespace(**{**wanted, **changes})


def test_keys_are_counted_by_action_and_pairs_within_a_game_only():
    counts, bigram = count_keys(np.frombuffer(keys, np.uint8) for keys in (b"hhj", b"jh"))
    h, j = KEY_TO_ACTION[list(b"hj")]
    assert (counts[h], counts[j], counts.sum()) == (3, 2, 5)
    assert (bigram[h, h], bigram[h, j], bigram[j, h], bigram.sum()) == (1, 1, 1, 3)


def test_a_file_holds_everything():
    statistics = ExpertStatistics.of_records([_record(1, b"hhj"), _record(2, b"jh", end="stopped")], "two games")
    again = ExpertStatistics.from_bytes(statistics.to_bytes())
    assert again.to_bytes() == statistics.to_bytes()
    assert (again.counts == statistics.counts).all()
    assert (again.bigram == statistics.bigram).all()
    assert again.games == statistics.games
    assert (again.expert, again.character, again.source) == ("AutoAscend", "mon-hum-neu-mal", "two games")
    assert [(game.name, game.score, game.steps, game.depth, game.end) for game in again.games] == [
        ("1", 10.0, 3, 3, "finished"),
        ("2", 20.0, 2, 3, "stopped"),
    ]


def test_games_of_several_characters_are_of_none():
    records = [_record(1, b"h"), _record(2, b"j", character="val-dwa-law-fem")]
    assert ExpertStatistics.of_records(records, "two games").character == ""
    with pytest.raises(BadSettingError, match="holds no games"):
        ExpertStatistics.of_records([], "nothing")


def test_the_carried_file_is_what_the_field_measured():
    statistics = ExpertStatistics.from_bytes(carried_statistics().read_bytes())
    assert statistics.counts.sum() == sum(game.steps for game in statistics.games) == 6_660_855
    assert len(statistics.games) == 146
    assert statistics.bigram.sum() == 6_660_855 - 146
    assert statistics.character == "mon-hum-neu-mal"
    assert "sha256" in statistics.source
    assert len({game.name for game in statistics.games}) == 146
    # None of them is a game of an evaluation.
    assert max(int(game.name) for game in statistics.games) < 1_000_000


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format_version": 1}', b"[1]"])
def test_damage_is_said(damage):
    with pytest.raises(DataLossError, match="damaged"):
        ExpertStatistics.from_bytes(damage)


def test_other_formats_and_senseless_tables_are_refused():
    value = json.loads(carried_statistics().read_bytes())
    with pytest.raises(BadSettingError, match="version 9"):
        ExpertStatistics.from_bytes(json.dumps({**value, "format_version": 9}).encode())
    for changes in ({"counts": [1, 2]}, {"counts": [0] * 121}, {"bigram": [[500, 0, 1]]}, {"bigram": [[0, 0, -1]]}):
        with pytest.raises(DataLossError, match="damaged"):
            ExpertStatistics.from_bytes(json.dumps({**value, **changes}).encode())


def test_paths(tmp_path):
    with pytest.raises(NotFoundError, match="not there"):
        read_statistics(tmp_path / "none.parquet")
    assert read_statistics(carried_statistics()).to_bytes() == carried_statistics().read_bytes()


def test_the_command_makes_the_carried_file_again(tmp_path):
    pytest.importorskip("pyarrow")
    from playserve_client.nethack.games import carried_games

    assert main([str(carried_games()), "--out", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_bytes() == carried_statistics().read_bytes()


def test_shards_are_counted_without_masked_keys_and_games_without_keys(tmp_path, drawn):
    from playserve_client.nethack.shards import GameMeta, ShardWriter

    keys = np.frombuffer(b"hhjjh y", np.uint8)
    with ShardWriter(tmp_path) as writer:
        for seed, has_keys in ((7, True), (8, False)):
            chunk = drawn(seed, len(keys))
            expert = np.array([True] * 5 + [False] * 2)
            writer.begin(
                GameMeta(
                    name=f"game-{seed}", character="mon-hum-neu-mal", source="keys", score=100 * seed, steps=5,
                    turns=4, depth=2, end="finished", seed=seed, has_keys=has_keys,
                )
            )  # fmt: skip
            writer.append(replace(chunk, keys=keys, expert=expert))
            writer.end()
    statistics = read_statistics(tmp_path)
    h, j = KEY_TO_ACTION[list(b"hj")]
    assert (statistics.counts[h], statistics.counts[j], statistics.counts.sum()) == (3, 2, 5)
    assert (statistics.bigram[h, h], statistics.bigram[j, h], statistics.bigram.sum()) == (1, 1, 4)
    assert (statistics.expert, statistics.character) == ("AutoAscend", "mon-hum-neu-mal")
    assert "digest" in statistics.source
    (game,) = statistics.games
    assert (game.name, game.score, game.steps, game.turns, game.experience_level) == ("7", 700.0, 5, 4, None)
    (row,) = family_of("nethack").recorded(_written(tmp_path / "s.json", statistics))
    assert [result.facts for result in row.results] == [{"turns": 4, "depth": 2, "end": "finished"}]


def _written(path: Path, statistics: ExpertStatistics) -> Path:
    path.write_bytes(statistics.to_bytes())
    return path
