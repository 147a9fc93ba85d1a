"""What hands do: X's raw events, Windows' hooks, macOS' taps; and what they add up to."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from desktop.rfb import Hands
from desktop.rig import wait_until
from desktop.xserver import xserver

from playserve.actions import DesktopAction
from playserve_client.play.human import ButtonEvent, HumanEvent, HumanState, KeyEvent, MotionEvent, ScrollEvent
from playserve_client.play.human_hooks import mac_event, win32_key, win32_mouse
from playserve_client.play.human_x11 import RawEvent, parse_raw


def raw(device: int, detail: int, source: int, values: dict[int, tuple[float, float]]) -> bytes:
    """Return the bytes of a raw event; (accelerated, raw) by axis."""
    mask = sum(1 << axis for axis in values)
    data = struct.pack("=HIIHHI4xII", device, 1234, detail, source, 2, 0, mask, 0)
    for which in (0, 1):
        for axis in sorted(values):
            whole = int(values[axis][which] // 1)
            data += struct.pack("=iI", whole, int((values[axis][which] - whole) * 2**32))
    return data


def test_raw_events_name_their_device_and_carry_unaccelerated_motion() -> None:
    assert parse_raw(raw(2, 0, 11, {0: (20.0, 8.5), 1: (-3.0, -1.25)})) == RawEvent(11, 0, {0: 8.5, 1: -1.25})
    assert parse_raw(raw(2, 0, 11, {1: (7.0, 3.0)})) == RawEvent(11, 0, {1: 3.0})
    assert parse_raw(raw(3, 38, 7, {})) == RawEvent(7, 38, {})


@pytest.fixture
def watched(require_program: Callable[[str], None], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Yield (events, hands, display) of a person at Xvnc, with a watcher."""
    require_program("Xvnc")
    if importlib.util.find_spec("Xlib") is None:
        pytest.skip("missing package: python-xlib")
    from playserve_client.play.human_x11 import X11Watcher

    events: list[HumanEvent] = []
    with xserver("Xvnc", tmp_path / "xvnc.log") as x, Hands(x.rfb_port) as hands:
        watcher = X11Watcher(events.append, x.display)
        assert "XTEST" in watcher.ignored()
        assert watcher.real() == ["TigerVNC pointer", "TigerVNC keyboard"]
        watcher.start()
        yield events, hands, x.display
        watcher.close()
        watcher.close()


def test_a_viewers_input_is_a_persons(watched) -> None:  # type: ignore[no-untyped-def]
    events, hands, _ = watched
    hands.key(ord("w"), True)
    hands.key(ord("w"), False)
    wait_until(lambda: len(events) >= 2, "key events")
    assert events == [KeyEvent("KeyW", True), KeyEvent("KeyW", False)]
    events.clear()
    hands.move(200, 100)
    hands.move(207, 95)
    hands.button(1, True)
    hands.button(1, False)
    hands.button(5, True)
    hands.button(5, False)
    wait_until(lambda: ScrollEvent(-1.0) in events, "the wheel")
    motions = [event for event in events if isinstance(event, MotionEvent)]
    assert motions[-1] == MotionEvent(7.0, -5.0)  # a position on the wire, motion for us
    assert [e for e in events if not isinstance(e, MotionEvent)] == [
        ButtonEvent(0, True), ButtonEvent(0, False), ScrollEvent(-1.0),
    ]  # fmt: skip


def test_xtest_is_a_programs(watched) -> None:  # type: ignore[no-untyped-def]
    from Xlib import X
    from Xlib import display as xdisplay
    from Xlib.ext import xtest

    events, hands, name = watched
    connection = xdisplay.Display(name)
    key = connection.keysym_to_keycode(ord("w"))
    for kind, detail in ((X.KeyPress, key), (X.ButtonPress, 1), (X.ButtonRelease, 1)):
        xtest.fake_input(connection, kind, detail)
    xtest.fake_input(connection, X.MotionNotify, detail=True, x=5, y=5)
    connection.sync()
    # A person presses the same key that a program holds: that is still seen.
    hands.key(ord("w"), True)
    wait_until(lambda: events, "the person's key")
    xtest.fake_input(connection, X.KeyRelease, key)
    connection.sync()
    hands.key(ord("w"), False)
    wait_until(lambda: len(events) > 1, "the person's release")
    assert events == [KeyEvent("KeyW", True), KeyEvent("KeyW", False)]
    connection.close()


