"""`playserve play --world` on a desktop of its own: what a person presses moves the world, and the window shows it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desktop.rig import Program, focus, wait_until
from desktop.xserver import XServer, xserver
from fake_world import fake_world, world_spec

from playserve.actions import DesktopAction
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve.testing import FakePolicyServer
from playserve_client.nethack.keys import ACTION_NAMES

pytest.importorskip("pygame")
pytest.importorskip("Xlib")

_DESKTOP = DesktopActionSpec(keys=("KeyW", "Space"), buttons=(0,), max_mouse_px=100)


@pytest.fixture
def screen(require_program: Callable[[str], None], tmp_path: Path) -> Iterator[XServer]:
    require_program("Xvfb")
    with xserver("Xvfb", tmp_path / "xvfb.log") as x:
        yield x


class Hands:
    """A keyboard and a mouse of an X server."""

    def __init__(self, x: XServer, window: int) -> None:
        from Xlib import display

        self._display = display.Display(x.display)
        self._window = self._display.create_resource_object("window", window)

    def close(self) -> None:
        self._display.close()

    def key(self, name: str, *, down: bool) -> None:
        from Xlib import XK, X

        code = self._display.keysym_to_keycode(XK.string_to_keysym(name))
        self._fake(X.KeyPress if down else X.KeyRelease, code)

    def tap(self, name: str) -> None:
        self.key(name, down=True)
        self.key(name, down=False)

    def click(self) -> None:
        from Xlib import X

        self._fake(X.ButtonPress, 1)
        self._fake(X.ButtonRelease, 1)

    def move(self, dx: int, dy: int) -> None:
        from Xlib import X

        self._fake(X.MotionNotify, 1, x=dx, y=dy)

    def _fake(self, kind: int, detail: int, **options: int) -> None:
        from Xlib.ext import xtest

        xtest.fake_input(self._display, kind, detail, **options)
        self._display.sync()

    def picture(self) -> Any:
        """Return the window as it is, uint8 [H, W, 3] RGB."""
        from Xlib import X

        size = self._window.get_geometry()
        raw = self._window.get_image(0, 0, size.width, size.height, X.ZPixmap, 0xFFFFFFFF).data
        return np.frombuffer(raw, np.uint8).reshape(size.height, size.width, 4)[:, :, 2::-1]


def _handle(x: XServer) -> int:
    """Return the one window of SDL, which says its title to window managers only."""
    from Xlib import display

    connection = display.Display(x.display)
    title = connection.intern_atom("_NET_WM_NAME")
    named = [(w.id, w.get_full_property(title, 0)) for w in connection.screen().root.query_tree().children]
    (found,) = [number for number, name in named if name is not None and name.value.startswith(b"coins 1")]
    connection.close()
    return int(found)


@contextlib.contextmanager
def window(x: XServer, address: str, *flags: str) -> Iterator[tuple[Program, Hands]]:
    command = [str(Path(sys.executable).with_name("playserve")), "play", "--world", "coins", "--server", address]
    program = Program([*command, *flags], x.env)
    try:
        wait_until(lambda: "playing in 'coins'" in program.text(), f"the window; {program.text()}")
        handle = _handle(x)
        focus(x.display, handle)
        hands = Hands(x, handle)
        try:
            yield program, hands
        finally:
            hands.close()
    finally:
        program.close()


def test_keys_move_a_world_that_the_window_shows(screen: XServer, tmp_path: Path) -> None:
    seen: list[Any] = []
    out = tmp_path / "numbers.json"
    with FakePolicyServer({"coins": fake_world(world_spec(), seen=seen)}) as server:
        with window(screen, server.address, "--seed", "3", "--out", str(out)) as (program, hands):
            wait_until(lambda: len(seen) > 2, "the first steps")
            assert {action for _, action in seen} == {0}
            # A cell is 32 pixels large, and the dot starts in column 3, row 8.
            wait_until(lambda: (hands.picture()[8 * 32 + 16, 3 * 32 + 16] == (0, 0, 255)).all(), "the dot")
            hands.key("d", down=True)
            wait_until(lambda: sum(action == 4 for _, action in seen) >= 4, "steps to the right")
            hands.key("d", down=False)
            wait_until(lambda: seen[-1][1] == 0, "the key to be up")
            steps = sum(action == 4 for _, action in seen)
            column = (3 + steps) % 16
            wait_until(lambda: hands.picture()[8 * 32 + 16, column * 32 + 16, 2] == 255, "the dot where it went")
            assert hands.picture()[8 * 32 + 16, 3 * 32 + 16, 2] == 0
            hands.tap("space")
            wait_until(lambda: any(action == 5 for _, action in seen[:-4]), "a shot, and its reward")
            hands.tap("F2")
            wait_until(lambda: sum(episode == 1 for episode, _ in seen) > 4, "another world")
            hands.tap("F3")
            wait_until(lambda: _stands(seen), "a stop")
            hands.tap("F12")
            assert program.wait() == 0, program.text()
    report = json.loads(out.read_text())
    assert (report["world"], report["seed"], report["worlds"]) == ("coins", 3, 2)
    assert report["rewards"][0] >= 1
    assert report["frames"] > 5


def test_nethacks_keys_are_typed_one_a_step(screen: XServer) -> None:
    seen: list[Any] = []
    keys = DiscreteActionSpec(n=len(ACTION_NAMES), names=ACTION_NAMES)
    with FakePolicyServer({"coins": fake_world(world_spec(action=keys), seen=seen)}) as server:
        with window(screen, server.address) as (program, hands):
            wait_until(lambda: len(seen) == 1, "the world to begin by itself")
            assert "NetHack" in program.text()
            for name in ("j", "Left", "Escape", "k"):
                hands.tap(name)
            wait_until(lambda: len(seen) >= 5, "a step for each key")
            hands.key("Shift_L", down=True)
            hands.tap("h")
            hands.key("Shift_L", down=False)
            wait_until(lambda: len(seen) >= 6, "a capital letter")
            time.sleep(0.3)
            hands.tap("F12")
            assert program.wait() == 0, program.text()
    names = (
        "CompassDirection.S",
        "CompassDirection.W",
        "Command.ESC",
        "CompassDirection.N",
        "CompassDirectionLonger.W",
    )
    assert [ACTION_NAMES[action] for _, action in seen[1:]] == list(names)


def test_a_click_holds_the_mouse_and_its_motion_goes_up(screen: XServer) -> None:
    seen: list[Any] = []
    with FakePolicyServer({"coins": fake_world(world_spec(action=_DESKTOP), seen=seen)}) as server:
        with window(screen, server.address) as (program, hands):
            wait_until(lambda: len(seen) > 2, "the first steps")
            hands.move(30, 0)  # into the window; nobody holds the mouse yet
            assert all(action == DesktopAction() for _, action in seen)
            hands.click()
            wait_until(lambda: _moved(seen, hands), "motion")
            hands.key("w", down=True)
            wait_until(lambda: seen[-1][1].keys == {"KeyW"}, "a key")
            other = Program([sys.executable, "-m", "desktop.window", "other", "700,600,50,50", "ff0000"], screen.env)
            try:  # it takes the focus: what is held is let go
                wait_until(lambda: seen[-1][1].keys == frozenset(), "the key to be let go")
            finally:
                other.close()
            program.process.terminate()
            assert program.wait() == 130


def _stands(seen: list[Any]) -> bool:
    before = len(seen)
    time.sleep(0.4)
    return len(seen) == before


def _moved(seen: list[Any], hands: Hands) -> bool:
    hands.move(7, 0)
    return any(action.mouse_dx_px > 0 for _, action in seen)


def test_without_a_display_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from playserve.cli import main

    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    with FakePolicyServer({"coins": fake_world(world_spec())}) as server:
        assert main(["play", "--world", "coins", "--server", server.address]) != 0
        assert "--film" in capsys.readouterr().err
