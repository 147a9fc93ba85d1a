from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playserve.errors import BadSettingError, DataLossError, NotFoundError, ShapeMismatchError, StateError
from playserve_client.nethack.shards import NO_KEY, ShardWriter, TtyBatch, TtyDataset, recover_shards


@settings(max_examples=40)
@given(data=st.data())
def test_what_was_written_is_read_at_any_place(data: st.DataObject, drawn: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    every = data.draw(st.integers(1, 17))
    limit = data.draw(st.sampled_from([1, 1 << 30]))
    games = [drawn(data.draw(st.integers(0, 999)), length) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), keyframe_every=every, max_shard_bytes=limit) as writer:
            for seed, game in enumerate(games):
                writer.begin(drawn.meta(seed, len(game)))
                at = 0
                while at < len(game):
                    size = data.draw(st.integers(1, len(game)))
                    writer.append(drawn.part(game, at, at + size))
                    at += size
                writer.end()
        dataset = TtyDataset.open(Path(folder))
        assert dataset.lengths.tolist() == lengths
        for index, game in enumerate(games):
            drawn.equal(dataset.read(index), game)
            start = data.draw(st.integers(0, len(game) - 1))
            stop = data.draw(st.integers(start + 1, len(game)))
            drawn.equal(dataset.read(index, start, stop), drawn.part(game, start, stop))
        # Rows that walk, jump and go from game to game.
        rows, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
        flat_game = np.repeat(np.arange(len(games)), lengths)
        flat_step = np.concatenate([np.arange(length) for length in lengths])
        begin = np.array([data.draw(st.integers(0, len(flat_game) - 1)) for _ in range(rows)])
        place = (begin[:, None] + np.arange(steps)) % len(flat_game)
        batch = dataset.frames(flat_game[place], flat_step[place])
        for row, step in np.ndindex(rows, steps):
            game, frame = games[flat_game[place[row, step]]], int(flat_step[place[row, step]])
            assert (batch.chars[row, step] == game.chars[frame]).all()
            assert (batch.colors[row, step] == game.colors[frame]).all()
            assert (batch.cursor[row, step] == game.cursor[frame]).all()
            assert batch.keys[row, step] == game.keys[frame]
            assert batch.scores[row, step] == game.scores[frame]
            assert batch.expert[row, step] == game.expert[frame]
            assert batch.previous_keys[row, step] == (game.keys[frame - 1] if frame else NO_KEY)


def test_inventory_and_bottom_lines_are_kept(tmp_path: Path, drawn: Any) -> None:
    game = drawn(1, 50, inventory=True, blstats=True)
    with ShardWriter(tmp_path) as writer:
        writer.begin(drawn.meta(1, 50))
        for at in range(0, 50, 7):
            writer.append(drawn.part(game, at, at + 7))
        writer.end()
    dataset = TtyDataset.open(tmp_path)
    assert dataset.has_inventory
    assert dataset.has_blstats
    drawn.equal(dataset.read(0, 11, 31), drawn.part(game, 11, 31))
    manifest = json.loads(next(tmp_path.glob("shard-*/manifest.json")).read_text())
    assert manifest["arrays"]["inventory"]["rows"] == 17  # of 50 frames


def test_what_a_game_lacks_cannot_be_asked_for(tmp_path: Path, drawn: Any) -> None:
    with ShardWriter(tmp_path) as writer:
        drawn.write(writer, 1, drawn(1, 5))
    dataset = TtyDataset.open(tmp_path)
    place = np.zeros((1, 1), np.int64)
    with pytest.raises(BadSettingError, match="inventory"):
        dataset.frames(place, place, inventory=True)
    with pytest.raises(BadSettingError, match="behind the end"):
        dataset.frames(place, place + 5)
    with pytest.raises(BadSettingError, match="games are 0 to 0"):
        dataset.frames(place + 1, place)
    with pytest.raises(BadSettingError, match="frames 0 to 5"):
        dataset.read(0, 3, 6)


def test_memory_given_is_filled(tmp_path: Path, drawn: Any) -> None:
    game = drawn(1, 30)
    with ShardWriter(tmp_path) as writer:
        drawn.write(writer, 1, game)
    out = TtyBatch.empty(2, 10)
    dataset = TtyDataset.open(tmp_path)
    step_BT = np.array([[3], [15]]) + np.arange(10)
    assert dataset.frames(np.zeros_like(step_BT), step_BT, out) is out
    assert (out.chars[1] == game.chars[15:25]).all()


