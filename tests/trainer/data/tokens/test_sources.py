"""Games of each kind as a cache takes them: what was done upon a frame stands at that frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_recordings as small
from toy_tokens import MONK, nethack_shards

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.resize import HAMMING_V1, resize
from playserve_client.nethack.keys import KEY_TO_ACTION
from playserve_client.nethack.shards import GameMeta
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter
from playserve_client.recordings import list_episodes, read_episode
from playserve_trainer.data.nethack import game_hash
from playserve_trainer.data.p2p import recording_hash
from playserve_trainer.data.split import split_hash
from playserve_trainer.data.tokens.atari import AtariGames
from playserve_trainer.data.tokens.desktop import DesktopGames
from playserve_trainer.data.tokens.games import UNKNOWN
from playserve_trainer.data.tokens.nethack import NetHackTokenGames
from playserve_trainer.data.tokens.sources import frame_size_of, open_games
from playserve_trainer.models.tokenizer.actions import ComboActions, action_spec_from_json

Record = Callable[..., Path]


def test_atari_episodes_are_as_they_were_recorded(record_toy: Record) -> None:
    root = record_toy(range(3), steps=12)
    games = open_games(root, "toy")
    assert isinstance(games, AtariGames)
    assert len(games) == 3
    assert games.frame_shape == frame_size_of(root, "toy", 0) == (84, 84, 1)
    assert games.game["rate_hz"] == 15.0
    assert action_spec_from_json(games.action["spec"]).names == ("NOOP", "FIRE", "RIGHT", "LEFT")
    for unit, path in enumerate(list_episodes(root)):
        recorded, (episode,) = read_episode(path), games.read(unit)
        assert np.array_equal(episode.frames_NHWC[..., 0], recorded.frames)
        assert np.array_equal(episode.executed_NA[:, 0], recorded.executed)
        assert np.array_equal(episode.labels_NA[:, 0], recorded.label)
        assert episode.probes_NP.shape == (len(recorded), 128)
        assert episode.place == split_hash("atari", "toy", recorded.meta.seed)
        assert episode.terminated


def test_atari_frames_are_resized_and_a_digest_says_so(record_toy: Record) -> None:
    root = record_toy(range(2), steps=5)
    small_games, games = open_games(root, "toy", size=42), open_games(root, "toy")
    assert small_games.read(0)[0].frames_NHWC.shape[1:] == (42, 42, 1)
    assert small_games.digest != games.digest == open_games(root, "toy").digest
    list_episodes(root)[1].write_bytes(b"no zip")
    with pytest.raises(DataLossError, match="episode-00000001"):
        open_games(root, "toy").read(1)
    with pytest.raises(BadSettingError, match="holds atari/toy"):
        AtariGames(root, "pong")
    with pytest.raises(NotFoundError, match="is no folder"):
        open_games(root / "nowhere", "toy")


def test_what_was_done_upon_a_frame_is_the_next_entrys_action(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    paths = [small.record(root, count) for count in (21, 13)]
    games = open_games(root, "toy", size=32, cache=tmp_path / "cache")
    assert isinstance(games, DesktopGames)
    combos = ComboActions.from_json(games.action["combos"])
    assert games.action["heads"] == [combos.n]
    lengths = set()
    for unit in range(len(games)):
        (episode,) = games.read(unit)
        count = len(episode.frames_NHWC)
        lengths.add(count)
        assert small.numbers_of(episode.frames_NHWC).tolist() == list(range(count))
        assert episode.executed_NA[-1, 0] == UNKNOWN
        for frame in range(count - 1):
            assert episode.executed_NA[frame, 0] == combos.encode(small.action_at(frame + 1))
        assert np.array_equal(episode.labels_NA, episode.executed_NA)
        assert episode.place in {recording_hash(("toy", "grey"), path.name) for path in paths}
    assert lengths == {21, 13}
    assert frame_size_of(root, "toy", 0) == (64, 64, 3)


def _doom_like(root: Path) -> Path:
    """Write a recording of two episodes, of 4 and 3 frames, of which the policy played one frame."""
    settings = VideoSettings(encoding="rgb", crf=6, preset="ultrafast", keyframe_every=4)
    held = DesktopAction(keys=frozenset({"KeyA"}))
    with RecordingWriter(root, env="doom", env_subtype="basic", frame_size=(32, 32), video=settings) as writer:
        for number in range(7):
            begins = number in (0, 4)
            source = Source.SYSTEM if begins or number == 2 else Source.USER
            sidecar = {
                "first": begins, "reward": float(number), "terminated": number == 3, "truncated": number == 6,
                "perturbed": number == 2, "health": 100.0 - number, "angle": 90.0 * number,
            }  # fmt: skip
            action = DesktopAction() if begins else held
            writer.add(small.grey(number), action, source, sidecar=sidecar)
        episodes = [{"seed": 70, "start_frame": 0}, {"seed": 71, "start_frame": 4}]
        writer.describe(episodes=episodes, probes=["health", "angle"], tics_per_frame=2, resize_id="hamming-v1")
    return writer.path


def test_a_recording_of_several_episodes_is_cut_and_keeps_its_sidecar(tmp_path: Path) -> None:
    path = _doom_like(tmp_path / "recordings")
    games = DesktopGames(tmp_path / "recordings", "doom", size=32)
    assert games.probe_names == ("health", "angle_sin", "angle_cos")
    assert (games.game["scenarios"], games.game["frame_skip"], games.game["rate_hz"]) == (["basic"], 2, 20.0)
    first, second = games.read(0)
    held = games.combos.encode(DesktopAction(keys=frozenset({"KeyA"})))
    assert first.name == f"{path.name}-0"
    assert (first.seed, second.seed) == (70, 71)
    assert (first.terminated, second.terminated) == (True, False)
    assert first.executed_NA[:, 0].tolist() == [held, held, held, UNKNOWN]
    assert first.labels_NA[:, 0].tolist() == [held, UNKNOWN, held, UNKNOWN]  # what was done upon frame 1 was noise
    assert second.executed_NA[:, 0].tolist() == [held, held, UNKNOWN]
    assert first.reward_N.tolist() == [1.0, 2.0, 3.0, 0.0]
    assert second.reward_N.tolist() == [5.0, 6.0, 0.0]
    assert first.probes_NP[:, 0].tolist() == [100.0, 99.0, 98.0, 97.0]
    assert np.allclose(second.probes_NP[:, 1:], [[0, 1], [1, 0], [0, -1]], atol=1e-6)
    assert first.place == second.place
    with pytest.raises(BadSettingError, match="recordings of doom, not of quake"):
        DesktopGames(tmp_path / "recordings", "quake", size=32)


def test_a_larger_video_is_resized_by_the_one_resize(tmp_path: Path) -> None:
    _doom_like(tmp_path / "recordings")
    whole, half = (DesktopGames(tmp_path / "recordings", "doom", size=size) for size in (32, 16))
    assert half.game["resize_id"] == HAMMING_V1
    wanted = resize(whole.read(0)[0].frames_NHWC[2], 16, 16, HAMMING_V1)
    assert np.array_equal(half.read(0)[0].frames_NHWC[2], wanted)
    assert half.digest != whole.digest
    with pytest.raises(BadSettingError, match="wanted 64 or more"):
        DesktopGames(tmp_path / "recordings", "doom", size=64)


def test_nethack_games_are_crops_around_the_cursor(tmp_path: Path) -> None:
    recorded = nethack_shards(tmp_path)
    games = open_games(tmp_path, "nethack", crop=(5, 7))
    assert isinstance(games, NetHackTokenGames)
    assert (len(games), games.frame_shape, games.action["heads"]) == (3, (5, 7, 1), [121])
    for unit in range(3):
        (episode,) = games.read(unit)
        game = recorded[episode.seed]
        row, column = game.cursor[6].astype(int)
        assert np.array_equal(episode.frames_NHWC[6, ..., 0], game.chars[6, row - 2 : row + 3, column - 3 : column + 4])
        assert np.array_equal(episode.executed_NA[:, 0], KEY_TO_ACTION[game.keys])
        assert (episode.labels_NA[-2:] == UNKNOWN).all()
        assert np.array_equal(episode.labels_NA[:-2], episode.executed_NA[:-2])
        assert episode.reward_N[:-1].tolist() == [2.0 * n + 1 for n in range(len(game) - 1)]
        assert episode.terminated == (episode.seed == 0)
        known = GameMeta(name="", character=MONK, source="", score=0, steps=0, seed=episode.seed)
        assert episode.place == game_hash(known)
    with pytest.raises(BadSettingError, match="give a crop"):
        open_games(tmp_path, "nethack", size=64)
