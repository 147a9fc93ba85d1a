"""Files of games as keys: the carried one, and what is said of damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from playserve_client.nethack.games import GameFileMissingError, GamesDamagedError, carried_games, read_games


def test_the_carried_games_are_whole_and_small() -> None:
    games = read_games(carried_games())
    assert carried_games().stat().st_size < 5_000_000
    assert len(games) == 146
    assert sum(game.steps for game in games) == 6_660_855
    assert {game.character for game in games} == {"mon-hum-neu-mal"}
    first = games[0]
    assert (first.name, first.seed, first.score, first.steps, first.turns) == (
        "mon-hum-neu-mal-20000", 20000, 16_073, 41_062, 29_977,
    )  # fmt: skip
    assert (first.experience_level, first.max_depth, first.end, first.player) == (9, 4, "finished", "AutoAscend")
    assert first.keys.dtype == np.uint8
    assert all(len(game.keys) == game.steps for game in games)


def write(path: Path, change: Callable[[dict[str, list[Any]], dict[str, str]], None]) -> Path:
    """Write the two first carried games, changed."""
    table = pyarrow.parquet.read_table(carried_games()).slice(0, 2)
    columns = table.to_pydict()
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    change(columns, metadata)
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_birthdays_may_be_told(tmp_path: Path) -> None:
    def change(columns: dict[str, list[Any]], _: dict[str, str]) -> None:
        columns["birthday"] = [1_700_000_000, None]

    assert [game.birthday for game in read_games(carried_games())[:2]] == [None, None]
    assert [game.birthday for game in read_games(write(tmp_path / "games.parquet", change))] == [1_700_000_000, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns, _: columns.pop("turns"), "no column turns"),
        (lambda columns, _: columns["steps"].__setitem__(1, 7), "seed 20001.*40,754 keys for 7 steps"),
        (lambda columns, _: columns["score"].__setitem__(0, None), "seed 20000.*score is None"),
        (lambda columns, _: columns["keys"].__setitem__(0, b"\0" * 41_062), "seed 20000.*key 0 at step 0"),
        (lambda columns, _: columns["seed"].__setitem__(0, -1), "negative"),
        (lambda columns, _: columns["seed"].__setitem__(1, 20000), "mon-hum-neu-mal-20000 is there twice"),
        (lambda _, metadata: metadata.update(seeding="none"), "seeded as 'none'"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path / "games.parquet", change)
    with pytest.raises(GamesDamagedError, match=message) as caught:
        read_games(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_or_of_another_kind_is_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(carried_games().read_bytes()[:-1000])
    other = tmp_path / "other.parquet"
    other.write_text("seed,keys\n")
    for path in (cut, other):
        with pytest.raises(GamesDamagedError, match=path.name):
            read_games(path)
    with pytest.raises(GameFileMissingError, match="none"):
        read_games(tmp_path / "none.parquet")