def test_order_and_digest_do_not_depend_on_who_wrote_when(tmp_path: Path, drawn: Any) -> None:
    games = {seed: drawn(seed, 20 + seed) for seed in range(5)}
    with ShardWriter(tmp_path / "one") as writer:
        for seed, game in games.items():
            drawn.write(writer, seed, game)
    with ShardWriter(tmp_path / "two") as first, ShardWriter(tmp_path / "two", max_shard_bytes=1) as second:
        for seed in (4, 2, 0, 3, 1):
            drawn.write(first if seed % 2 else second, seed, games[seed])
    one, two = TtyDataset.open(tmp_path / "one"), TtyDataset.open(tmp_path / "two")
    assert one.games == two.games
    assert one.digest == two.digest
    assert len(list((tmp_path / "two").glob("shard-*"))) == 4
    drawn.equal(two.read(3), games[3])
    assert [meta.seed for meta in two.subset([4, 1]).games] == [4, 1]
    assert two.subset([4, 1]).digest == one.subset([4, 1]).digest != one.digest
    drawn.equal(two.subset([4, 1]).read(1), games[1])


def test_the_digest_does_not_depend_on_the_size_of_chunks(tmp_path: Path, drawn: Any) -> None:
    game = drawn(1, 600, inventory=True, blstats=True)
    digests = set()
    for size in (1, 97, 256, 600):
        with ShardWriter(tmp_path / f"{size}", keyframe_every=50) as writer:
            writer.begin(drawn.meta(1, 600))
            for at in range(0, 600, size):
                writer.append(drawn.part(game, at, at + size))
            writer.end()
        digests.add(TtyDataset.open(tmp_path / f"{size}").digest)
    assert len(digests) == 1


def test_a_game_that_is_there_twice_counts_once(tmp_path: Path, drawn: Any) -> None:
    for _ in range(2):
        with ShardWriter(tmp_path) as writer:
            drawn.write(writer, 1, drawn(1, 20))
    dataset = TtyDataset.open(tmp_path)
    assert (len(dataset.games), dataset.duplicates) == (1, 1)


def test_keys_at_the_end_can_be_masked_late(tmp_path: Path, drawn: Any) -> None:
    game = drawn(1, 20)
    with ShardWriter(tmp_path) as writer:
        writer.begin(drawn.meta(1, 20))
        writer.append(game)
        writer.end(mask_last=3)
    expert = TtyDataset.open(tmp_path).expert(0)
    assert (expert[:17] == game.expert[:17]).all()
    assert not expert[17:].any()


def test_damaged_shards_are_named_and_left_out(tmp_path: Path, drawn: Any) -> None:
    with ShardWriter(tmp_path, max_shard_bytes=1) as writer:
        for seed in range(4):
            drawn.write(writer, seed, drawn(seed, 20))
    shards = sorted(
        tmp_path.glob("shard-*"),
        key=lambda path: json.loads((path / "manifest.json").read_text())["games"][0]["meta"]["seed"],
    )
    with (shards[0] / "delta_chars.bin").open("r+b") as file:
        file.truncate(5)
    (shards[1] / "manifest.json").write_text('{"format": ')
    with (shards[2] / "keys.bin").open("r+b") as file:
        file.write(b"\xff\xfe")
    dataset = TtyDataset.open(tmp_path)
    assert [meta.seed for meta in dataset.games] == [2, 3]
    assert {error.path for error in dataset.damaged} == set(shards[:2])
    assert "delta_chars.bin has 5 bytes" in str(dataset.damaged[0]) + str(dataset.damaged[1])
    assert all(isinstance(error, DataLossError) for error in dataset.damaged)
    checked, bad = dataset.verify()
    assert [meta.seed for meta in checked.games] == [3]
    assert [error.path for error in bad] == [shards[2]]
    assert "keys.bin" in str(bad[0])
    for shard in (shards[2], shards[3]):
        shutil.rmtree(shard)
    with pytest.raises(DataLossError, match="all 2 shards are damaged"):
        TtyDataset.open(tmp_path)


def test_another_format_and_an_empty_folder_are_named(tmp_path: Path, drawn: Any) -> None:
    with pytest.raises(NotFoundError, match="no shards"):
        TtyDataset.open(tmp_path)
    with ShardWriter(tmp_path) as writer:
        drawn.write(writer, 1, drawn(1, 5))
    path = next(tmp_path.glob("shard-*/manifest.json"))
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(DataLossError, match="version 99"):
        TtyDataset.open(tmp_path)


