"""DoomEnv: episodes are functions of seed and actions, two tics a step, the mouse turns, a game that dies is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

pytest.importorskip("vizdoom")

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.resize import HAMMING_V1, resize
from playserve_client.doom.game import PROBES, GameDiedError
from playserve_client.doom.noise import random_action
from playserve_client.doom.scenarios import SCENARIOS
from playserve_client.envs.doom import DoomEnv, instruction_for
from playserve_client.envs.registry import make_env

IDLE = DesktopAction()


@pytest.fixture(scope="module")
def center() -> Iterator[DoomEnv]:
    env = make_env("doom", "defend_the_center")
    assert isinstance(env, DoomEnv)
    yield env
    env.close()


def play(env: DoomEnv, seed: int, steps: int = 60) -> list[tuple[bytes, float, bool, bytes]]:
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    shown = [(observation["frame"].tobytes(), 0.0, False, env.probes().tobytes())]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(random_action(env.scenario, rng))
        shown.append((observation["frame"].tobytes(), reward, terminated, env.probes().tobytes()))
        if terminated or truncated:
            break
    return shown


def probe(env: DoomEnv, name: str) -> float:
    return float(env.probes()[PROBES.index(name)])


def test_an_episode_is_a_function_of_seed_and_actions_whatever_was_played_before(center: DoomEnv) -> None:
    first = play(center, 7)
    other = play(center, 8)
    assert play(center, 7) == first
    assert other != first


def test_another_process_plays_the_same_episode(center: DoomEnv) -> None:
    played = play(center, 11)
    again = DoomEnv("defend_the_center")
    try:
        assert play(again, 11) == played
    finally:
        again.close()


def test_observations_are_the_screen_resized_and_never_overwritten(center: DoomEnv) -> None:
    observation, info = center.reset(seed=3)
    frame, screen = observation["frame"], center.screen()
    before_frame, before_screen = frame.copy(), screen.copy()
    assert frame.shape == (96, 96, 3)
    assert frame.dtype == np.uint8
    assert screen.shape == (240, 320, 3)
    np.testing.assert_array_equal(frame, resize(screen, 96, 96, HAMMING_V1))
    for _ in range(5):
        center.step(DesktopAction(mouse_dx_px=38.0))
    np.testing.assert_array_equal(frame, before_frame)
    np.testing.assert_array_equal(screen, before_screen)
    assert info["instruction"] in SCENARIOS["defend_the_center"].goals[0].phrasings.held_out


def test_a_pixel_to_the_right_turns_a_quarter_of_a_degree_to_the_right(center: DoomEnv) -> None:
    center.reset(seed=4)
    before = probe(center, "ANGLE")
    center.step(DesktopAction(mouse_dx_px=40.0))
    assert (before - probe(center, "ANGLE")) % 360 == pytest.approx(10.0, abs=0.02)
    center.step(DesktopAction(mouse_dx_px=-61.0))
    assert (before - probe(center, "ANGLE")) % 360 == pytest.approx(360 - 5.25, abs=0.03)


def test_a_step_is_two_tics_and_the_button_shoots(center: DoomEnv) -> None:
    center.reset(seed=5)
    tic, ammunition = center.view().tic, probe(center, "SELECTED_WEAPON_AMMO")
    for _ in range(20):
        center.step(DesktopAction(buttons=frozenset({0})))
    assert center.view().tic - tic == 40
    assert ammunition - 4 <= probe(center, "SELECTED_WEAPON_AMMO") <= ammunition - 1


def test_what_a_scenario_has_no_use_for_does_nothing(center: DoomEnv) -> None:
    center.reset(seed=6)
    place = probe(center, "POSITION_X"), probe(center, "POSITION_Y")
    for _ in range(8):
        center.step(DesktopAction(frozenset({"KeyW", "Digit1", "Space"}), frozenset({2})))
    assert (probe(center, "POSITION_X"), probe(center, "POSITION_Y")) == place


def test_keys_move() -> None:
    env = DoomEnv("two_vests")
    try:
        moved = {}
        for key in ("KeyW", "KeyS", "KeyA", "KeyD"):
            env.reset(seed=1)
            start = np.array([probe(env, "POSITION_X"), probe(env, "POSITION_Y")])
            angle = np.radians(probe(env, "ANGLE"))
            for _ in range(6):
                env.step(DesktopAction(frozenset({key})))
            way = np.array([probe(env, "POSITION_X"), probe(env, "POSITION_Y")]) - start
            ahead = way @ [np.cos(angle), np.sin(angle)]
            right = way @ [np.sin(angle), -np.cos(angle)]
            moved[key] = (ahead, right)
        assert moved["KeyW"][0] > 5
        assert moved["KeyS"][0] < -5
        assert moved["KeyA"][1] < -5
        assert moved["KeyD"][1] > 5
    finally:
        env.close()


def test_an_episode_ends_with_facts_and_then_wants_a_reset() -> None:
    env = DoomEnv("basic")
    try:
        env.reset(seed=2)
        terminated = truncated = False
        total = 0.0
        info: dict[str, object] = {}
        while not (terminated or truncated):
            observation, reward, terminated, truncated, info = env.step(IDLE)
            total += reward
        assert (terminated, truncated) == (False, True)
        assert env.steps == 150
        assert total == env.score == -300
        facts = info["episode_facts"]
        assert isinstance(facts, dict)
        assert facts["end"] == "timeout"
        assert facts["idle_per_100s"] == 100
        assert facts["shots"] == facts["kills"] == facts["wall_frames"] == facts["jitter"] == 0
        assert observation["frame"].any()  # the game shows nothing any more: the last frame stays
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(IDLE)
    finally:
        env.close()


def test_the_cap_is_the_callers() -> None:
    env = DoomEnv("take_cover", max_steps=5)
    try:
        env.reset(seed=2)
        ends = [env.step(IDLE)[3] for _ in range(5)]
        assert ends == [False] * 4 + [True]
    finally:
        env.close()


def test_wrong_settings_and_actions_are_named(center: DoomEnv) -> None:
    with pytest.raises(BadSettingError, match="close names: basic"):
        DoomEnv("basik")
    with pytest.raises(BadSettingError, match="it has collect, avoid"):
        DoomEnv("health_gathering", goal="eat")
    with pytest.raises(BadSettingError, match="one goal"):
        DoomEnv("basic", text="wrong")
    with pytest.raises(BadSettingError, match="tics"):
        DoomEnv("basic", tics_per_frame=4)
    center.reset(seed=1)
    with pytest.raises(BadActionError, match="wanted a DesktopAction"):
        center.step(3)  # type: ignore[arg-type]
    with pytest.raises(BadActionError, match="finite"):
        center.step(DesktopAction(mouse_dx_px=float("nan")))


def test_instructions_follow_the_seed_and_the_goal() -> None:
    scenario = SCENARIOS["health_gathering"]
    collect, avoid = scenario.goals
    told = {instruction_for(scenario, avoid, seed, phrasing="held_out") for seed in range(100)}
    assert told == set(avoid.phrasings.held_out)
    assert instruction_for(scenario, avoid, 5, phrasing="training") in avoid.phrasings.training
    assert instruction_for(scenario, avoid, 5, text="none", phrasing="held_out") == ""
    wrong = instruction_for(scenario, avoid, 5, text="wrong", phrasing="held_out")
    assert wrong in collect.phrasings.held_out


def test_a_game_that_dies_is_a_typed_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = _children()
    env = DoomEnv("basic")
    try:
        env.reset(seed=1)
        (game,) = _children() - before
        os.kill(game, signal.SIGKILL)
        with pytest.raises(GameDiedError, match="ViZDoom process is gone"):
            env.step(IDLE)
    finally:
        env.close()
        env.close()
    assert _children() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there has a game a folder of its own")
def test_games_that_start_at_once_make_nothing_where_they_are_started(tmp_path: Path) -> None:
    # A game that worked here would make the folder _vizdoom, and die where that cannot be.
    (tmp_path / "_vizdoom").write_text("")
    # ViZDoom would take this for the game; it has no levels.
    (tmp_path / "doom2.wad").write_bytes(b"IWAD" + bytes(8))
    program = (
        "import sys\n"
        "from playserve_client.envs.doom import DoomEnv\n"
        "env = DoomEnv('basic'); env.reset(seed=1)\n"
        "print('up', flush=True); sys.stdin.read(); env.close()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    with contextlib.ExitStack() as stack:
        started = [subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
        for process in started:
            stack.enter_context(process)  # leaving it closes the pipes, waits, and so ends the game
        folders = set()
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            (game,) = _children(process.pid)
            folders.add(os.readlink(f"/proc/{game}/cwd"))
    assert [process.returncode for process in started] == [0, 0]
    assert len(folders) == 2
    assert not any(Path(folder).exists() for folder in folders)
    assert {path.name for path in tmp_path.iterdir()} == {"_vizdoom", "doom2.wad"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to end the game")
def test_a_game_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from playserve_client.envs.doom import DoomEnv\n"
        "env = DoomEnv('basic'); env.reset(seed=1)\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    folders = {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **folders},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "up\n"
    (game,) = _children(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    deadline = time.monotonic() + 30
    while _runs(game):
        assert time.monotonic() < deadline, f"the game {game} still runs"
        time.sleep(0.02)
    (left,) = tmp_path.glob("playserve-doom-*")
    instance = (left / "instance").read_text()
    assert list(Path("/dev/shm").glob(f"*{instance}"))
    # The next game tidies up after it.
    subprocess.run(
        [sys.executable, "-c", "from playserve_client.doom.process import make_folder; make_folder().rmdir()"],
        env={**os.environ, **folders},
        check=True,
    )
    assert not list(tmp_path.iterdir())
    assert not list(Path("/dev/shm").glob(f"*{instance}"))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(of: int | None = None) -> set[int]:
    """Return the processes of this one, or of another, that are called vizdoom and live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if "vizdoom" in name and int(parent) == (of or os.getpid()) and state != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize("arguments", [["data", "record", "doom", "--frames", "1", "--out", "x"],
    ["rollout", "doom", "--scenario", "basic", "--no-agent"]])  # fmt: skip
def test_without_vizdoom_the_command_names_the_extra(arguments: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules['vizdoom'] = None\nfrom playserve.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'playserve[envs]'" in done.stderr
