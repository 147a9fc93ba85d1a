"""Token caches: what is written is read, once, whole or not at all, and named where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_tokens import SIDE, SquareGames, square_frames, tiny_tokenizer

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.tokens.cache import (
    INDEX_NAME,
    TOKENIZER_NAME,
    load_tokenizer,
    open_cache,
    write_cache,
)
from playserve_trainer.models.tokenizer import VQTokenizer

_LENGTHS = (5, 9, 3, 7, 4, 6)


@pytest.fixture(scope="module")
def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer().train()
    frames = torch.from_numpy(square_frames(np.arange(16))).unsqueeze(1)
    tokenizer({"frame": frames}, torch.zeros(16, 1, 1), torch.ones(16, 1, dtype=torch.bool))  # places the codes
    return tokenizer.eval()


def test_every_frame_keeps_its_tokens_actions_rewards_and_probes(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    games, said = SquareGames(_LENGTHS), list[tuple[int, int]]()
    cache = write_cache(
        tmp_path / "cache", games, tokenizer, keep_frames=True, workers=3, progress=lambda *at: said.append(at)
    )
    assert said == [(n + 1, 6) for n in range(6)]
    assert (cache.num_frames, cache.num_tokens, cache.vocabulary, cache.heads) == (34, 4, 8, (4,))
    assert (cache.game["game"], cache.action["heads"]) == ("squares", [4])
    assert cache.names_E == tuple(f"episode-{unit}" for unit in range(6))
    assert cache.seeds_E.tolist() == list(range(6))
    assert cache.terminated_E.tolist() == [True, False] * 3
    for unit, (start, length) in enumerate(zip(cache.starts_E, cache.lengths_E, strict=True)):
        span, (episode,) = slice(start, start + length), games.read(unit)
        frames = torch.from_numpy(episode.frames_NHWC)
        assert length == _LENGTHS[unit]
        assert cache.frames is not None
        assert np.array_equal(cache.frames[span], episode.frames_NHWC)
        assert np.array_equal(cache.tokens_NK[span], tokenizer.encode(frames).numpy())
        assert np.array_equal(cache.executed_NH[span], episode.executed_NA)
        assert np.array_equal(cache.labels_NH[span], episode.labels_NA)
        assert np.array_equal(cache.reward_N[span], episode.reward_N)
        assert np.array_equal(cache.probes_NP[span], episode.probes_NP)
    dtypes = {name: getattr(cache, name).dtype.name for name in ("tokens_NK", "executed_NH", "reward_N", "frames")}
    assert dtypes == {"tokens_NK": "uint16", "executed_NH": "int32", "reward_N": "float32", "frames": "uint8"}
    assert isinstance(cache.tokens_NK, np.memmap)


def test_the_split_goes_by_place_and_can_be_drawn_anew(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", SquareGames((3,) * 40), tokenizer, held_out=0.3)
    assert np.array_equal(cache.held_out_E, cache.places_E < 0.3)
    more = open_cache(tmp_path / "cache", held_out=0.6)
    assert np.array_equal(more.held_out_E, cache.places_E < 0.6)
    assert not open_cache(tmp_path / "cache", held_out=0.0).held_out_E.any()
    assert np.array_equal(open_cache(tmp_path / "cache").held_out_E, cache.held_out_E)
    aside = cache.select(held_out=True)
    assert cache.frames_of(aside).tolist() == [n for e in aside for n in range(3 * e, 3 * e + 3)]


def test_a_cache_is_written_once_and_no_other_takes_its_place(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = write_cache(folder, SquareGames(_LENGTHS), tokenizer)
    stamp = (folder / "tokens.bin").stat().st_mtime_ns
    again = write_cache(folder, SquareGames(_LENGTHS), tokenizer)
    assert again.digest == first.digest
    assert (folder / "tokens.bin").stat().st_mtime_ns == stamp
    with pytest.raises(StateError, match="another folder"):
        write_cache(folder, SquareGames(_LENGTHS, digest="others"), tokenizer)
    with pytest.raises(StateError, match="another folder"):
        write_cache(folder, SquareGames(_LENGTHS), None, keep_frames=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(StateError, match="holds no token cache"):
        write_cache(tmp_path / "full", SquareGames(_LENGTHS), tokenizer)


def test_the_tokenizer_lies_beside_its_tokens(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", SquareGames(_LENGTHS), tokenizer)
    loaded = load_tokenizer(cache)
    assert loaded.digest() == cache.tokenizer == tokenizer.digest()
    frames = write_cache(tmp_path / "frames", SquareGames(_LENGTHS), None, keep_frames=True)
    assert (frames.num_tokens, frames.vocabulary, frames.tokenizer) == (0, 0, "")
    assert not (tmp_path / "frames" / TOKENIZER_NAME).exists()
    with pytest.raises(NotFoundError, match="frames only"):
        load_tokenizer(frames)


def test_broken_units_are_named_and_leave_nothing(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", SquareGames(_LENGTHS, broken=(1, 4)), tokenizer, workers=2)
    assert cache.lengths_E.tolist() == [5, 3, 7, 6]
    assert cache.damaged == (("1", "unit 1 is broken"), ("4", "unit 4 is broken"))
    with pytest.raises(NoEpisodesError, match="none of 2"):
        write_cache(tmp_path / "none", SquareGames((3, 3), broken=(0, 1)), tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_damage_is_named(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    write_cache(folder, SquareGames(_LENGTHS), tokenizer)
    index = (folder / INDEX_NAME).read_text()
    (folder / INDEX_NAME).write_text(json.dumps({**json.loads(index), "format_version": 99}))
    with pytest.raises(DataLossError, match="format version 99"):
        open_cache(folder)
    value = json.loads(index)
    del value["names"]
    (folder / INDEX_NAME).write_text(json.dumps(value))
    with pytest.raises(DataLossError, match="names"):
        open_cache(folder)
    (folder / INDEX_NAME).write_text(index)
    with (folder / "reward.bin").open("ab") as file:
        file.write(b"1234")
    with pytest.raises(DataLossError, match=r"reward.bin has 140 bytes"):
        open_cache(folder)
    (folder / "reward.bin").unlink()
    with pytest.raises(DataLossError, match=r"reward.bin"):
        open_cache(folder)
    with pytest.raises(NotFoundError, match="playserve data tokenize"):
        open_cache(tmp_path / "nowhere")


def test_what_makes_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="keep the frames"):
        write_cache(tmp_path / "cache", SquareGames(_LENGTHS), None)
    with pytest.raises(BadSettingError, match=rf"\[32, 16, 1\], the games have \[{SIDE}, {SIDE}, 1\]"):
        write_cache(tmp_path / "cache", SquareGames(_LENGTHS), tiny_tokenizer(height=32, tokens=8))
