"""One recorded episode on disk: what is read is what was written, or a DataLossError that names the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from playserve.errors import DataLossError
from playserve_client.recordings import (
    Episode,
    EpisodeMeta,
    episode_path,
    list_episodes,
    read_episode,
    read_meta,
    stack_frames,
    write_episode,
)

STEPS = 12


def make_episode(*, frames: bool = True, steps: int = STEPS, seed: int = 7) -> Episode:
    rng = np.random.default_rng(seed)
    arrays = {
        "executed": rng.integers(0, 3, steps, dtype=np.int16),
        "label": rng.integers(0, 3, steps, dtype=np.int16),
        "reward": rng.random(steps, dtype=np.float32),
        "probes": rng.integers(0, 255, (steps, 128), dtype=np.uint8),
    }
    if frames:
        arrays["frames"] = rng.integers(0, 255, (steps, 84, 84), dtype=np.uint8)
    meta = EpisodeMeta(
        env="atari",
        game="pong",
        seed=seed,
        steps=steps,
        score=float(arrays["reward"].sum()),
        terminated=False,
        truncated=True,
        action_names=("NOOP", "UP", "DOWN"),
        epsilon=0.03,
        packages={"numpy": np.__version__},
        extra={"max_steps": 12},
    )
    return Episode(meta=meta, **arrays)


def assert_equal(got: Episode, wanted: Episode) -> None:
    assert got.meta == wanted.meta
    assert got.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        assert got.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(got.arrays[name], array)


@pytest.mark.parametrize("frames", [True, False], ids=["atari", "without frames"])
def test_round_trip(tmp_path: Path, frames: bool) -> None:
    path = episode_path(tmp_path, "atari", "pong", 7)
    assert path == tmp_path / "atari/pong/episode-00000007.npz"
    episode = make_episode(frames=frames)
    write_episode(path, episode)
    assert_equal(read_episode(path), episode)
    assert read_meta(path) == episode.meta
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file stays


def test_numpy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "episode-00000007.npz"
    episode = make_episode()
    write_episode(path, episode)
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["frames"], episode.frames)
        assert set(archive.files) == {*episode.arrays, "meta"}


def test_the_same_episode_is_the_same_bytes(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.npz", make_episode())
    write_episode(tmp_path / "b.npz", make_episode())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "episode-00000007.npz"
    write_episode(path, make_episode())
    episode = read_episode(path, arrays=("label", "reward"))
    assert set(episode.arrays) == {"label", "reward"}
    assert episode.reward.flags.writeable  # torch.from_numpy warns about arrays that are not
    with pytest.raises(KeyError, match="'frames' was not read"):
        _ = episode.frames
    with pytest.raises(DataLossError, match=r"episode-00000007\.npz .*no array depth"):
        read_episode(path, arrays=("depth",))


def test_an_episode_is_checked_when_it_is_made_and_written(tmp_path: Path) -> None:
    episode = make_episode()
    with pytest.raises(ValueError, match="'label' is int64, not int16"):
        Episode(meta=episode.meta, label=np.zeros(STEPS, np.int64))
    with pytest.raises(ValueError, match="12 steps"):
        Episode(meta=episode.meta, label=np.zeros(STEPS + 1, np.int16))
    with pytest.raises(ValueError, match="actions 0 to 3 of 3"):
        Episode(meta=episode.meta, label=np.arange(STEPS, dtype=np.int16) % 4)
    with pytest.raises(ValueError, match="lacks executed, probes, reward"):
        write_episode(tmp_path / "x.npz", Episode(meta=episode.meta, label=episode.label))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "episode-00000007.npz"
    write_episode(path, make_episode())
    before = path.read_bytes()
    broken = make_episode(seed=8)
    with pytest.raises(ValueError, match="allow_pickle"):
        write_episode(
            path, Episode(meta=broken.meta, **{**broken.arrays, "more": np.array([object()] * STEPS, dtype=object)})
        )
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_no_damaged_byte_is_read_as_data(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = folder / "episode-00000007.npz"
    episode = make_episode(frames=False, steps=5)
    write_episode(path, episode)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        got = read_episode(path)
    except DataLossError as error:
        assert str(path) in str(error)  # noqa: PT017 - most damaged bytes raise, some mean nothing
    else:  # a byte that means nothing, such as a date in the zip's directory
        assert_equal(got, episode)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "episode-00000007.npz"
    write_episode(path, make_episode())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(DataLossError, match=r"episode-00000007\.npz"):
        read_episode(path)
    with pytest.raises(DataLossError, match=r"episode-00000007\.npz"):
        read_meta(path)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episode-00000007.npz"
    episode = make_episode()
    write_episode(path, Episode(meta=dataclasses.replace(episode.meta, format_version=99), **episode.arrays))
    with pytest.raises(DataLossError, match="version 99"):
        read_episode(path)
    np.savez(path, label=episode.label)
    with pytest.raises(DataLossError, match="meta"):
        read_episode(path)


def test_a_missing_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_episode(tmp_path / "episode-00000007.npz")


def test_lists_episodes_in_order_and_nothing_else(tmp_path: Path) -> None:
    assert list_episodes(tmp_path / "absent") == []
    for seed in (12, 3):
        write_episode(episode_path(tmp_path, "atari", "pong", seed), make_episode(frames=False))
    (tmp_path / "atari/pong/.episode-00000004.npz.1.tmp").write_bytes(b"")
    (tmp_path / "atari/pong/summary.json").write_text("{}")
    assert [p.name for p in list_episodes(tmp_path)] == ["episode-00000003.npz", "episode-00000012.npz"]


def test_stacks_repeat_the_first_frame_before_it() -> None:
    frames = make_episode().frames
    stacks = stack_frames(frames, np.array([0, 2, 9]))
    assert stacks.shape == (3, 84, 84, 4)
    for row, wanted in enumerate([[0, 0, 0, 0], [0, 0, 1, 2], [6, 7, 8, 9]]):
        np.testing.assert_array_equal(stacks[row], np.stack(list(frames[wanted]), axis=-1))
