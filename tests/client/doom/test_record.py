"""Recordings of Doom: alignment, whose action it was, sidecar, instructions; resume, settings, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom")
pytest.importorskip("av")

from playserve.actions import DesktopAction
from playserve.cli import main
from playserve.errors import BadSettingError
from playserve_client.doom.record import DoomJob, record_doom
from playserve_client.doom.recorder import DoomRecorder, DoomSettings
from playserve_client.doom.scenarios import SCENARIOS
from playserve_client.envs.doom import DoomEnv
from playserve_client.p2p.recording import Recording, Source, align, list_recordings, read_recording, video_sizes
from playserve_client.p2p.sidecar import Sidecar, read_sidecar
from playserve_client.p2p.video import VideoReader

SETTINGS = DoomSettings(scenario="two_vests", goal="red", epsilon=0.3, min_frames=60)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording, Sidecar]:
    """Return a recording of several episodes, about a third of it perturbed."""
    folder = tmp_path_factory.mktemp("doom")
    recorder = DoomRecorder(**_fields(SETTINGS))
    try:
        summary = recorder.record(0, folder)
    finally:
        recorder.close()
    (path,) = list_recordings(folder)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.episode == json.loads(json.dumps(summary))
    return path, read_recording(path), sidecar


def _fields(settings: DoomSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_a_recording_is_of_whole_episodes_with_an_instruction_each(
    recorded: tuple[Path, Recording, Sidecar],
) -> None:
    path, recording, sidecar = recorded
    episodes = sidecar.episode["episodes"]
    assert video_sizes(path) == [(96, 96)]
    assert (recording.metadata.env, recording.metadata.env_subtype) == ("doom", "two_vests")
    assert recording.metadata.fps == 20
    assert len(recording.frames) == sum(episode["frames"] for episode in episodes) >= 60
    assert not recording.problems
    assert [episode["seed"] for episode in episodes] == [10_000 + i for i in range(len(episodes))]
    spans = [(i.start_frame, i.num_frames, i.text) for i in recording.instructions]
    assert spans == [(e["start_frame"], e["frames"], e["instruction"]) for e in episodes]
    assert all(text in SCENARIOS["two_vests"].goals[1].phrasings.training for _, _, text in spans)
    starts = np.flatnonzero(sidecar.arrays["first"])
    assert starts.tolist() == [episode["start_frame"] for episode in episodes]
    ends = np.flatnonzero(sidecar.arrays["terminated"] | sidecar.arrays["truncated"])
    assert ends.tolist() == [episode["start_frame"] + episode["frames"] - 1 for episode in episodes]


def test_the_same_actions_play_the_same_frames_and_rewards(recorded: tuple[Path, Recording, Sidecar]) -> None:
    path, recording, sidecar = recorded
    episode = sidecar.episode["episodes"][0]
    reader = VideoReader(path / "96x96.mp4")
    frames = reader.read(0, len(recording.frames))
    env = DoomEnv("two_vests", goal="red")
    try:
        observation, _ = env.reset(seed=episode["seed"])
        aligned = align(recording, len(recording.frames))
        for i in range(episode["frames"] - 1):
            # Up to what the codec loses; the next frame is told from it where anything moves.
            assert np.abs(frames[i].astype(int) - observation["frame"]).mean() < 4
            np.testing.assert_allclose(_probe(sidecar, "position_x", i), env.probes()[_X])
            observation, reward, terminated, truncated, _ = env.step(aligned.actions[i])
            assert reward == sidecar.arrays["reward"][i + 1]
        assert terminated or truncated
        assert env.score == episode["score"]
    finally:
        env.close()


def test_perturbations_are_the_systems_and_the_expert_is_the_user(
    recorded: tuple[Path, Recording, Sidecar],
) -> None:
    _, recording, sidecar = recorded
    perturbed, first = sidecar.arrays["perturbed"], sidecar.arrays["first"]
    assert 0.05 < perturbed.mean() < 0.7
    for frame, noise, start in zip(recording.frames, perturbed, first, strict=True):
        assert frame.source is (Source.SYSTEM if noise or start else Source.USER)
        if start:
            assert frame.action == DesktopAction()
    aligned = align(recording, len(recording.frames))
    # What was done upon frame i is learnt where the expert did it.
    np.testing.assert_array_equal(aligned.user_mask, ~(perturbed | first)[1:])
    # After a run of noise there is a correction to learn.
    assert np.any(perturbed[1:-1] & aligned.user_mask[1:])


def test_the_sidecar_names_what_was_played(recorded: tuple[Path, Recording, Sidecar]) -> None:
    _, recording, sidecar = recorded
    assert sidecar.episode["goal"] == "red"
    assert sidecar.episode["expert"] == "doom-red"
    assert set(sidecar.episode["probes"]) <= set(sidecar.arrays)
    assert all(len(array) == len(recording.frames) for array in sidecar.arrays.values())
    for episode in sidecar.episode["episodes"]:
        assert episode["facts"]["did"] in ("red", "green", "neither")


def test_recording_goes_on_where_it_stopped(tmp_path: Path) -> None:
    job = DoomJob(goals=[SETTINGS, _goal("green")], out=tmp_path, recordings=2, workers=1)
    told = [0, 0]

    def progress(frames: int, recordings: int) -> None:
        told[0] += frames
        told[1] += recordings

    report = record_doom(job, progress)
    assert told == [report.new_frames, 4]
    assert report.new_frames == sum(goal.frames for goal in report.goals)
    kept, lost = list_recordings(tmp_path / "two_vests" / "red")
    before = {path: (path / "annotation.proto").read_bytes() for path in (kept, lost)}
    summary = read_sidecar(lost)
    shutil.rmtree(lost)
    again = record_doom(job)
    assert [goal.kept for goal in again.goals] == [1, 2]
    paths = list_recordings(tmp_path / "two_vests" / "red")
    assert kept in paths
    (new,) = set(paths) - {kept}
    made = read_sidecar(new)
    assert made is not None
    assert summary is not None
    assert made.episode["index"] == summary.episode["index"]
    # The recording is a function of its number and the settings, up to the uuid and the clock.
    assert [f.action for f in read_recording(new).frames] == _actions(before[lost], tmp_path)
    with pytest.raises(BadSettingError, match=r"epsilon 0\.3, not 0\.5"):
        record_doom(DoomJob(goals=[_goal("red", epsilon=0.5)], out=tmp_path, recordings=2))


def test_the_command_records_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["data", "record", "doom", "--scenario", "two_vests:green", "--frames", "50", "--out", str(out)]
    assert main([*arguments, "--workers", "1", "--min-frames", "0", "--full-video", "--size", "64"]) == 0
    printed = capsys.readouterr()
    assert "two_vests" in printed.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["goals"][0]["frames"] >= 50
    path = list_recordings(out)[0]
    assert video_sizes(path) == [(64, 64)]
    assert (path / "video.mp4").exists()
    assert len(read_recording(path).instructions) == 1
    assert main(["data", "record", "doom", "--scenario", "two_vests:blue", "--frames", "1", "--out", str(out)]) == 2
    assert "it has green, red" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scenario": "x"}, "no Doom scenario"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"size": 97}, "97 pixels"),
        ({"noise_length": 0}, "noise_length"),
        ({"crf": 99}, "crf"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadSettingError, match=said):
        DoomSettings(**{"scenario": "basic", "goal": "shoot_monster", **changes})  # type: ignore[arg-type]


def test_seeds_that_are_evaluated_on_are_never_recorded() -> None:
    with pytest.raises(BadSettingError, match="evaluated on"):
        SETTINGS.seeds(16_000)


_X = 11


def _probe(sidecar: Sidecar, name: str, frame: int) -> float:
    return float(sidecar.arrays[name][frame])


def _goal(goal: str, **changes: object) -> DoomSettings:
    return DoomSettings(**{**_fields(SETTINGS), "goal": goal, **changes})  # type: ignore[arg-type]


def _actions(annotation: bytes, tmp_path: Path) -> list[DesktopAction]:
    folder = tmp_path / "was"
    folder.mkdir()
    (folder / "annotation.proto").write_bytes(annotation)
    return [frame.action for frame in read_recording(folder).frames]
