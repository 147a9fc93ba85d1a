"""Recording many episodes: noise, resume, damage, interruption, and the command line around it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError, ServerFault
from playserve_client.envs.atari import AtariEnv
from playserve_client.record import Job, record_episodes
from playserve_client.record_atari import AtariRecorder, AtariSettings, _Noise
from playserve_client.recordings import list_episodes, read_episode, stack_frames

# A shell that runs the tests in the background makes children ignore SIGINT; a terminal's child does not.
PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from playserve.cli import main; sys.exit(main())"
)
COMMAND = [sys.executable, "-c", PROGRAM, "data"]
MAX_STEPS = 60


def make_job(out: Path, **changes: Any) -> Job:
    settings = {"game": "freeway", "epsilon": 0.05, "stickiness": 0.0, "max_steps": MAX_STEPS}
    options: dict[str, Any] = {
        "recorder": "playserve_client.record_atari:AtariRecorder",
        "settings": settings,
        "env": "atari",
        "game": "freeway",
        "out": out,
        "seed_start": 10_000,
        "episodes": 3,
        "matching": {"epsilon": 0.05, "extra.max_steps": MAX_STEPS},
    }
    return Job(**{**options, **changes})


def test_an_episode_holds_what_happened() -> None:
    episode = AtariRecorder(game="freeway", epsilon=0.2, max_steps=300).record(10_000)
    meta = episode.meta
    assert (meta.steps, meta.truncated, meta.terminated, meta.seed) == (300, True, False, 10_000)
    assert meta.score == episode.reward.sum() > 0
    # A third of the random actions hit the label by chance.
    assert 0.06 < np.mean(episode.label != episode.executed) < 0.22
    # The executed actions and the seed are the episode: play it again and see the same.
    env = AtariEnv("freeway", max_steps=300)
    observation, _ = env.reset(seed=10_000)
    stacks = stack_frames(episode.frames, np.arange(300))
    for step in range(300):
        np.testing.assert_array_equal(stacks[step], observation)
        np.testing.assert_array_equal(episode.probes[step], env.ram())
        observation, reward, _, _, _ = env.step(int(episode.executed[step]))
        assert reward == episode.reward[step]


def test_without_noise_the_label_is_executed_and_with_noise_only_that_changes() -> None:
    quiet = AtariRecorder(game="pong", epsilon=0.0, max_steps=80).record(10_000)
    np.testing.assert_array_equal(quiet.label, quiet.executed)
    noisy = AtariRecorder(game="pong", epsilon=1.0, max_steps=80).record(10_000)
    assert quiet.meta.noops == noisy.meta.noops
    np.testing.assert_array_equal(quiet.frames[0], noisy.frames[0])
    assert (noisy.label != noisy.executed).mean() > 0.5


@pytest.mark.parametrize("noise_length", [1, 8])
def test_noise_comes_in_runs_that_keep_its_share(noise_length: int) -> None:
    settings = AtariSettings(game="freeway", epsilon=0.1, noise_length=noise_length)
    noise = _Noise(settings, 1000, seed=1)  # of a thousand actions hardly one is the label by chance
    acted = [noise.action(0, serving=False) for _ in range(40_000)]
    assert 0.085 < np.mean([action != 0 for action in acted]) < 0.115
    runs = [len(list(run)) for action, run in itertools.groupby(acted) if action != 0]
    assert max(runs) == noise_length
    assert abs(np.mean(runs) - (1 + noise_length) / 2) < 0.2


def test_serves_are_delayed_by_random_steps_with_the_serve_as_label() -> None:
    recorder = AtariRecorder(game="breakout", epsilon=0.0, max_steps=30, serve_delay=9)
    episodes = [recorder.record(seed) for seed in range(10_000, 10_006)]
    fire = episodes[0].meta.action_names.index("FIRE")
    delays = [int((e.label != e.executed).sum()) for e in episodes]
    assert len(set(delays)) > 1
    assert 0 <= min(delays) <= max(delays) <= 9
    for episode, delay in zip(episodes, delays, strict=True):
        assert (episode.label[: delay + 1] == fire).all()
        assert (episode.executed[:delay] != fire).all()
        assert episode.executed[delay] == fire


def test_records_resumes_and_repairs(tmp_path: Path) -> None:
    report = record_episodes(make_job(tmp_path, episodes=2))
    assert (len(report.metas), report.kept, report.damaged) == (2, 0, [])
    paths = list_episodes(tmp_path)
    kept, damaged = paths
    before = kept.stat().st_mtime_ns
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    damaged.write_bytes(raw)
    leftover = kept.with_name(f".episode-00010007.npz.{2**22 + 1}.tmp")  # above every process id
    leftover.write_bytes(b"half")

    seen = []
    report = record_episodes(make_job(tmp_path), lambda steps, episodes: seen.append((steps, episodes)))
    assert (len(report.metas), report.kept, report.damaged) == (3, 1, [damaged])
    assert np.sum(seen, axis=0).tolist() == [3 * MAX_STEPS, 3]
    assert kept.stat().st_mtime_ns == before
    assert not leftover.exists()
    for path in list_episodes(tmp_path):
        read_episode(path)
    summary = json.loads((tmp_path / "atari/freeway/summary.json").read_text())
    assert summary["episodes"] == 3
    assert summary["damaged"] == [str(damaged)]
    assert summary["frames"] == report.steps == 3 * MAX_STEPS
    assert summary["score_mean"] == np.mean([meta.score for meta in report.metas])
    assert summary["interrupted"] is False

    with pytest.raises(BadSettingError, match=r"episode-00010000\.npz was recorded with epsilon 0.05, not 0.02"):
        record_episodes(make_job(tmp_path, matching={"epsilon": 0.02}))


def test_stops_at_the_number_of_steps(tmp_path: Path) -> None:
    report = record_episodes(make_job(tmp_path, episodes=None, steps=2 * MAX_STEPS + 1))
    assert report.steps == 3 * MAX_STEPS
    again = record_episodes(make_job(tmp_path, episodes=None, steps=2 * MAX_STEPS + 1))
    assert (again.kept, again.new_steps) == (3, 0)


def test_the_same_seeds_are_the_same_data_whatever_the_workers(tmp_path: Path) -> None:
    record_episodes(make_job(tmp_path / "one", workers=1))
    record_episodes(make_job(tmp_path / "two", workers=2))
    for one, two in zip(list_episodes(tmp_path / "one"), list_episodes(tmp_path / "two"), strict=True):
        first, second = read_episode(one), read_episode(two)
        for name, array in first.arrays.items():
            np.testing.assert_array_equal(array, second.arrays[name])


def test_a_recorder_that_fails_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServerFault, match=r"(?s)seed 10000 failed.*no expert for 'tennis'"):
        record_episodes(make_job(tmp_path, settings={"game": "tennis"}, matching={}))
    with pytest.raises(BadSettingError, match="one of them"):
        make_job(tmp_path, steps=5)


def start(out: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, "record", "atari", "--game", "freeway", "--episodes", "60", "--max-steps", "200"]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while len(list_episodes(out)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return process


def test_an_interrupt_ends_it_with_whole_files_and_a_summary(tmp_path: Path) -> None:
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers as well
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "goes on from here" in output
    summary = json.loads((tmp_path / "atari/freeway/summary.json").read_text())
    assert summary["interrupted"] is True
    assert summary["episodes"] <= len(list_episodes(tmp_path)) < 60
    for path in list_episodes(tmp_path):
        read_episode(path)


def test_a_killed_run_leaves_whole_files_and_no_processes_and_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.kill()
    process.communicate(timeout=60)  # ends when the last worker has closed its copy of stdout
    recorded = list_episodes(tmp_path)
    for path in recorded:
        read_episode(path)
    count = len(recorded) + 1
    command = [*COMMAND, "record", "atari", "--game", "freeway", "--episodes", str(count), "--max-steps", "200"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "atari/freeway/summary.json").read_text())
    assert summary["episodes"] == count
    assert summary["kept"] >= len(recorded) - 1


def test_stats_count_and_name_damage(tmp_path: Path) -> None:
    record_episodes(make_job(tmp_path, episodes=2))
    damaged = list_episodes(tmp_path)[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    result = tmp_path / "stats.json"
    done = subprocess.run(
        [*COMMAND, "stats", str(tmp_path), "--json", str(result)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(damaged) in done.stdout
    value = json.loads(result.read_text())
    assert value["damaged"] == [str(damaged)]
    game = value["games"][0]
    assert (game["episodes"], game["frames"]) == (1, MAX_STEPS)
    assert sum(game["labels"].values()) == MAX_STEPS
