"""A scenario in a window, played through the X server: keys and mouse mean what they mean headless."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from desktop.xserver import xserver

pytest.importorskip("vizdoom")

from playserve.errors import BadSettingError
from playserve_client.doom.game import PROBES, DoomGame
from playserve_client.doom.scenarios import SCENARIOS
from playserve_client.doom.window import DoomWindow, baseline_scores, play_window

ANGLE = PROBES.index("ANGLE")


@pytest.fixture
def display(require_program: Callable[[str], None], tmp_path: Path) -> Iterator[str]:
    require_program("Xvfb")
    require_program("xdotool")
    with xserver("Xvfb", tmp_path / "xvfb.log", width=800, height=600) as server:
        yield server.display


@pytest.fixture
def do(display: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what presses and moves on the display that windows open on."""
    monkeypatch.setenv("DISPLAY", display)

    def press(*words: str) -> None:
        subprocess.run(["xdotool", *words], check=True, stdout=subprocess.DEVNULL)

    return press


def test_keys_and_mouse_mean_what_they_mean_headless(do: Callable[..., None]) -> None:
    game = DoomGame(SCENARIOS["defend_the_center"], window=True)
    try:
        game.start(1)
        do("search", "--sync", "--name", "VIZDOOM", "windowfocus", "--sync")
        for _ in range(10):
            game.watch()
        do("mousemove_relative", "--", "5", "0")  # the first motion is where the pointer was
        for _ in range(10):
            game.watch()
        before = game.probes()[ANGLE]
        do("mousemove_relative", "--", "40", "9")
        turned = sum(game.watch()[0].mouse_dx_px for _ in range(10))
        assert (before - game.probes()[ANGLE]) % 360 == pytest.approx(10.0, abs=0.1)
        assert turned == pytest.approx(40, abs=1)
        do("mousedown", "1")
        held = [game.watch()[0].buttons for _ in range(20)]
        do("mouseup", "1")
        assert {0} in held
        assert not game.over
    finally:
        game.close()


def test_episodes_count_from_the_first_action_on(do: Callable[..., None]) -> None:
    window = DoomWindow("two_vests", max_frames=15)
    pushed = threading.Event()
    told: list[int] = []
    do("search", "--sync", "--name", "VIZDOOM", "windowfocus", "--sync")

    def watch() -> None:
        value.update(play_window(window, 2, on_episode=lambda episode: told.append(episode["seed"])))
        pushed.set()

    value: dict[str, object] = {}
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert not pushed.wait(2.0)  # two episodes or so in which nobody does anything
        assert not told
        do("keydown", "w")
        assert pushed.wait(60)
    finally:
        do("keyup", "w")
        thread.join()
        window.close()
    assert told == [1_000_000, 1_000_001]
    assert value["waited_episodes"]
    assert value["mean"] in (0.0, 0.5, 1.0)


def test_baselines_are_of_the_same_scenario_and_goal(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    env = {"family": "doom", "game": "basic", "options": {"goal": "shoot_monster"}}
    episodes = [{"row": "random", "score": -100.0}, {"row": "expert", "score": 80.0}, {"row": "idle", "score": -300.0}]
    path.write_text(json.dumps({"settings": {"env": env}, "episodes": episodes}))
    assert baseline_scores(path, "basic", "shoot_monster") == {"random": [-100.0], "expert": [80.0]}
    with pytest.raises(BadSettingError, match="not of doom take_cover dodge"):
        baseline_scores(path, "take_cover", "dodge")
    path.write_text(json.dumps({"settings": {"env": env}, "episodes": episodes[:1]}))
    with pytest.raises(BadSettingError, match="no finished episode of expert"):
        baseline_scores(path, "basic", "shoot_monster")
    path.write_text("[]")
    with pytest.raises(BadSettingError, match=r"no results\.json"):
        baseline_scores(path, "basic", "shoot_monster")
