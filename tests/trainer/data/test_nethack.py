from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.nethack.keys import KEY_TO_ACTION, NUM_ACTIONS
from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.tty import TtyChunk
from playserve_trainer.data.batches import IGNORED_LABEL
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.nethack import NetHackStreams, NoKeysError, game_hash, load_nethack
from playserve_trainer.models.policy import UNKNOWN_ACTION

_NO_ACTION = next(key for key in range(256) if KEY_TO_ACTION[key] < 0)


def _game(seed: int, frames: int, *, inventory: bool = False) -> TtyChunk:
    rng = np.random.default_rng(seed)
    expert = np.ones(frames, np.bool_)
    expert[-3:] = False
    keys = rng.choice(np.flatnonzero(KEY_TO_ACTION >= 0), frames).astype(np.uint8)
    keys[frames // 2] = _NO_ACTION
    return TtyChunk(
        rng.integers(32, 127, (frames, 24, 80), np.uint8),
        rng.integers(0, 32, (frames, 24, 80), np.int8),
        rng.integers(0, 24, (frames, 2)).astype(np.uint8),
        keys,
        np.arange(frames, dtype=np.int32),
        expert,
        None,
        rng.integers(0, 5000, (frames, 55)).astype(np.int16) if inventory else None,
    )


def _write(folder: Path, games: dict[int, TtyChunk], *, has_keys: bool = True, shard_bytes: int = 1 << 30) -> None:
    with ShardWriter(folder, max_shard_bytes=shard_bytes, keyframe_every=16) as writer:
        for seed, game in games.items():
            writer.begin(
                GameMeta(
                    name=f"{seed}",
                    character="mon-hum-neu-mal",
                    source="test",
                    score=seed,
                    steps=len(game),
                    seed=seed,
                    has_keys=has_keys,
                )
            )
            writer.append(game)
            writer.end()


@pytest.fixture(scope="module")
def games() -> dict[int, TtyChunk]:
    return {seed: _game(seed, 30 + 11 * seed) for seed in range(6)}


def test_rows_walk_through_whole_games(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path, games)
    data = load_nethack(tmp_path, held_out_fraction=0.0)
    source = NetHackStreams(data.dataset, data.select(held_out=False), batch_size=3, sequence_length=8, seed=5)
    assert source.num_samples == sum(len(game) for game in games.values())
    seen = 0
    place: list[tuple[int, int] | None] = [None] * 3
    for index in range(12):
        batch = source.batch(index)
        assert batch.samples == 24
        assert {name: tensor.dtype for name, tensor in batch.inputs.items()} == {
            "tty_chars": torch.uint8,
            "tty_colors": torch.int8,
            "tty_cursor": torch.uint8,
        }
        for row in range(3):
            for step in range(8):
                chars = batch.inputs["tty_chars"][row, step].numpy()
                at = place[row]
                if at is None or batch.first_BT[row, step]:
                    found = [
                        (seed, t)
                        for seed, game in games.items()
                        for t in np.flatnonzero((game.chars == chars).all((1, 2)))
                    ]
                    assert len(found) == 1
                    at = (found[0][0], int(found[0][1]))
                    assert index == 0 or at[1] == 0 or step == 0
                seed, t = at
                game = games[seed]
                assert (game.chars[t] == chars).all()
                assert (game.colors[t] == batch.inputs["tty_colors"][row, step].numpy()).all()
                assert (game.cursor[t] == batch.inputs["tty_cursor"][row, step].numpy()).all()
                action = int(KEY_TO_ACTION[game.keys[t]])
                label = action if game.expert[t] and action >= 0 else IGNORED_LABEL
                executed = int(KEY_TO_ACTION[game.keys[t - 1]]) if t else UNKNOWN_ACTION
                assert int(batch.labels_BTH[row, step, 0]) == label
                assert int(batch.executed_BTH[row, step, 0]) == executed
                seen += label == IGNORED_LABEL
                place[row] = (seed, t + 1) if t + 1 < len(game) else None
    assert seen > 0


def test_a_batch_is_a_function_of_seed_and_index(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path / "one", games)
    _write(tmp_path / "many", dict(reversed(games.items())), shard_bytes=1)

    def batch(folder: str, seed: int, *indices: int) -> dict[str, torch.Tensor]:
        data = load_nethack(tmp_path / folder, held_out_fraction=0.3)
        source = NetHackStreams(data.dataset, data.select(held_out=False), batch_size=2, sequence_length=16, seed=seed)
        for index in indices:
            made = source.batch(index)
        return {**made.inputs, "labels": made.labels_BTH, "executed": made.executed_BTH, "first": made.first_BT}

    wanted = batch("one", 3, 40)
    for other in (batch("one", 3, 0, 7, 40), batch("many", 3, 41, 40)):
        assert all(torch.equal(tensor, other[name]) for name, tensor in wanted.items())
    assert not torch.equal(wanted["tty_chars"], batch("one", 4, 40)["tty_chars"])


def test_the_split_is_by_game_and_stays(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path / "some", dict(list(games.items())[:4]))
    _write(tmp_path / "all", games)
    some, all_games = (load_nethack(tmp_path / name, held_out_fraction=0.5) for name in ("some", "all"))
    sides = {meta.seed: bool(out) for meta, out in zip(all_games.dataset.games, all_games.held_out_E, strict=True)}
    for meta, out in zip(some.dataset.games, some.held_out_E, strict=True):
        assert sides[meta.seed] == bool(out)
    report = all_games.report
    assert (report.episodes, report.damaged) == (6, ())
    assert report.samples + report.held_out_samples == sum(len(game) for game in games.values())
    assert report.mean_score == 2.5
    first = all_games.dataset.games[0]
    unseeded = GameMeta(**{**first.to_json(), "seed": None})
    renamed = GameMeta(**{**first.to_json(), "name": "elsewhere", "source": "other"})
    assert game_hash(first) == game_hash(renamed)
    assert game_hash(unseeded) != game_hash(GameMeta(**{**unseeded.to_json(), "name": "other"}))


def test_screens_without_keys_are_refused(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path, {0: games[0]})
    _write(tmp_path, {1: games[1]}, has_keys=False)
    with pytest.raises(NoKeysError, match="1 of 2 games have screens but no keys"):
        load_nethack(tmp_path)


def test_damaged_shards_are_in_the_report(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path, games, shard_bytes=1)
    damaged = sorted(tmp_path.glob("shard-*"))[0]
    with (damaged / "scores.bin").open("r+b") as file:
        file.write(b"\xff")
    assert load_nethack(tmp_path).report.damaged == ()  # sizes are right
    told: list[tuple[int, int]] = []
    report = load_nethack(tmp_path, verify=True, progress=lambda done, total: told.append((done, total))).report
    assert [path for path, _ in report.damaged] == [str(damaged)]
    assert report.episodes == 5
    assert told[-1][0] <= told[-1][1]
    for shard in tmp_path.glob("shard-*"):
        (shard / "keys.bin").unlink()
    with pytest.raises(DataLossError, match="all 6 shards"):
        load_nethack(tmp_path)


def test_inventory_is_an_input_where_it_is_known(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    _write(tmp_path / "with", {seed: _game(seed, 40, inventory=True) for seed in (1, 2)})
    data = load_nethack(tmp_path / "with", held_out_fraction=0)
    both = data.select(held_out=False)
    batch = NetHackStreams(data.dataset, both, batch_size=2, sequence_length=4, seed=0, inventory=True).batch(0)
    assert (batch.inputs["inv_glyphs"].shape, batch.inputs["inv_glyphs"].dtype) == ((2, 4, 55), torch.int16)
    _write(tmp_path / "without", {1: games[1]})
    data = load_nethack(tmp_path / "without", held_out_fraction=0)
    with pytest.raises(BadSettingError, match="inventory"):
        NetHackStreams(data.dataset, np.array([0]), batch_size=1, sequence_length=4, seed=0, inventory=True)


def test_too_little_data_is_named(tmp_path: Path, games: dict[int, TtyChunk]) -> None:
    with pytest.raises(NotFoundError, match="no shards"):
        load_nethack(tmp_path)
    _write(tmp_path, {0: games[0]})
    with pytest.raises(NoEpisodesError, match="at least 2 games"):
        load_nethack(tmp_path)
    assert NUM_ACTIONS == 121