_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.tty import TtyChunk
writer = ShardWriter(Path(sys.argv[1]))
for seed in range(3):
    writer.begin(GameMeta(name=f"{seed}", character="mon", source="killed", score=0, steps=9, seed=seed))
    writer.append(TtyChunk(np.full((9, 24, 80), seed, np.uint8), np.zeros((9, 24, 80), np.int8),
        np.zeros((9, 2), np.uint8), np.arange(9, dtype=np.uint8), np.zeros(9, np.int32), np.ones(9, np.bool_)))
    if seed < 2:
        writer.end()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_costs_the_game_being_written(tmp_path: Path, drawn: Any) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False, timeout=60)
    part = next(tmp_path.glob("shard-*.part"))
    with pytest.raises(NotFoundError):
        TtyDataset.open(tmp_path)
    with (part / "keys.bin").open("ab") as file:  # as if the kill came within the next game
        file.write(b"half a game")
    with (part / "journal.jsonl").open("a") as file:
        file.write('{"meta": {"na')
    # A living writer in the same folder is left alone.
    with ShardWriter(tmp_path) as writer:
        drawn.write(writer, 7, drawn(7, 5))
        recovery = recover_shards(tmp_path)
        assert (recovery.shards, recovery.games, recovery.lost) == (1, 2, 0)
        assert TtyDataset.open(tmp_path).unfinished == 1
    dataset = TtyDataset.open(tmp_path)
    assert [meta.seed for meta in dataset.games] == [7, 0, 1]
    assert dataset.verify()[1] == ()
    chunk = dataset.read(2)
    assert (chunk.chars == 1).all()
    assert chunk.keys.tolist() == list(range(9))
    assert recover_shards(tmp_path).shards == 0


def test_recovery_gives_up_games_whose_bytes_are_gone(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False, timeout=60)
    part = next(tmp_path.glob("shard-*.part"))
    with (part / "keys.bin").open("r+b") as file:  # as after a loss of power
        file.truncate(12)
    recovery = recover_shards(tmp_path)
    assert (recovery.games, recovery.lost) == (1, 1)
    assert [meta.name for meta in TtyDataset.open(tmp_path).games] == ["0"]


def test_a_writer_that_is_left_by_an_error_forgets_the_game(tmp_path: Path, drawn: Any) -> None:
    def fail_in_a_game() -> None:
        with ShardWriter(tmp_path) as writer:
            drawn.write(writer, 1, drawn(1, 5))
            writer.begin(drawn.meta(2, 5))
            writer.append(drawn(2, 5))
            raise RuntimeError("in mid-game")

    with pytest.raises(RuntimeError, match="in mid-game"):
        fail_in_a_game()
    assert [meta.seed for meta in TtyDataset.open(tmp_path).games] == [1]


def test_a_game_that_cannot_be_written_costs_no_other(tmp_path: Path, drawn: Any) -> None:
    with ShardWriter(tmp_path) as writer:
        drawn.write(writer, 1, drawn(1, 5))
        writer.begin(drawn.meta(2, 5))
        writer.append(drawn(2, 5))
        writer._game.pieces["scores"] = ["what the disk refuses"]  # type: ignore[union-attr, list-item]
        with pytest.raises(TypeError):
            writer.end()
        writer.abort()
        drawn.write(writer, 3, drawn(3, 5))
    assert recover_shards(tmp_path).games == 1
    dataset = TtyDataset.open(tmp_path)
    assert [meta.seed for meta in dataset.games] == [1, 3]
    assert dataset.verify()[1] == ()


def test_wrong_use_is_named(tmp_path: Path, drawn: Any) -> None:
    with ShardWriter(tmp_path) as writer:
        with pytest.raises(StateError, match="no game has begun"):
            writer.append(drawn(1, 2))
        writer.begin(drawn.meta(1, 2))
        with pytest.raises(StateError, match="has not ended"):
            writer.begin(drawn.meta(2, 2))
        with pytest.raises(BadSettingError, match="no frames"):
            writer.end()
        chunk = drawn(1, 4)
        with pytest.raises(ShapeMismatchError, match=r"chars is \[4, 24, 80\]; wanted \[2, 24, 80\]"):
            writer.append(
                type(chunk)(chunk.chars, chunk.colors, chunk.cursor, chunk.keys[:2], chunk.scores[:2], chunk.expert)
            )
        writer.append(chunk)
        with pytest.raises(ShapeMismatchError, match="earlier frames"):
            writer.append(drawn(1, 2, inventory=True))
        with pytest.raises(StateError, match="closes"):
            writer.close()
