"""Presses through SendInput on Windows: scan codes and relative motion, as games that read raw input want them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from playserve_client.actuate.base import ActuationError
from playserve_client.actuate.codes import BUTTONS, EXTENDED, KEYS
from playserve_client.capture.errors import PermissionMissingError

__all__ = ["INPUT", "SendInputBackend"]

_INPUT_MOUSE, _INPUT_KEYBOARD = 0, 1
_KEYEVENTF_EXTENDEDKEY, _KEYEVENTF_KEYUP, _KEYEVENTF_SCANCODE = 0x1, 0x2, 0x8
_MOUSEEVENTF_MOVE, _MOUSEEVENTF_WHEEL, _MOUSEEVENTF_XDOWN, _MOUSEEVENTF_XUP = 0x1, 0x800, 0x80, 0x100
# Flag of a press (twice it: of its release), and the data that goes with it.
_BUTTON_FLAGS = {0: (0x2, 0), 1: (0x20, 0), 2: (0x8, 0), 3: (_MOUSEEVENTF_XDOWN, 1), 4: (_MOUSEEVENTF_XDOWN, 2)}
_WHEEL_DELTA = 120
#: Put into each event's extra information: what tells our presses from a person's.
SIGNATURE = 0x504C5359  # "PLSY"


class _MouseInput(ctypes.Structure):
    _fields_ = (
        ("dx", ctypes.c_int32), ("dy", ctypes.c_int32), ("mouseData", ctypes.c_uint32), ("dwFlags", ctypes.c_uint32),
        ("time", ctypes.c_uint32), ("dwExtraInfo", ctypes.c_size_t),
    )  # fmt: skip


class _KeyboardInput(ctypes.Structure):
    _fields_ = (
        ("wVk", ctypes.c_uint16), ("wScan", ctypes.c_uint16), ("dwFlags", ctypes.c_uint32), ("time", ctypes.c_uint32),
        ("dwExtraInfo", ctypes.c_size_t),
    )  # fmt: skip


class _Union(ctypes.Union):
    _fields_ = (("mi", _MouseInput), ("ki", _KeyboardInput))


class INPUT(ctypes.Structure):
    """As winuser.h has it."""

    _fields_ = (("type", ctypes.c_uint32), ("u", _Union))


class SendInputBackend:
    """See :class:`playserve_client.actuate.base.Backend`.

    Args:
        send: Takes a list of events and returns how many the system took; None: the system's SendInput.
    """

    def __init__(self, send: Callable[[list[INPUT]], int] | None = None) -> None:
        self._send = send or _system_send()

    def can_press(self, code: str) -> bool:
        """Return whether the key has a scan code."""
        return code in KEYS

    def key(self, code: str, down: bool) -> None:
        """Press or release a key."""
        scan = KEYS[code].scan
        flags = _KEYEVENTF_SCANCODE | (0 if down else _KEYEVENTF_KEYUP)
        if scan >= EXTENDED:
            flags |= _KEYEVENTF_EXTENDEDKEY
        event = INPUT(type=_INPUT_KEYBOARD)
        event.u.ki = _KeyboardInput(wVk=0, wScan=scan & 0xFF, dwFlags=flags, time=0, dwExtraInfo=SIGNATURE)
        self._post(event, code)

    def button(self, button: int, down: bool) -> None:
        """Press or release a mouse button."""
        if button not in BUTTONS:
            raise ActuationError(f"mouse button {button}, wanted one of {sorted(BUTTONS)}")
        flag, data = _BUTTON_FLAGS[button]
        self._mouse(f"button {button}", dwFlags=flag if down else 2 * flag, mouseData=data)

    def move(self, dx: int, dy: int) -> None:
        """Move the mouse by counts, as a mouse reports them."""
        self._mouse("the mouse", dx=dx, dy=dy, dwFlags=_MOUSEEVENTF_MOVE)

    def scroll(self, steps: int) -> None:
        """Turn the wheel."""
        self._mouse("the wheel", mouseData=(steps * _WHEEL_DELTA) & 0xFFFFFFFF, dwFlags=_MOUSEEVENTF_WHEEL)

    def flush(self) -> None:
        """Do nothing: SendInput returns when the events are in the queue."""

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _mouse(self, what: str, **fields: int) -> None:
        event = INPUT(type=_INPUT_MOUSE)
        event.u.mi = _MouseInput(dwExtraInfo=SIGNATURE, **fields)
        self._post(event, what)

    def _post(self, event: INPUT, what: str) -> None:
        if self._send([event]) != 1:
            raise PermissionMissingError(
                f"Windows refused the event of {what}: the window in front runs with higher rights; start this "
                "program with the same (as administrator), or the game without"
            )


def _system_send() -> Callable[[list[INPUT]], int]:
    user32: Any = ctypes.WinDLL("user32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]

    def send(events: list[INPUT]) -> int:
        array = (INPUT * len(events))(*events)
        return int(user32.SendInput(len(events), array, ctypes.sizeof(INPUT)))

    return send
