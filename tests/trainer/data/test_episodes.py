"""Reading recordings: damaged files are named, counted and left out; the digest is that of the whole ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from playserve_client.recordings import list_episodes, read_episode
from playserve_trainer.data.episodes import NoEpisodesError, load_episodes

Record = Callable[..., Path]


def test_arrays_are_the_episodes_end_to_end(record_toy: Record) -> None:
    root = record_toy()
    episodes = load_episodes(root, held_out_fraction=0.3)
    assert episodes.report.episodes == 6
    for e, path in enumerate(list_episodes(root)):
        episode, start = read_episode(path), episodes.starts_E[e]
        rows = slice(start, start + len(episode))
        np.testing.assert_array_equal(episodes.frames_NHW[rows], episode.frames)
        np.testing.assert_array_equal(episodes.label_N[rows], episode.label)
        np.testing.assert_array_equal(episodes.executed_N[rows], episode.executed)
        assert (episodes.start_N[rows] == start).all()
    assert episodes.report.samples + episodes.report.held_out_samples == len(episodes.label_N)
    held_out = episodes.steps_of(episodes.select(held_out=True))
    assert len(held_out) == episodes.report.held_out_samples
    assert not set(held_out) & set(episodes.steps_of(episodes.select(held_out=False)))


def test_damaged_files_are_named_counted_and_left_out(record_toy: Record) -> None:
    root = record_toy(range(8))
    whole = load_episodes(root)
    paths = list_episodes(root)
    truncated, flipped, empty = paths[1], paths[3], paths[6]
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    body = bytearray(flipped.read_bytes())
    body[len(body) // 2] ^= 0xFF
    flipped.write_bytes(bytes(body))
    empty.write_bytes(b"")
    rest = load_episodes(root)
    assert {path for path, _ in rest.report.damaged} == {str(truncated), str(flipped), str(empty)}
    assert all(path in error for path, error in rest.report.damaged)
    assert rest.report.episodes == 5
    assert rest.report.digest != whole.report.digest
    for path in (truncated, flipped, empty):
        path.unlink()
    alone = load_episodes(root)
    assert alone.report.digest == rest.report.digest
    np.testing.assert_array_equal(alone.frames_NHW, rest.frames_NHW)


def test_the_digest_is_of_the_data_not_of_their_place(record_toy: Record, tmp_path: Path) -> None:
    first = load_episodes(record_toy(root=tmp_path / "a")).report
    again = load_episodes(record_toy(root=tmp_path / "b")).report
    other = load_episodes(record_toy(range(1, 7), root=tmp_path / "c")).report
    assert first.digest == again.digest != other.digest


def test_an_episode_of_another_game_is_left_out_by_name(record_toy: Record) -> None:
    root = record_toy(range(4))
    record_toy(range(1), game="zoo")
    report = load_episodes(root).report
    assert report.episodes == 4
    assert [("zoo" in path, "train on one game" in error) for path, error in report.damaged] == [(True, True)]


def test_large_data_go_to_a_scratch_file_that_leaves_nothing(record_toy: Record, tmp_path: Path) -> None:
    root, scratch = record_toy(), tmp_path / "scratch"
    scratch.mkdir()
    mapped = load_episodes(root, memory_limit_bytes=1, scratch=scratch)
    np.testing.assert_array_equal(mapped.frames_NHW, load_episodes(root).frames_NHW)
    assert isinstance(mapped.frames_NHW, np.memmap)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("seeds", [range(0), range(1)])
def test_too_few_episodes_are_refused_with_what_to_do(record_toy: Record, seeds: range) -> None:
    root = record_toy(seeds)
    with pytest.raises(NoEpisodesError, match=r"record|at least 2"):
        load_episodes(root)
