"""Windows by title, their places, and whether they are in front: on X servers, and by doubles of Windows and macOS."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from desktop.rig import Program, focus, wait_until
from desktop.xserver import XServer, xserver

from playserve_client.capture import Platform, Region, Window, choose_window, detect_platform, parse_region
from playserve_client.capture.errors import (
    DisplayMissingError,
    PlatformUnknownError,
    RegionError,
    WaylandError,
    WindowAmbiguousError,
    WindowGoneError,
    WindowNotFoundError,
)
from playserve_client.capture.macos import QuartzWindows
from playserve_client.capture.windows import Win32Windows

GAME = Region(100, 80, 320, 200)


def test_regions() -> None:
    assert parse_region("1, 2,30,40") == Region(1, 2, 30, 40)
    for text in ("", "1,2,3", "1,2,3,x", "0,0,0,5", "0,0,5,-1"):
        with pytest.raises(RegionError):
            parse_region(text)
    assert Region(0, 0, 10, 10).overlaps(Region(9, 9, 5, 5))
    assert not Region(0, 0, 10, 10).overlaps(Region(10, 0, 5, 5))
    assert Region(0, 0, 10, 10).contains(Region(5, 5, 5, 5))
    assert not Region(0, 0, 10, 10).contains(Region(5, 5, 6, 5))


def test_a_title_names_one_window() -> None:
    windows = [Window(1, "Doom"), Window(2, "Doom - Options"), Window(3, "Mail")]
    assert choose_window(windows, "Doom").handle == 1  # the whole title wins
    assert choose_window(windows, "mail").handle == 3
    with pytest.raises(WindowAmbiguousError, match="Doom - Options"):
        choose_window(windows, "doom")
    with pytest.raises(WindowNotFoundError, match="'Mail'"):
        choose_window(windows, "Quake")
    with pytest.raises(WindowNotFoundError):
        choose_window(windows, "")


def test_desktops_are_told_apart() -> None:
    assert detect_platform("win32", {}) is Platform.WINDOWS
    assert detect_platform("darwin", {}) is Platform.MACOS
    assert detect_platform("linux", {"DISPLAY": ":0", "WAYLAND_DISPLAY": "wayland-0"}) is Platform.X11
    with pytest.raises(WaylandError, match="Xorg"):
        detect_platform("linux", {"WAYLAND_DISPLAY": "wayland-0"})
    with pytest.raises(DisplayMissingError, match="DISPLAY"):
        detect_platform("linux", {})
    with pytest.raises(PlatformUnknownError, match="plan9"):
        detect_platform("plan9", {})


# ---- X11


@pytest.fixture(params=["Xvfb", "Xvnc"])
def screen(request: pytest.FixtureRequest, require_program: Callable[[str], None], tmp_path: Path) -> Iterator[XServer]:
    require_program(request.param)
    for package in ("Xlib", "mss"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"missing package: {package}")
    with xserver(request.param, tmp_path / "x.log") as x:
        yield x


@pytest.fixture
def window(screen: XServer) -> Iterator[Callable[..., int]]:
    programs = []

    def show(title: str, place: Region, colour: str, *more: str) -> int:
        program = Program([sys.executable, "-m", "desktop.window", title, str(place), colour, *more], screen.env)
        programs.append(program)
        return int(program.wait_for(lambda line: "ready" in line, title)["ready"])

    yield show
    for program in programs:
        program.close()


def test_x11_windows_are_followed_watched_and_captured(screen: XServer, window: Callable[..., int]) -> None:
    from playserve_client.capture.screen import ScreenCapture
    from playserve_client.capture.x11 import X11Windows

    windows, capture = X11Windows(screen.display), ScreenCapture(screen.display)
    handle = window("Game é", GAME, "c02010")
    game = choose_window(windows.windows(), "game")
    assert (game.handle, game.title, game.owner) == (handle, "Game é", "Test")
    assert windows.window_at(Region(150, 100, 10, 10)) == game
    assert (windows.look(game).region, windows.look(game).in_front) == (GAME, True)
    image = capture.grab(GAME).rgb()
    assert image.shape == (200, 320, 3)
    assert (image == np.array([0xC0, 0x20, 0x10], np.uint8)).all()  # red is red

    # Another window takes the focus, beside it; then the focus comes back.
    other = window("Other", Region(600, 300, 100, 100), "1020c0")
    wait_until(lambda: not windows.look(game).in_front, "the loss of the focus")
    assert windows.look(game).reason == "another window has the focus"
    focus(screen.display, handle)
    wait_until(lambda: windows.look(game).in_front, "the focus")

    # Something without the focus lies over a corner of it: of the whole window, not of a part that it leaves free.
    window("Popup", Region(400, 260, 100, 100), "20c010", "over")
    wait_until(lambda: not windows.look(game).in_front, "the popup")
    assert "'Popup' lies over it" in windows.look(game).reason
    assert windows.look(game, Region(100, 80, 100, 100)).in_front
    assert "not wholly inside" in windows.look(game, Region(90, 80, 100, 100)).reason
    _move(screen, handle, 700, 600)
    wait_until(lambda: windows.look(game).region.x == 700, "the move")
    assert windows.look(game).region == Region(700, 600, 320, 200)
    assert "not wholly on the screen" in windows.look(game).reason
    with pytest.raises(RegionError, match="not wholly on the screen"):
        capture.grab(Region(1000, 700, 100, 100))
    with pytest.raises(WindowNotFoundError):
        windows.window_at(Region(10, 10, 4, 4))
    assert other
    capture.close()
    windows.close()


def _move(screen: XServer, handle: int, x: int, y: int) -> None:
    from Xlib import display as xdisplay

    connection = xdisplay.Display(screen.display)
    connection.create_resource_object("window", handle).configure(x=x, y=y)
    connection.sync()
    connection.close()


def test_an_x11_window_that_is_closed_is_gone(screen: XServer) -> None:
    from playserve_client.capture.x11 import X11Windows

    windows = X11Windows(screen.display)
    program = Program([sys.executable, "-m", "desktop.window", "Game", str(GAME), "c02010"], screen.env)
    program.wait_for(lambda line: "ready" in line, "the window")
    game = choose_window(windows.windows(), "Game")
    assert windows.look(game).in_front
    program.close()

    def gone() -> bool:
        try:
            windows.look(game)
        except WindowGoneError:
            return True
        return False

    wait_until(gone, "its end")
    assert not windows.windows()
    windows.close()


def test_no_screen_is_one_line_that_says_so() -> None:
    # By the command: python-xlib leaves sockets open where nobody answers.
    if importlib.util.find_spec("Xlib") is None:
        pytest.skip("missing package: python-xlib")
    env = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [str(Path(sys.executable).with_name("playserve")), "play", "--window", "Game", "--policy", "p"]
    for more, wanted in (({"DISPLAY": ":987"}, ":987"), ({}, "DISPLAY is not set"), ({"WAYLAND_DISPLAY": "w"}, "Xorg")):
        done = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert wanted in done.stderr
        assert done.stderr.count("\n") == 1


# ---- Windows


class User32:
    """Windows of a desktop, the frontmost first: handle, title, client rectangle."""

    def __init__(self, *windows: tuple[int, str, Region], front: int) -> None:
        self.windows = {handle: (title, place) for handle, title, place in windows}
        self.order = [handle for handle, _, _ in windows]
        self.front, self.minimized, self.see_through = front, set[int](), set[int]()

    def EnumWindows(self, take: Any, _: Any) -> None:
        for handle in self.order:
            take(handle, None)

    def IsWindow(self, handle: Any) -> bool:
        return handle.value in self.windows

    def IsWindowVisible(self, handle: Any) -> bool:
        return handle.value in self.windows

    def IsIconic(self, handle: Any) -> bool:
        return handle.value in self.minimized

    def GetForegroundWindow(self) -> int:
        return self.front

    def GetWindow(self, handle: Any, _: int) -> int | None:
        at = self.order.index(handle.value)
        return self.order[at - 1] if at else None

    def GetWindowLongW(self, handle: Any, _: int) -> int:
        return 0x20 if handle.value in self.see_through else 0

    def GetWindowTextW(self, handle: Any, text: Any, _: int) -> None:
        text.value = self.windows[handle.value][0]

    def GetWindowThreadProcessId(self, handle: Any, number: Any) -> None:
        number._obj.value = 1000 + handle.value

    def GetClientRect(self, handle: Any, rect: Any) -> bool:
        place = self.windows[handle.value][1]
        rect._obj.right, rect._obj.bottom = place.width, place.height
        return True

    def ClientToScreen(self, handle: Any, point: Any) -> None:
        place = self.windows[handle.value][1]
        point._obj.x, point._obj.y = place.x, place.y

    def GetWindowRect(self, handle: Any, rect: Any) -> bool:
        place = self.windows[handle.value][1]
        rect._obj.left, rect._obj.top, rect._obj.right, rect._obj.bottom = place.x, place.y, place.right, place.bottom
        return True

    def WindowFromPoint(self, point: Any) -> int | None:
        spot = Region(point.x, point.y, 1, 1)
        return next((handle for handle in self.order if self.windows[handle][1].overlaps(spot)), None)

    def GetAncestor(self, handle: Any, _: int) -> int:
        assert isinstance(handle, ctypes.c_void_p)
        return int(handle.value or 0)


def test_windows_windows() -> None:
    user32 = User32((7, "Note", Region(400, 200, 50, 50)), (8, "Game", GAME), front=8)
    windows = Win32Windows(user32)
    game = choose_window(windows.windows(), "game")
    assert game == Window(8, "Game", "1008")
    assert windows.window_at(GAME) == game
    assert windows.look(game).reason == "the window 'Note' lies over it"
    user32.see_through.add(7)  # a frame counter, say
    assert (windows.look(game).region, windows.look(game).in_front) == (GAME, True)
    user32.front = 7
    assert windows.look(game).reason == "another window has the focus"
    user32.minimized.add(8)
    assert not windows.look(game).in_front
    del user32.windows[8]
    with pytest.raises(WindowGoneError, match="Game"):
        windows.look(game)


# ---- macOS


def test_macos_windows() -> None:
    def entry(number: int, name: str, place: Region, pid: int, layer: int = 0) -> dict[str, Any]:
        bounds = {"X": place.x, "Y": place.y, "Width": place.width, "Height": place.height}
        return {"kCGWindowNumber": number, "kCGWindowName": name, "kCGWindowBounds": bounds, "kCGWindowOwnerPID": pid,
                "kCGWindowOwnerName": f"app{pid}", "kCGWindowLayer": layer}  # fmt: skip

    shown = [entry(1, "", Region(0, 0, 2000, 24), 9, 25), entry(5, "Game", Region(100, 52, 320, 228), 4)]
    every = [*shown]
    quartz = SimpleNamespace(
        kCGWindowListOptionOnScreenOnly=1, kCGWindowListOptionAll=0, kCGNullWindowID=0,
        CGWindowListCopyWindowInfo=lambda option, _: shown if option else every,
    )  # fmt: skip
    active = [4]
    windows = QuartzWindows(quartz, lambda: active[0])
    game = choose_window(windows.windows(), "Game")
    assert game == Window(5, "Game", "app4")
    assert windows.look(game).region == GAME  # without the title bar
    assert windows.look(game).in_front
    assert windows.window_at(GAME) == game
    active[0] = 9
    assert windows.look(game).reason == "another window has the focus"
    active[0] = 4
    shown.insert(0, entry(6, "Alert", Region(120, 100, 50, 50), 3, 8))
    assert windows.look(game).reason == "a window of app3 lies over it"
    del shown[:]
    assert "minimized" in windows.look(game).reason
    del every[:]
    with pytest.raises(WindowGoneError):
        windows.look(game)
