"""A file of games as keys becomes a dataset: with workers, resumed, and without the games that do not come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from nle import dataset as nld

from playserve.cli import main
from playserve.errors import BadSettingError
from playserve_client.nethack.games import carried_games, read_games
from playserve_client.nethack.replay import replay_game
from playserve_client.nethack.replay_dataset import ReplaySettings, replay_dataset
from playserve_client.nethack.shards import TtyDataset

SHORT = (20033, 30030)


def write_games(path: Path, seeds: tuple[int, ...] = SHORT, **changes: list[Any]) -> Path:
    """Write some carried games, with columns changed."""
    table = pyarrow.parquet.read_table(carried_games())
    rows = {row["seed"]: row for row in table.to_pylist()}
    columns = {name: [rows[seed][name] for seed in seeds] for name in table.column_names} | changes
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(table.schema.metadata), path)
    return path


def check_dataset(out: Path, file: Path) -> None:
    """Hold a dataset to fresh replays."""
    dataset = TtyDataset.open(out)
    by_name = {meta.name: index for index, meta in enumerate(dataset.games)}
    for game in read_games(file):
        index = by_name.pop(game.name)
        meta = dataset.games[index]
        assert (meta.seed, meta.character, meta.source) == (game.seed, game.character, "keys")
        assert (meta.score, meta.steps, meta.turns, meta.depth) == (game.score, game.steps, game.turns, game.max_depth)
        assert meta.end.startswith("killed by")
        assert dataset.lengths[index] == game.steps
        wanted = next(iter(replay_game(game, chunk=game.steps)))
        chunk = dataset.read(index, 0, game.steps)
        for name in ("chars", "colors", "cursor", "keys", "scores", "expert"):
            np.testing.assert_array_equal(getattr(chunk, name), getattr(wanted, name))
    assert not by_name


def test_workers_write_every_game_and_a_second_run_keeps_them(tmp_path: Path) -> None:
    file, out = write_games(tmp_path / "games.parquet"), tmp_path / "out"
    seen: list[tuple[int, int]] = []
    report = replay_dataset(file, out, workers=2, progress=lambda frames, games: seen.append((frames, games)))
    assert (report.found, report.kept, report.replayed, report.frames) == (2, 0, 2, 757)
    assert [sum(column) for column in zip(*seen, strict=True)] == [757, 2]
    check_dataset(out, file)
    again = replay_dataset(file, out, workers=2)
    assert (again.kept, again.replayed, again.frames) == (2, 0, 0)
    assert json.loads((out / "replay.json").read_text()) == again.to_json()


def test_wanted_games_are_a_prefix(tmp_path: Path) -> None:
    file, out = write_games(tmp_path / "games.parquet"), tmp_path / "out"
    assert replay_dataset(file, out, steps=200, workers=0).replayed == 1
    assert replay_dataset(file, out, steps=214, workers=0).replayed == 1
    report = replay_dataset(file, out, games=1, workers=0)
    assert (report.kept, report.replayed) == (1, 0)
    check_dataset(out, file)
    with pytest.raises(BadSettingError, match="at least 1"):
        replay_dataset(file, out, games=0)


def test_a_game_that_does_not_come_out_is_named_and_left_out(tmp_path: Path) -> None:
    file, out = write_games(tmp_path / "games.parquet", score=[33, 94]), tmp_path / "out"
    report = replay_dataset(file, out, workers=0)
    assert (report.replayed, report.frames) == (1, 544)
    assert [name for name, _ in report.mismatched] == ["mon-hum-neu-mal-20033"]
    assert "score 32 came, 33 was recorded" in report.mismatched[0][1]
    assert [meta.seed for meta in TtyDataset.open(out).games] == [30030]


def test_a_missing_birthday_is_looked_for(tmp_path: Path) -> None:
    file = write_games(tmp_path / "games.parquet", (20042, 20033), birthday=[None, None])
    progress = []
    report = replay_dataset(file, tmp_path / "out", workers=0, progress=lambda frames, _: progress.append(frames))
    assert report.dated == ["mon-hum-neu-mal-20042"]
    assert not report.mismatched
    assert sum(progress) == report.frames == 3_568 + 213


def test_extras_are_kept(tmp_path: Path) -> None:
    file = write_games(tmp_path / "games.parquet", (20033,))
    replay_dataset(file, tmp_path / "out", settings=ReplaySettings(blstats=True, inventory=True), workers=0)
    game = read_games(file)[0]
    wanted = next(iter(replay_game(game, chunk=game.steps, blstats=True, inventory=True)))
    chunk = TtyDataset.open(tmp_path / "out").read(0, 0, game.steps)
    assert wanted.blstats is not None
    assert wanted.inv_glyphs is not None
    np.testing.assert_array_equal(chunk.blstats, wanted.blstats)
    np.testing.assert_array_equal(chunk.inv_glyphs, wanted.inv_glyphs)


def test_ttyrecs_are_those_of_nle(tmp_path: Path) -> None:
    file, out = write_games(tmp_path / "games.parquet", birthday=[None, None]), tmp_path / "out"
    replay_dataset(file, out, settings=ReplaySettings(ttyrec=True), workers=0)
    database = str(tmp_path / "games.db")
    nld.db.create(database)
    nld.add_nledata_directory(str(out / "nle_data"), "ours", database)
    data = nld.TtyrecDataset(
        "ours", batch_size=1, seq_length=64, dbfilename=database, shuffle=False, loop_forever=False
    )
    deaths = {data.get_meta(game)["death"] for game in data._gameids}
    assert deaths == {"killed by a wand", "killed by a giant mimic"}
    for gameid in data._gameids:
        keys = np.concatenate([batch["keypresses"][0].copy() for batch in data.get_ttyrecs([gameid], chunk_size=64)])
        assert any(np.array_equal(keys[: game.steps], game.keys) for game in read_games(file))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write_games(tmp_path / "games.parquet", turns=[95, 1]), tmp_path / "out"
    assert main(["data", "replay", str(file), "--out", str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "left out: game mon-hum-neu-mal-30030: turns 297 came, 1 was recorded" in printed
    assert main(["data", "replay", str(file), "--out", str(out), "--games", "1"]) == 0
    assert main(["data", "replay", str(tmp_path / "none"), "--out", str(out)]) != 0
