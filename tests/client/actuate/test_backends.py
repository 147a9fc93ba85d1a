"""What the Windows and macOS backends tell their systems, by doubles of these; X11's on a real server."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from desktop.rig import Program
from desktop.xserver import xserver

from playserve_client.actuate.base import ActuationError
from playserve_client.actuate.macos import MacBackend
from playserve_client.actuate.windows import INPUT, SIGNATURE, SendInputBackend
from playserve_client.capture.errors import PermissionMissingError


class Sent:
    def __init__(self, taken: int = 1) -> None:
        self.events: list[INPUT] = []
        self.taken = taken

    def __call__(self, events: list[INPUT]) -> int:
        self.events += events
        return self.taken


def test_windows_gets_scan_codes_and_no_virtual_keys() -> None:
    sent = Sent()
    backend = SendInputBackend(sent)
    backend.key("KeyW", True)
    backend.key("ArrowUp", False)
    first, second = (event.u.ki for event in sent.events)
    assert [event.type for event in sent.events] == [1, 1]
    assert (first.wVk, first.wScan, first.dwFlags, first.dwExtraInfo) == (0, 0x11, 0x8, SIGNATURE)
    assert (second.wVk, second.wScan, second.dwFlags) == (0, 0x48, 0x8 | 0x1 | 0x2)  # scan code, extended, up


def test_windows_gets_relative_motion() -> None:
    sent = Sent()
    backend = SendInputBackend(sent)
    backend.move(-7, 12)
    event = sent.events[0].u.mi
    assert (sent.events[0].type, event.dx, event.dy, event.dwFlags) == (0, -7, 12, 0x1)  # MOVE, without ABSOLUTE


def test_windows_buttons_and_wheel() -> None:
    sent = Sent()
    backend = SendInputBackend(sent)
    for button in range(5):
        backend.button(button, True)
        backend.button(button, False)
    backend.scroll(-2)
    flags = [(event.u.mi.dwFlags, event.u.mi.mouseData) for event in sent.events]
    assert flags == [
        (0x2, 0), (0x4, 0), (0x20, 0), (0x40, 0), (0x8, 0), (0x10, 0), (0x80, 1), (0x100, 1), (0x80, 2), (0x100, 2),
        (0x800, 0x100000000 - 240),
    ]  # fmt: skip
    with pytest.raises(ActuationError, match="button 9"):
        backend.button(9, True)


def test_windows_structures_have_the_systems_sizes() -> None:
    import ctypes

    assert ctypes.sizeof(INPUT) == (40 if ctypes.sizeof(ctypes.c_void_p) == 8 else 28)


def test_what_windows_refuses_is_an_error_that_says_why() -> None:
    with pytest.raises(PermissionMissingError, match="higher rights"):
        SendInputBackend(Sent(taken=0)).key("KeyW", True)


class Recorded:
    """Anything's methods, by which calls are remembered."""

    def __init__(self, calls: list[Any], **values: Any) -> None:
        self._calls = calls
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._calls.append((name, *arguments))
            return name

        return call


def mac() -> tuple[MacBackend, list[Any]]:
    calls: list[Any] = []
    button = SimpleNamespace(left="left", middle="middle", right="right")
    pynput = SimpleNamespace(
        keyboard=SimpleNamespace(
            Controller=lambda: Recorded(calls), KeyCode=SimpleNamespace(from_vk=lambda number: number)
        ),
        mouse=SimpleNamespace(Controller=lambda: Recorded(calls, position=(100.0, 50.0)), Button=button),
    )
    names = (
        "kCGEventMouseMoved", "kCGMouseButtonLeft", "kCGMouseButtonRight", "kCGEventLeftMouseDragged",
        "kCGEventRightMouseDragged", "kCGMouseEventDeltaX", "kCGMouseEventDeltaY", "kCGHIDEventTap",
    )  # fmt: skip
    return MacBackend(pynput, Recorded(calls, **{name: name for name in names})), calls


def test_macos_gets_virtual_keys_and_motion_with_its_difference() -> None:
    backend, calls = mac()
    assert backend.can_press("KeyW")
    assert not backend.can_press("ScrollLock")  # a Mac has none
    backend.key("KeyW", True)
    backend.button(0, True)
    backend.move(5, -3)
    assert calls[:2] == [("press", 13), ("press", "left")]
    assert (
        "CGEventCreateMouseEvent", None, "kCGEventLeftMouseDragged", (105.0, 47.0), "kCGMouseButtonLeft"
    ) in calls  # fmt: skip
    assert ("CGEventSetIntegerValueField", "CGEventCreateMouseEvent", "kCGMouseEventDeltaX", 5) in calls
    with pytest.raises(ActuationError, match="button 4"):
        backend.button(4, True)


_PRESS_AND_DIE = """
import os
from playserve_client.actuate.x11 import X11Backend
backend = X11Backend()
backend.key("KeyW", True)
backend.flush()
os._exit(9)
"""


def test_an_x_server_keeps_the_keys_of_the_dead(require_program: Callable[[str], None], tmp_path: Path) -> None:
    """Why there is a watchdog: without it, what a killed player held stays down."""
    require_program("Xvfb")
    if importlib.util.find_spec("pynput") is None:
        pytest.skip("missing package: pynput")
    from Xlib import display as xdisplay

    with xserver("Xvfb", tmp_path / "xvfb.log") as x:
        connection = xdisplay.Display(x.display)  # an X server that nobody is connected to forgets everything
        died = subprocess.run([sys.executable, "-c", _PRESS_AND_DIE], env=x.env, check=False)
        assert died.returncode == 9
        keymap = connection.query_keymap()
        connection.close()
    code = 17 + 8  # KeyW
    assert keymap[code // 8] >> code % 8 & 1


_PRESS_THINGS = """
from playserve.actions import DesktopAction
from playserve_client.actuate import Actuator
from playserve_client.actuate.x11 import X11Backend
backend = X11Backend()
assert backend.can_press("KeyW") and backend.can_press("ArrowLeft") and not backend.can_press("Fn")
with Actuator(backend) as actuator:
    actuator.apply(DesktopAction(frozenset({"KeyW", "ArrowLeft"}), frozenset({2}), 50.0, -30.0, 1.0))
"""


def test_x11_presses_reach_a_window_and_motion_is_not_accelerated(
    require_program: Callable[[str], None], tmp_path: Path
) -> None:
    require_program("Xvfb")
    if importlib.util.find_spec("pynput") is None:
        pytest.skip("missing package: pynput")
    from Xlib import display as xdisplay

    with xserver("Xvfb", tmp_path / "xvfb.log") as x:
        window = Program([sys.executable, "-m", "desktop.window", "Game", "300,200,600,400", "c02010"], x.env)
        window.wait_for(lambda line: "ready" in line, "the window")
        connection = xdisplay.Display(x.display)
        connection.screen().root.warp_pointer(500, 400)
        connection.sync()
        done = subprocess.run([sys.executable, "-c", _PRESS_THINGS], env=x.env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        window.wait_for(lambda line: line.get("key") == "w" and not line["down"], "the release")
        pointer = connection.screen().root.query_pointer()
        connection.close()
        window.close()
    assert (pointer.root_x, pointer.root_y) == (550, 370)  # though this server accelerates mice by 2
    edges = [(line.get("key") or line.get("button"), line["down"]) for line in window.lines if "down" in line]
    # Left arrow and W, then the right button and the wheel; buttons are lifted after the keys.
    assert edges == [("0xff51", True), ("w", True), (3, True), (4, True), (4, False),
                     ("0xff51", False), ("w", False), (3, False)]  # fmt: skip