def test_a_game_that_holds_keyboard_and_pointer_hides_nobody(watched) -> None:  # type: ignore[no-untyped-def]
    from Xlib import X
    from Xlib import display as xdisplay

    events, hands, name = watched
    connection = xdisplay.Display(name)
    root = connection.screen().root
    mask = X.PointerMotionMask | X.ButtonPressMask
    root.grab_pointer(False, mask, X.GrabModeAsync, X.GrabModeAsync, X.NONE, X.NONE, X.CurrentTime)
    root.grab_keyboard(False, X.GrabModeAsync, X.GrabModeAsync, X.CurrentTime)
    connection.sync()
    hands.key(ord("a"), True)
    hands.button(1, True)
    wait_until(lambda: ButtonEvent(0, True) in events, "the button")
    assert KeyEvent("KeyA", True) in events
    connection.close()


def test_what_is_held_and_moved_adds_up_until_it_is_asked_for() -> None:
    state = HumanState(frozenset({"F9"}))
    assert state.take(KeyEvent("KeyA", True))
    assert not state.take(KeyEvent("KeyA", True))  # a repeat
    assert not state.take(KeyEvent("F9", True))
    assert state.take(MotionEvent(3.0, -1.0))
    assert state.take(MotionEvent(3.0, 0.0))
    assert state.take(ScrollEvent(1.0))
    assert state.take(ButtonEvent(0, True))
    assert not state.take(ButtonEvent(0, False))
    assert state.moved_px == 7.0
    assert state.sample(2.0) == DesktopAction(frozenset({"KeyA"}), frozenset({0}), 3.0, -0.5, 1.0)
    assert not state.take(KeyEvent("KeyA", False))
    assert state.sample() == DesktopAction()


def test_windows_marks_what_is_injected() -> None:
    assert win32_key(0x100, 0x11, 0) == KeyEvent("KeyW", True)
    assert win32_key(0x105, 0x48, 0x81) == KeyEvent("ArrowUp", False)
    assert win32_key(0x100, 0x11, 0x10) is None
    assert win32_mouse(0x200, 0, 0, (105, 48), (100, 50)) == MotionEvent(5, -2)
    assert win32_mouse(0x200, 1, 0, (105, 48), (100, 50)) is None
    assert win32_mouse(0x204, 0, 0, (0, 0), (0, 0)) == ButtonEvent(2, True)
    assert win32_mouse(0x20C, 0, 2 << 16, (0, 0), (0, 0)) == ButtonEvent(4, False)
    assert win32_mouse(0x20A, 0, 0xFF88 << 16, (0, 0), (0, 0)) == ScrollEvent(-1.0)


def test_macos_names_the_process_that_posted_an_event() -> None:
    def event(kind: int, flags: int = 0, **fields: int) -> HumanEvent | None:
        return mac_event(kind, lambda number: fields.get(f"f{number}", 0), flags)

    assert event(10, f9=13) == KeyEvent("KeyW", True)
    assert event(10, f9=13, f41=77) is None
    assert event(12, flags=0x20102, f9=56) == KeyEvent("ShiftLeft", True)
    assert event(12, flags=0x100, f9=56) == KeyEvent("ShiftLeft", False)
    assert event(6, f4=3, f5=-2) == MotionEvent(3, -2)
    assert event(26) == ButtonEvent(1, False)
    assert event(22, f11=-1) == ScrollEvent(-1.0)
