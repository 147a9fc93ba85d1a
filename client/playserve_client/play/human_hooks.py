"""Watches real devices on Windows and macOS: pynput's listeners, and the systems' own marks of what is simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playserve_client.actuate.codes import EXTENDED, KEYS
from playserve_client.play.human import ButtonEvent, HumanEvent, KeyEvent, MotionEvent, OnEvent, ScrollEvent

__all__ = ["MacWatcher", "Win32Watcher", "mac_event", "win32_key", "win32_mouse"]

_CODE_BY_SCAN = {key.scan: key.code for key in KEYS.values()}
_CODE_BY_MAC = {key.mac: key.code for key in KEYS.values() if key.mac is not None}

_WM_KEYDOWN, _WM_SYSKEYDOWN = 0x100, 0x104
_LLKHF_EXTENDED, _LLKHF_INJECTED, _LLMHF_INJECTED = 0x1, 0x10, 0x1
_WM_MOUSEMOVE, _WM_MOUSEWHEEL = 0x200, 0x20A
_WM_XBUTTONDOWN, _WM_XBUTTONUP = 0x20B, 0x20C
_WIN_BUTTONS = {
    0x201: (0, True), 0x202: (0, False), 0x204: (2, True), 0x205: (2, False), 0x207: (1, True), 0x208: (1, False),
}  # fmt: skip
_WHEEL_DELTA = 120


def win32_key(message: int, scan: int, flags: int) -> HumanEvent | None:
    """Return the event of a low-level keyboard hook; None: a program's."""
    if flags & _LLKHF_INJECTED:
        return None
    code = _CODE_BY_SCAN.get(scan + (EXTENDED if flags & _LLKHF_EXTENDED else 0), "")
    return KeyEvent(code, message in (_WM_KEYDOWN, _WM_SYSKEYDOWN))


def win32_mouse(
    message: int, flags: int, data: int, point: tuple[int, int], cursor: tuple[int, int]
) -> HumanEvent | None:
    """Return the event of a low-level mouse hook; None: a program's, or nothing.

    Args:
        message: Its kind.
        flags: Its flags.
        data: `mouseData`: wheel or which extra button, in the upper half.
        point: Where the cursor would go.
        cursor: Where it is; games that hold it keep it there, so the difference is the motion.
    """
    if flags & _LLMHF_INJECTED:
        return None
    upper = data >> 16 & 0xFFFF
    if message in _WIN_BUTTONS:
        return ButtonEvent(*_WIN_BUTTONS[message])
    if message in (_WM_XBUTTONDOWN, _WM_XBUTTONUP):
        return ButtonEvent(2 + upper, message == _WM_XBUTTONDOWN)
    if message == _WM_MOUSEWHEEL:
        return ScrollEvent((upper - 0x10000 if upper & 0x8000 else upper) / _WHEEL_DELTA)
    moved = point[0] - cursor[0], point[1] - cursor[1]
    return MotionEvent(*moved) if message == _WM_MOUSEMOVE and any(moved) else None


class _Hooks:
    """Listeners of pynput's, for keyboard and mouse."""

    def __init__(self, keyboard: Any, mouse: Any) -> None:
        self._listeners = (keyboard, mouse)

    def start(self) -> None:
        """Begin."""
        for listener in self._listeners:
            listener.start()

    def close(self) -> None:
        """End; no event comes after it."""
        for listener in self._listeners:
            listener.stop()


class Win32Watcher(_Hooks):
    """See :class:`playserve_client.play.human.Watcher`.

    Args:
        on_event: Takes events.
        pynput: Packages `keyboard` and `mouse` as attributes; None: pynput itself.
        cursor: Returns where the cursor is; None: the system's.
    """

    def __init__(
        self, on_event: OnEvent, pynput: Any = None, cursor: Callable[[], tuple[int, int]] | None = None
    ) -> None:
        if pynput is None:
            import importlib

            pynput = importlib.import_module("pynput")  # which looks for a display
        where = cursor or pynput.mouse.Controller()._position_get

        def key(message: int, data: Any) -> bool:
            found = win32_key(message, int(data.scanCode), int(data.flags))
            if found is not None:
                on_event(found)
            return True

        def mouse(message: int, data: Any) -> bool:
            point = int(data.pt.x), int(data.pt.y)
            found = win32_mouse(message, int(data.flags), int(data.mouseData), point, where())
            if found is not None:
                on_event(found)
            return True

        super().__init__(
            pynput.keyboard.Listener(win32_event_filter=key), pynput.mouse.Listener(win32_event_filter=mouse)
        )

    def ignored(self) -> str:
        """Return, for people, which events are not a person's."""
        return "events that Windows marks as injected"


# Numbers of Quartz' events and of their fields.
_MAC_KEY_DOWN, _MAC_KEY_UP, _MAC_FLAGS_CHANGED, _MAC_SCROLL = 10, 11, 12, 22
_MAC_MOVES = (5, 6, 7, 27)  # moved, and dragged by the left, right, other button
_MAC_BUTTONS = {1: (0, True), 2: (0, False), 3: (2, True), 4: (2, False), 25: (1, True), 26: (1, False)}
_FIELD_DX, _FIELD_DY, _FIELD_KEYCODE, _FIELD_SCROLL, _FIELD_PROCESS = 4, 5, 9, 11, 41
# Bit of the flags by which a modifier's own key is seen to be down.
_MAC_MODIFIERS = {
    "ShiftLeft": 0x2, "ShiftRight": 0x4, "ControlLeft": 0x1, "ControlRight": 0x2000, "AltLeft": 0x20,
    "AltRight": 0x40, "MetaLeft": 0x8, "MetaRight": 0x10, "CapsLock": 0x10000,
}  # fmt: skip


def mac_event(kind: int, field: Callable[[int], int], flags: int) -> HumanEvent | None:
    """Return the event of an event tap; None: a program's, or nothing.

    Args:
        kind: Quartz' type of event.
        field: Returns an integer field of the event.
        flags: Its modifier flags.
    """
    if field(_FIELD_PROCESS) != 0:  # a program posted it; hardware's have no process
        return None
    if kind in (_MAC_KEY_DOWN, _MAC_KEY_UP):
        return KeyEvent(_CODE_BY_MAC.get(field(_FIELD_KEYCODE), ""), kind == _MAC_KEY_DOWN)
    if kind == _MAC_FLAGS_CHANGED:
        code = _CODE_BY_MAC.get(field(_FIELD_KEYCODE), "")
        return KeyEvent(code, bool(flags & _MAC_MODIFIERS.get(code, 0)))
    if kind in _MAC_BUTTONS:
        return ButtonEvent(*_MAC_BUTTONS[kind])
    if kind == _MAC_SCROLL:
        steps = field(_FIELD_SCROLL)
        return ScrollEvent(float(steps)) if steps else None
    if kind in _MAC_MOVES:
        moved = field(_FIELD_DX), field(_FIELD_DY)
        return MotionEvent(*moved) if any(moved) else None
    return None


class MacWatcher(_Hooks):
    """See :class:`playserve_client.play.human.Watcher`.

    Args:
        on_event: Takes events.
    """

    def __init__(self, on_event: OnEvent) -> None:
        import importlib

        import pynput

        quartz = importlib.import_module("Quartz")

        def tap(kind: int, event: Any) -> Any:
            found = mac_event(
                kind, lambda number: int(quartz.CGEventGetIntegerValueField(event, number)),
                int(quartz.CGEventGetFlags(event)),
            )  # fmt: skip
            if found is not None:
                on_event(found)
            return event

        super().__init__(pynput.keyboard.Listener(darwin_intercept=tap), pynput.mouse.Listener(darwin_intercept=tap))

    def ignored(self) -> str:
        """Return, for people, which events are not a person's."""
        return "events that a process posted"
